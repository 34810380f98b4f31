"""A bundle's `manifest.json` is a manifest or a `BundleError`.

A digest would hide the rest, so inputs that are JSON are read as the writer would seal them, too.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from tiny_bundle import write_bundle

from vqedge.bundle.manifest import _canonical, manifest_bytes, manifest_from_bytes
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
    """Spelled as the writer does and with a fitting digest, if it can be."""
    try:
        values = json.loads(data)
        values.pop("digest", None)
        return _canonical(values | {"digest": hashlib.sha256(_canonical(values)).hexdigest()})
    except (ValueError, AttributeError, TypeError, RecursionError):  # no JSON, or no object
        return data


def one_input(data: bytes) -> None:
    """As it is, and sealed."""
    read_whole(data)
    read_whole(sealed(data))


def seeds() -> list[bytes]:
    """A whole one."""
    with tempfile.TemporaryDirectory() as folder:
        return [manifest_bytes(write_bundle(Path(folder) / "a.vqedge").manifest)]
