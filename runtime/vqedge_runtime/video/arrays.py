"""Frames from memory, as a camera gives them, become the clip that a video of them would."""

from __future__ import annotations

import math
from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame

from vqedge.errors import ConfigError, first_line
from vqedge.sampling import DEFAULT_RULE, FrameRule
from vqedge_runtime.video.canvas import Canvas
from vqedge_runtime.video.clip import Clip
from vqedge_runtime.video.cursor import ROUNDING_S, Shot

Pixels = npt.NDArray[np.uint8]
_WANTED = "uint8 RGB (N, height, width, 3)"


def clip_from_frames(
    frames_thwc: Pixels | Sequence[Pixels],
    times_s: Sequence[float] | None,
    frames: int,
    size: int,
    rule: FrameRule = DEFAULT_RULE,
) -> Clip:
    """Samples frames as a video of them would be; all of them, if they are as many as wanted.

    Args:
        frames_thwc: uint8 RGB `[N, height, width, 3]`, or a list of N such frames.
        times_s: when each was shown, in seconds from 0 up; None where that is not known, for the
            same time between all. The last is taken to be shown as long as the others on average.
        frames: T, how many to sample, at least 1.
        size: side of the square frames in pixels, at least 1.
        rule: which frames, and how they are shrunk.

    Returns:
        the clip; where no times are known, `times_s` is empty and `duration_s` 0.

    Raises:
        ConfigError: frames of another shape or type, or times that do not fit them.
    """
    pixels = _checked_pixels(frames_thwc)
    times = np.arange(len(pixels), dtype=float) if times_s is None else _checked(times_s, pixels)
    duration_s = float(times[-1] - times[0]) * len(times) / max(1, len(times) - 1)
    canvas = Canvas(frames, size, rule.resize)
    numbers = _numbers(times, duration_s, frames, rule)
    for number in numbers:
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels[number]), format="rgb24")
        canvas.add(Shot(frame, float(number), 0.0))
    known = times_s is not None
    return Clip(
        frames_thwc=canvas.frames_thwc,
        times_s=tuple(times[numbers].tolist()) if known else (),
        duration_s=duration_s if known else 0.0,
        start_s=float(times[0]) if known else 0.0,
        width=canvas.width,
        height=canvas.height,
        decode_ms=0.0,
        preprocess_ms=1000 * canvas.busy_s,
    )


def _numbers(
    times_s: npt.NDArray[np.float64], duration_s: float, frames: int, rule: FrameRule
) -> list[int]:
    """Which frames: those on screen in the middle of T parts, or T by their numbers."""
    count = len(times_s)
    if count == frames or rule.sampling == "ends":
        return list(map(int, np.linspace(0, count - 1, frames, dtype=int)))
    instants_s = times_s[0] + (np.arange(frames) + 0.5) / frames * duration_s + ROUNDING_S
    return list(map(int, np.searchsorted(times_s, instants_s, side="right") - 1))


def _checked_pixels(frames_thwc: Any) -> Pixels | list[Pixels]:
    """An array, or a list as one: of its frames, which may be many, few are looked at."""
    if not isinstance(frames_thwc, Sequence) or not frames_thwc:
        pixels = _as_array(frames_thwc)
        if pixels.shape[:1] == (0,):
            raise ConfigError("there are no frames; give at least one")
        _check_kind(pixels.dtype, pixels.shape)
        return pixels
    frames = [_as_array(frame) for frame in frames_thwc]
    for dtype, shape in dict.fromkeys((frame.dtype, frame.shape) for frame in frames):
        _check_kind(dtype, (len(frames), *shape))
    if len({frame.shape for frame in frames}) > 1:
        raise ConfigError("frames differ in size; give all in one")
    return frames


def _as_array(frames: Any) -> Pixels:
    try:
        pixels: Pixels = np.asarray(frames)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor on a GPU, or of no numbers
        line = f"frames cannot be read as an array ({first_line(error)}); give {_WANTED}"
        raise ConfigError(line) from error
    return pixels


def _check_kind(dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
        raise ConfigError(f"frames are {dtype} {shape}, want {_WANTED}")


def _checked(times_s: Sequence[float], pixels: Sized) -> npt.NDArray[np.float64]:
    try:
        if np.asarray(times_s).dtype.kind not in "iufO":  # dates have a unit of their own
            raise TypeError
        times = np.asarray(times_s, float)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError("times of frames: give a number of seconds for each") from None
    if times.shape != (len(pixels),):
        raise ConfigError(f"{times.size} times for {len(pixels)} frames; give one for each")
    if not (times[0] >= 0 and math.isfinite(times[-1]) and (np.diff(times) >= 0).all()):
        raise ConfigError("times of frames: give seconds from 0 up that do not fall")
    if len(times) > 1 and times[0] == times[-1]:
        raise ConfigError(
            f"times of frames are all {times[0]:g}; give none, or seconds that differ, as float64: "
            "float32 cannot tell those of a clock apart"
        )
    return times
