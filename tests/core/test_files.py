"""Files that are replaced as a whole."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from vqedge.files import disk_fault, replacing, surplus


def test_any_name_that_a_filesystem_takes_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / f"{'a' * 251}.vqt"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == [path.name]
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("named", [True, False])
def test_what_a_disk_refuses_names_the_file_and_not_the_one_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
) -> None:
    """A write names none; and nothing can be removed on a disk that takes nothing."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), ".tmp")

    path = tmp_path / "a.vqt"
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(OSError) as caught, replacing(path) as temporary:
        raise OSError(errno.EROFS, "it says", *([str(temporary)] if named else []))
    told = "Read-only file system; check the path and its rights"
    assert disk_fault(caught.value) == f"{path}: {told}"


def test_a_disk_fault_says_where_and_what_next() -> None:
    full = OSError(errno.ENOSPC, "full")
    assert disk_fault(full) == "No space left on device; make room or allow more"
    there = "/tmp: No space left on device; make room there or allow more"
    assert disk_fault(full, Path("/tmp")) == there
    full.filename = "/other"
    assert disk_fault(full, Path("/tmp")) == there.replace("tmp", "other")
    assert disk_fault(OSError(errno.EIO, "broken")) is disk_fault(ValueError("28")) is None


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
