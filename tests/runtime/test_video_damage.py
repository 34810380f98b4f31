"""What is lost in the middle of a file shifts no other frame, and the clip tells of it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from av import VideoFrame
from tiny_bundle import write_bundle
from video_maker import numbered, numbers_in, write_video

from vqedge_runtime.batch import BatchEncoder, Job
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.video import clip_from_path, clips_from_path, source
from vqedge_runtime.video.clock import Clock
from vqedge_runtime.video.fragments import unread_share
from vqedge_runtime.video.skim import VideoPacket

T, SIZE, STEP_S = 8, 32, 0.04
TIMES_MS = range(0, 6000, 40)
OPTIONS = {"g": "25", "bf": "2", "crf": "10"}
GAP = re.compile(r"is damaged: no pictures from 2\.[2-4]\d s to [34]\.\d\d s")
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


def noisy(count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Numbered pictures that need many bytes each."""
    noise = np.random.default_rng(0).integers(-5, 6, (count, *numbered(0).shape))
    return [(numbered(n) + noise[n]).astype(np.uint8) for n in range(count)]


def film(path: Path, muxer: dict[str, str] | None = None) -> Path:
    pictures = noisy(len(TIMES_MS))
    return write_video(path, TIMES_MS, options=OPTIONS, pictures=pictures, muxer=muxer, rate=25)


def zeroed(path: Path) -> Path:
    """Without a quarter of its bytes, in the middle; what is left stays where it was."""
    data = bytearray(path.read_bytes())
    first, last = len(data) * 8 // 20, len(data) * 13 // 20
    data[first:last] = bytes(last - first)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.flv"])
def test_frames_behind_a_loss_keep_their_times(tmp_path: Path, name: str) -> None:
    path = film(tmp_path / name)
    assert clip_from_path(path, T, SIZE).note == ""
    clip = clip_from_path(zeroed(path), T, SIZE)
    numbers = numbers_in(clip.frames_thwc)
    for at in (0, 1, 2, 6, 7):
        assert clip.times_s[at] == pytest.approx(STEP_S * numbers[at], abs=1.1 * STEP_S)
    assert GAP.fullmatch(clip.note or "nothing is said") or name != "a.mp4"


def test_the_note_is_of_spans_that_meet_the_loss(tmp_path: Path) -> None:
    path = zeroed(film(tmp_path / "a.mp4"))
    spans = [(0.0, 2.0), (2.0, 4.0), (4.5, 6.0)]
    told = [bool(clip.note) for clip in clips_from_path(path, T, SIZE, spans)]
    assert told == [False, True, False]


