"""Files that are replaced as a whole."""

from __future__ import annotations

from pathlib import Path

from vqedge.files import replacing


def test_any_name_that_a_filesystem_takes_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / f"{'a' * 251}.vqt"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"new"
