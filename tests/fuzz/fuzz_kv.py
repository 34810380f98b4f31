"""A `.kv` file is the state that was written, or none; what is no `.kv` is left as it is."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

from vqedge_runtime.kv import read_kv, write_kv

MAX_BYTES = 4096
WHO, STATE = b"who", bytes(range(256))
one_secret = patch("vqedge_runtime.kv._secret", lambda: bytes(32))
"""A user's own differs, and with it every file."""


@one_secret
def one_input(data: bytes) -> None:
    """Read it, write over it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.kv"
        path.write_bytes(data)
        found = read_kv(path, WHO)
        assert found is None or (found == STATE and data.endswith(STATE))
        assert read_kv(path, b"somebody else") is None
        if write_kv(path, WHO, STATE):
            assert read_kv(path, WHO) == STATE
        else:
            assert path.read_bytes() == data


@one_secret
def seeds() -> list[bytes]:
    """A whole one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.kv"
        assert write_kv(path, WHO, STATE) and read_kv(path, WHO) == STATE
        return [path.read_bytes()]