def test_one_that_also_ends_early_says_both(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", {"movflags": "faststart"})
    data = zeroed(path).read_bytes()
    path.write_bytes(data[: len(data) * 4 // 5])
    gap, end = clip_from_path(path, 16, SIZE).note.split(", and ")
    assert GAP.fullmatch(gap) and end.endswith(" s, earlier than it says")


def test_long_frames_are_no_loss_without_damage(tmp_path: Path) -> None:
    times_ms = [0, 100, 200, 300, 2500, 2600, 5000, 5100]
    for name in ("a.mkv", "a.ts", "a.mp4"):
        path = write_video(tmp_path / name, times_ms, options={"bf": "2"})
        clip = clip_from_path(path, T, SIZE)
        assert len(set(clip.times_s)) < T and clip.note == ""


@pytest.mark.parametrize(("broken_s", "told"), [(0.5, False), (4.9, True), (12.0, False)])
def test_damage_counts_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken_s: float, told: bool
) -> None:
    """What does not decode far from a long frame is not why that is long."""
    times_ms = [*range(0, 2000, 100), 5000, *range(10_000, 14_000, 100)]
    path = write_video(tmp_path / "a.mkv", times_ms, options={"g": "99"})
    plain = source.Source._decoded

    def failing(self: source.Source, packet: VideoPacket | None) -> list[VideoFrame]:
        frames = plain(self, packet)
        at_s = packet and self.time_s(packet.pts)
        if at_s is not None and broken_s - 0.05 < at_s < broken_s + 0.15:
            self._note_damage(packet)
        return frames

    monkeypatch.setattr(source.Source, "_decoded", failing)
    assert bool(clip_from_path(path, T, SIZE).note) == told


def test_a_fragmented_file_with_a_hole(tmp_path: Path) -> None:
    """FFmpeg stops at it, as at the end."""
    path = film(tmp_path / "a.mp4", FRAGMENTS)
    assert unread_share(path) == 0.0
    whole = path.read_bytes()
    clip = clip_from_path(zeroed(path), T, SIZE)
    assert 2.0 < clip.duration_s < 3.0
    assert re.fullmatch(
        r"is damaged: [4-6]\d % of the file, after 2\.\d\d s, cannot be read", clip.note
    )
    assert clip_from_path(path, T, SIZE, 0.0, 1.0).note == ""
    path.write_bytes(whole + bytes(len(whole) // 50))
    assert clip_from_path(path, T, SIZE).note == "", "a program left a little at its end"
    path.write_bytes(whole[: len(whole) * 3 // 4])
    assert unread_share(path) == 0.0, "it was cut, not broken"


def test_chains_of_boxes(tmp_path: Path) -> None:
    def box(kind: bytes, size: int = 8) -> bytes:
        return size.to_bytes(4, "big") + kind + bytes(size - 8)

    large = (1).to_bytes(4, "big") + b"mdat" + (24).to_bytes(8, "big") + bytes(8)
    path = tmp_path / "a.mp4"
    for chain, share in (
        (box(b"moof", 32) + large + bytes(56), 0.5),
        (box(b"moof", 32) + large + box(b"mfra"), 0.0),
        (box(b"sidx") + box(b"moof") + bytes(16), 0.0),
        (box(b"moov") + large + bytes(16), 0.0),
        (box(b"moof", 32) + bytes(4) + b"mdat" + bytes(56), 0.0),  # to the end of the file
        (box(b"moof", 8) + b"\0\0\0\7mdat", 0.5),
        (box(b"moof", 8) + b"\0\0\0\1mdat" + (15).to_bytes(8, "big"), 2 / 3),
        (box(b"moof", 8) + b"\0\0", 0.2),
    ):
        path.write_bytes(chain)
        assert unread_share(path) == pytest.approx(share), chain


def test_a_chain_of_very_many_boxes_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes((8).to_bytes(4, "big") + b"moof" + bytes(8))
    assert unread_share(path) == 0.5
    monkeypatch.setattr("vqedge_runtime.video.fragments.MAX_BOXES", 1)
    assert unread_share(path) == 0.0


@pytest.mark.parametrize("window_s", [1.0, 2.0])
def test_files_of_codes_tell_of_a_loss_in_any_part(tmp_path: Path, window_s: float) -> None:
    path, bundle = zeroed(film(tmp_path / "a.mp4")), write_bundle(tmp_path / "fake.vqedge")
    batch = BatchEncoder(FakeEncoder(4, 576), bundle.manifest, 32, window_s)
    [outcome] = batch.run([Job(path, path.with_suffix(".vqt"))])
    assert outcome.error == "" and "no pictures from" in outcome.note


def test_a_clock_takes_late_frames_for_no_new_recording() -> None:
    """H.264 after a loss: from behind the gap and from before it, in turn."""
    clock = Clock(STEP_S)
    early, late = [2.28, 2.32, 2.36], [2.40, 2.44]
    times_s = [clock.time_s(s) for s in (*early, 3.92, late[0], 3.96, late[1], 4.0, 4.04)]
    assert all(a < b for a, b in pairwise(times_s))
    assert times_s[3::2] == pytest.approx([3.92, 3.96, 4.0], abs=0.001)
    assert times_s[-1] == 4.04


@pytest.mark.parametrize("count", [3, 10, 40])
def test_a_clock_goes_on_when_recordings_are_joined(count: int) -> None:
    """However short they are, and as often as they start again."""
    clock = Clock(1.0)
    stamps = [float(n) for n in range(count)] * 3
    assert [clock.time_s(s) for s in stamps] == pytest.approx(list(range(3 * count)))
    clock, decoding = Clock(1.0), [0.0, 3.0, 1.0, 2.0, 6.0, 4.0, 5.0]
    placed_s = [clock.placed_s(s) for s in decoding * 2]
    assert placed_s == pytest.approx([*decoding, *(s + 7 for s in decoding)])


def test_what_fails_before_the_first_frame_is_no_damage(tmp_path: Path) -> None:
    """As where a recording begins between key frames."""
    with source.opened(film(tmp_path / "a.ts")) as opened:
        packet = next(opened.packets())
        opened._note_damage(packet)
        assert opened.damage_s == []
        next(opened.frames())
        opened._note_damage(packet)
        assert opened.damage_s == [0.0]
