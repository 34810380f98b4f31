"""Coverage-guided fuzzing of what `vqedge import` reads: a plan, or one line that says why not.

    python tests/fuzz/fuzz_hf.py SECONDS

See `fuzz_vqt.py`. An input is the length of `config.json` in four bytes, that file, and
`model.safetensors`.
"""

from __future__ import annotations

import struct
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vqedge_export.hf", "vqedge.base.tensors"]):
    from vqedge_export.hf.folder import HfFolder
    from vqedge_export.hf.importing import _plan

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))

from fuzzing import run
from hf_maker import write_tower

from vqedge.errors import VqedgeError

MAX_BYTES = 1 << 18
WORK = tempfile.TemporaryDirectory()
FOLDER = Path(WORK.name)


def one_input(data: bytes) -> None:
    """Write the folder, plan its import, read its tensors."""
    size = struct.unpack_from("<I", data.ljust(4, b"\0"))[0] % (len(data) + 1)
    (FOLDER / "config.json").write_bytes(data[4 : 4 + size])
    (FOLDER / "model.safetensors").write_bytes(data[4 + size :])
    try:
        folder = HfFolder(FOLDER)
        for name in folder.tensors:
            folder.tensors.shape(name), folder.tensors.dtype(name)
        _plan(folder, None, 8, None)
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


if __name__ == "__main__":
    run(one_input, seeds(), MAX_BYTES)
