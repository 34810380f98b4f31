"""Files that are replaced as a whole."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from vqedge.errors import ConfigError
from vqedge.files import (
    bytes_within,
    cache_root,
    disk_fault,
    remove_unfinished,
    replacing,
    surplus,
    text_within,
)


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


def test_what_a_kill_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    left, new, other = (tmp_path / name for name in (".vqedge-01.tmp", ".vqedge-02.tmp", "03.tmp"))
    with replacing(tmp_path / "a") as held:
        for path in (left, new, other, held):
            path.write_bytes(b"old")
            os.utime(path, (time.time() - 3600,) * 2)
        os.utime(new)
        remove_unfinished(tmp_path)
        assert {*tmp_path.iterdir()} == {new, other, held}
        remove_unfinished(tmp_path, older_s=0.0)
        assert {*tmp_path.iterdir()} == {other, held}
    assert {*tmp_path.iterdir()} == {other, tmp_path / "a"}


def test_rights_are_those_of_the_umask_or_the_callers(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        for name, mode in (("a", 0o666), ("b", 0o600)):
            with replacing(tmp_path / name, mode) as temporary:
                assert temporary.stat().st_mode & 0o777 == mode & ~0o027
                temporary.write_bytes(b"new")
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o640, 0o600]


def test_no_more_is_read_than_was_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfa\r\nb\n")
    assert text_within(path) == text_within(path, 8) == "a\nb\n"
    assert bytes_within(path, 8) == path.read_bytes()
    for endless, most in ((path, 7), (Path("/dev/zero"), 1 << 20)):
        with pytest.raises(OSError, match="holds more than") as caught:
            text_within(endless, most)
        assert caught.value.filename == str(endless)


def test_a_cache_in_a_home_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQEDGE_CACHE", "~no-such-user/cache")
    with pytest.raises(ConfigError, match="VQEDGE_CACHE ~no-such-user/cache: no such home folder"):
        cache_root()
    monkeypatch.delenv("VQEDGE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="VQEDGE_CACHE is not set, nor is HOME; give it"):
        cache_root()
