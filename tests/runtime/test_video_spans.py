"""Spans sampled in one walk are the clips that each gives by itself, at the cost of one walk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from av import VideoFrame
from PIL import Image
from video_maker import write_video

from vqedge.errors import Stopped, VideoError
from vqedge_runtime.video import (
    Clip,
    Span,
    clip_from_path,
    clips_from_path,
    duration_from_path,
    source,
)
from vqedge_runtime.video.skim import VideoPacket

T, SIZE, FRAMES = 4, 32, 196
H264 = {"bf": "3", "crf": "10", "preset": "veryfast"}
FILES = [
    ("a.mp4", "libx264", {**H264, "g": "23"}),
    ("one-key-frame.mp4", "libx264", {**H264, "g": "999", "keyint_min": "999"}),
    ("a.mkv", "libx264", {**H264, "g": "23"}),
    ("a.ts", "libx264", {**H264, "g": "23"}),
    ("raw.h264", "libx264", {**H264, "g": "23"}),
    ("a.avi", "mpeg4", {"g": "23", "qscale": "2"}),
    ("a.mpg", "mpeg2video", {"g": "9", "qscale": "2"}),
]


@pytest.fixture(params=FILES, ids=[name for name, *_ in FILES])
def video(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    name, codec, options = request.param
    step_ms = 40 if codec == "mpeg2video" else 100
    times_ms = range(0, FRAMES * step_ms, step_ms)
    return write_video(tmp_path / name, times_ms, codec, options=options)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[VideoFrame]:
    """Every frame that is decoded from now on."""
    found: list[VideoFrame] = []
    plain = source.Source._decoded

    def remembering(self: source.Source, packet: VideoPacket | None) -> list[VideoFrame]:
        frames = plain(self, packet)
        found.extend(frames)
        return frames

    monkeypatch.setattr(source.Source, "_decoded", remembering)
    return found


def windows_of(video: Path, length_s: float = 1.0) -> list[Span]:
    count = int(duration_from_path(video) / length_s)
    return [(number * length_s, (number + 1) * length_s) for number in range(count)]


def assert_same(found: Clip, wanted: Clip) -> None:
    np.testing.assert_array_equal(found.frames_thwc, wanted.frames_thwc)
    assert found.times_s == wanted.times_s
    assert (found.start_s, found.duration_s) == (wanted.start_s, wanted.duration_s)
    assert found.decode_ms > 0 < found.preprocess_ms


def test_windows_in_one_walk(video: Path, decoded: list[VideoFrame]) -> None:
    windows = windows_of(video)
    assert len(windows) >= 7
    found = list(clips_from_path(video, T, SIZE, windows))
    assert len(decoded) <= FRAMES
    for clip, window in zip(found, windows, strict=True):
        assert_same(clip, clip_from_path(video, T, SIZE, *window))


def test_what_lies_between_spans_is_skipped_where_the_file_can_seek(
    tmp_path: Path, decoded: list[VideoFrame]
) -> None:
    path = write_video(tmp_path / "a.mp4", range(0, 19600, 100), options={**H264, "g": "5"})
    spans: list[Span] = [(0.0, 0.4), (9.0, 9.4), (18.0, None)]
    found = list(clips_from_path(path, T, SIZE, spans))
    assert len(decoded) < FRAMES / 3
    for clip, span in zip(found, spans, strict=True):
        assert_same(clip, clip_from_path(path, T, SIZE, *span))


def test_clips_come_one_at_a_time(video: Path, decoded: list[VideoFrame]) -> None:
    clips = clips_from_path(video, T, SIZE, windows_of(video))
    assert not decoded
    next(clips)
    assert 0 < len(decoded) < FRAMES / 2


def test_a_video_that_ends_early(tmp_path: Path) -> None:
    """The window it ends in is sampled as far as it goes; the next one is not there."""
    whole = write_video(tmp_path / "whole.mkv", range(0, 19600, 100), options=H264)
    windows = windows_of(whole, 4.0)
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    found: list[Clip] = []
    with pytest.raises(VideoError, match="outside the video"):
        found.extend(clips_from_path(path, T, SIZE, windows))  # keeps what came before the error
    assert 2 <= len(found) < len(windows)
    for clip, window in zip(found, windows, strict=False):
        assert_same(clip, clip_from_path(path, T, SIZE, *window))
    assert [clip.duration_s for clip in found[:-1]] == [4.0] * (len(found) - 1)
    assert found[-1].duration_s < 4.0


def test_a_span_outside_is_told_when_it_is_its_turn(video: Path) -> None:
    clips = clips_from_path(video, T, SIZE, [(0.0, 1.0), (400.0, None)])
    assert_same(next(clips), clip_from_path(video, T, SIZE, 0.0, 1.0))
    with pytest.raises(VideoError, match="start 400 is outside the video"):
        next(clips)


def test_each_span_has_the_decoding_time_of_one(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(source.time, "monotonic", lambda: now[0])
    for count, _ in enumerate(clips_from_path(video, T, SIZE, windows_of(video)), start=1):
        now[0] = 0.9 * source.MAX_DECODE_S * count
    assert count >= 7


def test_images_of_a_folder(tmp_path: Path) -> None:
    for number in range(6):
        frame = VideoFrame.from_ndarray(np.full((8, 8, 3), 40 * number, np.uint8), format="rgb24")
        frame.to_image().save(tmp_path / f"{number}.png")
    spans: list[Span] = [(0.0, 2.0), (2.0, 6.0)]
    for clip, span in zip(clips_from_path(tmp_path, T, SIZE, spans), spans, strict=True):
        assert_same(clip, clip_from_path(tmp_path, T, SIZE, *span))


def test_whoever_stops_waits_for_one_image_of_a_folder(
    tmp_path: Path, decoded: list[VideoFrame]
) -> None:
    for number in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    clips = clips_from_path(tmp_path, 6, SIZE, [(None, None)], stopped=lambda: bool(decoded))
    with pytest.raises(Stopped):
        next(clips)
    assert len(decoded) == 1


def test_no_spans_are_no_clips(video: Path) -> None:
    assert list(clips_from_path(video, T, SIZE, [])) == []
