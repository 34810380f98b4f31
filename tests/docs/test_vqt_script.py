"""`scripts/_vqt.py`: what it does with answers, and with a second process that fails."""

from __future__ import annotations

from pathlib import Path

import _vqt
import pytest

from vqedge.errors import BundleError


def test_what_the_second_process_raises_is_raised(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.vqedge: no such folder"):
        _vqt.compared(tmp_path / "none.vqedge", tmp_path, {}, None)


def test_clips_videos_and_fewer_bits_are_told_apart(tmp_path: Path) -> None:
    same = {"clip0": (True, True), "clip1": (True, False), "cat.mp4": (False, True)}
    for size, name in enumerate(same, start=10):
        (tmp_path / f"{name}.vqt").write_bytes(b"." * size)
    rounded = {8: [(5, True), (8, False)]}
    found = _vqt.document_of(dict.fromkeys(same), same, rounded, tmp_path, 2)
    assert found == {
        "held_out": {
            "clips": 2,
            "same_rows": 2,
            "same_answers": 1,
            "bytes": {"mean": 10.5, "max": 11},
        },
        "real": {
            "clips": 1,
            "same_rows": 0,
            "same_answers": 1,
            "bytes": {"mean": 12, "max": 12},
        },
        "bits": {8: {"files": 2, "bytes_mean": 6.5, "same_answers": 1}},
    }
    del found["real"]
    names = ["clip0", "clip1"]
    assert _vqt.document_of(dict.fromkeys(names), same, rounded, tmp_path, 2) == found
