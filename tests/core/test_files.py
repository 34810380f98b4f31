"""Files that are replaced as a whole."""

from __future__ import annotations

import os
import time
from pathlib import Path

from vqedge.files import replacing, surplus


def test_any_name_that_a_filesystem_takes_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / f"{'a' * 251}.vqt"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"new"


def test_what_is_in_use_stays_and_what_the_clock_says_is_to_come_goes_first(tmp_path: Path) -> None:
    now = time.time()
    paths = [tmp_path / name for name in ("used", "older", "newer", "later", "latest")]
    for path, age_s in zip(paths, (9e8, 100, 10, -1e8, -2e8), strict=True):
        path.touch()
        os.utime(path, (now - age_s,) * 2)
    used, older, newer, later, latest = paths
    gone = tmp_path / "gone"
    assert surplus([*paths, gone], 1, keep=used) == [newer, older, gone, latest, later]
    assert surplus(paths, 3, keep=used) == [latest, later]
    assert surplus(paths, 9, keep=used) == []
