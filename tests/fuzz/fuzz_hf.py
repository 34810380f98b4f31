"""What `vqedge import` reads gives a plan, or one line that says why not.

An input is the length of `config.json` in four bytes, that file, and `model.safetensors`.
"""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

from hf_maker import write_tower

from vqedge.errors import VqedgeError
from vqedge_export.hf.folder import HfFolder
from vqedge_export.hf.importing import _plan

MAX_BYTES = 1 << 18


def one_input(data: bytes) -> None:
    """Write the folder, plan its import, read its tensors."""
    size = struct.unpack_from("<I", data.ljust(4, b"\0"))[0] % (len(data) + 1)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "config.json").write_bytes(data[4 : 4 + size])
        (Path(name) / "model.safetensors").write_bytes(data[4 + size :])
        try:
            folder = HfFolder(Path(name))
            for tensor in folder.tensors:
                folder.tensors.shape(tensor), folder.tensors.dtype(tensor)
            _plan(folder, None, 8, None, None)
        except VqedgeError as error:
            line = str(error)
            assert line.isprintable() and len(line) < 4000, line


def seeds() -> list[bytes]:
    """Three towers."""
    found = []
    for kind in ("siglip", "clip", "dinov2"):
        with tempfile.TemporaryDirectory() as parent:
            folder = write_tower(Path(parent) / kind, kind)
            config = (folder / "config.json").read_bytes()
            weights = (folder / "model.safetensors").read_bytes()
            found.append(struct.pack("<I", len(config)) + config + weights)
    return found
