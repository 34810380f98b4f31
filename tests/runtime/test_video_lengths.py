"""How long a video is where no header tells, or where it tells another length."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import av
import pytest
from test_early_end import with_sound
from video_maker import numbers_in, write_video

from vqedge_runtime.video import clip_from_path, clips_from_path, duration_from_path, source
from vqedge_runtime.video.lengths import LENGTH_SLACK_S, whole_lasts

T, SIZE = 8, 32
EVEN_MS = range(0, 5000, 100)
OPTIONS = {"g": "10", "bf": "2"}


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    """Three times the same five seconds, the clock starting again with each."""
    part = write_video(tmp_path / "part.ts", EVEN_MS, options=OPTIONS)
    path = tmp_path / "joined.ts"
    path.write_bytes(part.read_bytes() * 3)
    return path


def test_joined_recordings_are_seen_to_their_end(joined: Path) -> None:
    assert duration_from_path(joined) == pytest.approx(15.0, abs=0.1)
    clip = clip_from_path(joined, T, SIZE)
    assert clip.duration_s == pytest.approx(15.0, abs=0.1)
    for time_s, number in zip(clip.times_s, numbers_in(clip.frames_thwc), strict=True):
        assert number == pytest.approx(time_s * 10 % 50, abs=1.1)
    assert (clip.times_s[-1], clip.note) == (pytest.approx(14.0, abs=0.2), "")


def test_spans_of_joined_recordings(joined: Path) -> None:
    """What seeking would find there is any of three places."""
    spans = [(1.0, 2.0), (6.0, 8.0), (11.0, 15.0)]
    with patch.object(source.Source, "seek", side_effect=AssertionError):
        clips = list(clips_from_path(joined, T, SIZE, spans))
        alone = [clip_from_path(joined, T, SIZE, *span) for span in spans]
    assert [clip.times_s for clip in clips] == [clip.times_s for clip in alone]
    assert numbers_in(clips[1].frames_thwc) == pytest.approx(
        [11, 13, 16, 18, 21, 23, 26, 28], abs=1
    )


def test_a_long_recording_before_a_short_one(tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{n}.ts", range(0, n, 100)) for n in (9000, 2000)]
    path = tmp_path / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert duration_from_path(path) == pytest.approx(11.0, abs=0.2)


def test_a_whole_stream_keeps_its_length_and_may_seek(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.ts", range(0, 19_000, 100), options=OPTIONS)
    with av.open(str(path)) as container:
        told_s = float(container.streams.video[0].duration / 90_000)
    plain = source.Source.seek
    with patch.object(source.Source, "seek", autospec=True, side_effect=plain) as seek:
        assert clip_from_path(path, T, SIZE).duration_s == told_s
    assert seek.called


def test_pictures_far_apart(tmp_path: Path) -> None:
    """FFmpeg estimates 0.001 s of a stream of two pictures an hour apart."""
    path = write_video(tmp_path / "a.ts", [0, 3_600_000])
    assert clip_from_path(path, T, SIZE).duration_s == pytest.approx(3600, abs=1)


def test_a_program_stream_of_few_time_stamps(tmp_path: Path) -> None:
    """Pictures so small that a packet of the stream holds seconds of them."""
    options = {"g": "12", "bf": "2", "qscale": "20"}
    path = write_video(tmp_path / "a.mpg", range(0, 7600, 40), "mpeg2video", options=options)
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].duration / 90_000) < 7.0
    assert clip_from_path(path, T, SIZE).duration_s == pytest.approx(7.6, abs=0.1)


@pytest.mark.parametrize("frames", [1, 8])
def test_matroska_that_starts_late(tmp_path: Path, frames: int) -> None:
    """Its length counts from 0, and so do the times that players show."""
    path = write_video(tmp_path / "a.mkv", range(2000, 5000, 100), options=OPTIONS)
    clip = clip_from_path(path, frames, SIZE)
    assert clip.duration_s == pytest.approx(3.0, abs=0.05)
    middles = [30 * (i + 0.5) / frames for i in range(frames)]
    assert numbers_in(clip.frames_thwc) == pytest.approx(middles, abs=1)
    assert clip.note == ""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert clip_from_path(path, T, SIZE).note.endswith(" s, earlier than it says")


def test_matroska_that_starts_late_and_tells_its_own_length(tmp_path: Path) -> None:
    """Parts that a program split off keep their times, and count from the first."""
    path = write_video(tmp_path / "a.mkv", range(2000, 7000, 100), options=OPTIONS)
    with source.opened(path) as opened:
        whole_s = opened.whole_duration_s
    with patch.object(source.Source, "whole_duration_s", whole_s - 2.0):
        assert duration_from_path(path) == pytest.approx(5.0, abs=0.05)
    assert duration_from_path(path) == pytest.approx(5.0, abs=0.05)


def test_sound_that_goes_on_in_flv(tmp_path: Path) -> None:
    """A seek behind the last picture leads nowhere there."""
    film = write_video(tmp_path / "film.flv", EVEN_MS, options=OPTIONS)
    path = with_sound(film, tmp_path / "sound.flv", 8)
    with source.opened(path) as opened:
        assert whole_lasts(opened)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with source.opened(path) as opened:
        assert not whole_lasts(opened)


def test_half_a_packet_shows_no_length(tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.flv", EVEN_MS, options=OPTIONS)
    with source.opened(path) as opened:
        late_ms = 1000 * (opened.whole_duration_s - LENGTH_SLACK_S)
        assert whole_lasts(opened)
    with av.open(str(path)) as container:
        packets = list(container.demux(video=0))
        first = next(
            p for p in packets if p.pts is not None and p.pts + (p.duration or 0) >= late_ms
        )
    path.write_bytes(path.read_bytes()[: (first.pos or 0) + first.size])
    with source.opened(path) as opened:
        assert not whole_lasts(opened)
