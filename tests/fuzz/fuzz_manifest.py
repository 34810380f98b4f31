"""Coverage-guided fuzzing of a bundle's `manifest.json`: a manifest or a `BundleError`.

    python tests/fuzz/fuzz_manifest.py SECONDS

See `fuzz_vqt.py`. A digest would hide the rest from the fuzzer, so inputs that are a manifest in
all else are sealed again.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["vqedge.bundle"]):
    from vqedge.bundle.manifest import Manifest, digest_of, manifest_bytes, manifest_from_bytes

sys.path.insert(0, str(Path(__file__).parents[1] / "core"))

from fuzzing import run
from tiny_bundle import write_bundle

from vqedge.errors import BundleError

MAX_BYTES = 16384


def read_whole(data: bytes) -> None:
    """What is read is written the same."""
    try:
        manifest = manifest_from_bytes(data)
    except BundleError as error:
        line = str(error)
        assert line.isprintable() and len(line) < 600, line
        return
    assert manifest_bytes(manifest) == data


def sealed(data: bytes) -> bytes:
    """With a fitting digest, if it is a manifest otherwise."""
    try:
        values = json.loads(data)
        loose = Manifest.model_construct(**values)
        values["digest"] = digest_of(loose)
        return json.dumps(values, indent=2).encode()
    except Exception:  # it need not be one
        return data


def one_input(data: bytes) -> None:
    """As it is, and sealed."""
    read_whole(data)
    read_whole(sealed(data))


def seeds() -> list[bytes]:
    """A whole one."""
    with tempfile.TemporaryDirectory() as folder:
        return [manifest_bytes(write_bundle(Path(folder) / "a.vqedge").manifest)]


if __name__ == "__main__":
    run(one_input, seeds(), MAX_BYTES)
