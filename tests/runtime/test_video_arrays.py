"""Frames from memory: sampled and shrunk as files of the same pixels are."""

from __future__ import annotations

import tracemalloc
from collections import deque
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from video_maker import image_bytes

from vqedge.errors import ConfigError
from vqedge.sampling import FrameRule
from vqedge_runtime.video import clip_from_frames, clip_from_path

RULES = [FrameRule(), FrameRule("ends", "stretch-bicubic")]


def noise(frames: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    generator = np.random.default_rng(frames)
    return generator.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 3, 4, 11])
def test_they_become_the_clip_of_a_folder_of_them(
    tmp_path: Path, rule: FrameRule, count: int
) -> None:
    frames = noise(count, 40, 60)
    for number, pixels in enumerate(frames):
        (tmp_path / f"{number}.png").write_bytes(image_bytes(pixels))
    wanted = clip_from_path(tmp_path, 4, 16, rule=rule)
    found = clip_from_frames(frames, range(count), 4, 16, rule)
    assert np.array_equal(found.frames_thwc, wanted.frames_thwc)
    assert found.times_s == wanted.times_s
    assert (found.width, found.height) == (wanted.width, wanted.height) == (60, 40)
    assert found.duration_s == (wanted.duration_s if count > 1 else 0.0)


@pytest.mark.parametrize("rule", RULES)
def test_as_many_as_wanted_of_the_right_size_stay_as_they_are(rule: FrameRule) -> None:
    frames = noise(4, 16, 16)
    times_s = (0.0, 0.1, 0.2, 9.0)
    for given in (frames, list(frames), np.asfortranarray(frames), frames[..., ::-1]):
        clip = clip_from_frames(given, times_s, 4, 16, rule)
        assert np.array_equal(clip.frames_thwc, np.asarray(given))
        assert clip.times_s == times_s and clip.duration_s == 12.0


def test_which_of_them_follows_their_times() -> None:
    """A camera that stalls: its last picture is on screen meanwhile."""
    frames = noise(5, 8, 8)
    times_s = [1.0, 2.0, 3.0, 10.0, 13.0]
    clip = clip_from_frames(frames, times_s, 3, 8)
    assert clip.times_s == (3.0, 3.0, 13.0)
    assert (clip.start_s, clip.duration_s) == (1.0, 15.0)


def test_a_list_of_many_frames_is_not_copied() -> None:
    frame = noise(1, 100, 100)[0]
    for many in ([frame] * 1000, deque([frame] * 1000)):
        tracemalloc.start()
        clip = clip_from_frames(many, None, 4, 16)
        _, most_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert clip.frames_thwc.shape == (4, 16, 16, 3)
        assert most_bytes < 100 * frame.nbytes


class OnAGpu:
    """As a tensor there."""

    def __init__(self, kind: type[Exception]) -> None:
        self.kind = kind

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self.kind("can't convert cuda:0\nUse Tensor.cpu()")


@pytest.mark.parametrize("kind", [TypeError, RuntimeError])
def test_frames_that_numpy_cannot_take(kind: type[Exception]) -> None:
    told = r"^frames cannot be read as an array \(can't convert cuda:0\); give uint8 RGB \(N, h"
    for given in (OnAGpu(kind), [noise(1, 8, 8)[0], OnAGpu(kind)]):
        with pytest.raises(ConfigError, match=told):
            clip_from_frames(given, None, 1, 8)  # type: ignore[arg-type]


def test_a_frame_that_is_none_is_not_said_to_be_smaller() -> None:
    with pytest.raises(ConfigError, match=r"^frames are object \(2,\), want uint8"):
        clip_from_frames([noise(1, 8, 8)[0], None], None, 1, 8)  # type: ignore[list-item]


@pytest.mark.parametrize(
    "times_s",
    [
        np.array([0, 100], "datetime64[ms]"),
        np.array([0, 100], "timedelta64[ms]"),
        np.array([0, 1j]),
        ["0", "1"],
        [False, True],
    ],
)
def test_times_that_are_no_numbers_of_seconds(times_s: Any) -> None:
    with pytest.raises(ConfigError, match="give a number of seconds for each"):
        clip_from_frames(noise(2, 8, 8), times_s, 2, 8)


def test_times_may_be_numbers_of_any_kind() -> None:
    for times_s in ([0, 1], np.float32([0, 1]), [Fraction(0), Fraction(1)]):
        assert clip_from_frames(noise(2, 8, 8), times_s, 2, 8).duration_s == 2.0
