"""Broken, hostile and odd input: a clip or one clear line, soon, and never another file."""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from unittest.mock import Mock

import av
import av.error
import numpy as np
import pytest
from av.packet import Packet
from av.video.stream import VideoStream
from PIL import Image
from video_maker import (
    image_bytes,
    numbered,
    numbers_in,
    write_sound,
    write_tiled_avif,
    write_video,
)

from vqedge.errors import VideoError
from vqedge_runtime.video import Clip, clip_from_path, source
from vqedge_runtime.video.faults import PassingVideoError, video_faults

ODD = Path(__file__).parents[3] / "shared" / "data" / "odd"
INDEX = {}
if ODD.exists():
    INDEX = {f["file"]: f for f in json.loads((ODD / "index.json").read_text())}
ABSENT = pytest.param("", marks=pytest.mark.skip(f"{ODD} is not there"))
SLOW_S = 5.0  # of processor time, so that a busy machine does not fail the test


def fault(path: Path, start_s: float | None = None, end_s: float | None = None) -> str:
    """The one printable line that a path raises, without the path."""
    with pytest.raises(VideoError) as caught:
        clip_from_path(path, 4, 16, start_s, end_s)
    message = str(caught.value)
    assert message.isprintable()
    assert "; " in message
    return message.rsplit("/", 1)[-1]


@pytest.mark.parametrize("name", sorted(INDEX) or [ABSENT])
def test_odd_files(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Every odd file gives a clip or one line, within seconds, and FFmpeg stays silent."""
    began = time.process_time()
    outcome: Clip | str
    try:
        outcome = clip_from_path(ODD / name, 8, 32)
        assert outcome.frames_thwc.shape == (8, 32, 32, 3)
        assert list(outcome.times_s) == sorted(outcome.times_s)
    except VideoError as error:
        outcome = str(error)
        assert outcome.isprintable()
    took_s = time.process_time() - began
    printed = capfd.readouterr()
    assert printed.err == printed.out == ""
    assert took_s < SLOW_S, f"{name}: {took_s:.1f} s"
    has_frames = bool(INDEX[name]["frames"]) and "cover_art" not in name
    assert isinstance(outcome, Clip) == has_frames, outcome


def test_missing_empty_and_foreign_files(tmp_path: Path) -> None:
    """The usual mistakes, each with its own words."""
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("Dear diary, " * 200)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    write_sound(tmp_path / "sound.wav")
    assert "no such file" in fault(tmp_path / "none.mp4")
    assert "no such file" in fault(tmp_path / "text.mp4" / "inside")
    assert "is empty" in fault(tmp_path / "empty.mp4")
    assert "is not a video or image" in fault(tmp_path / "text.mp4")
    assert "holds no images" in fault(tmp_path / "folder")
    (tmp_path / "folder" / "a" / "b.vqt").mkdir(parents=True)
    (tmp_path / "folder" / "a" / "b.vqt" / "c.vqt").touch()  # further down than anybody looks
    assert "holds no images" in fault(tmp_path / "folder")
    (tmp_path / "folder" / "a" / "c.VQT").touch()
    assert "holds .vqt files" in fault(tmp_path / "folder")
    (tmp_path / "folder" / "manifest.json").touch()
    assert "folder: is a bundle; name it with -m" in fault(tmp_path / "folder")
    assert "is not a regular file" in fault(tmp_path / "pipe")
    assert "no video stream (only audio)" in fault(tmp_path / "sound.wav")
    assert "cannot be read" in fault(tmp_path / "loop")
    assert "cannot be read" in fault(tmp_path / ("x" * 300))
    assert "out of range" in fault(Path("nul\0l"))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (FileNotFoundError(2, "x"), "no such file"),
        (PermissionError(13, "x"), "may not be read"),
        (av.error.PermissionError(1, "x"), "may not be read"),
        (MemoryError(), "needs more memory"),
        (av.error.MemoryError(12, "x"), "needs more memory"),
        (av.error.ExitError(1, "x"), "takes too long"),
        (av.error.DecoderNotFoundError(1, "x"), "codec"),
        (av.error.InvalidDataError(1, "x"), "is not a video"),
        (av.error.EOFError(1, "x"), "ends before"),
        (av.error.PatchWelcomeError(1, "x"), "lacks"),
        (NotImplementedError("yaf32le"), "lacks"),  # what swscale would abort on
        (av.error.UndefinedError(1, "x"), "cannot be decoded"),
        (OSError(5, "x"), "cannot be read from disk"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "x"), "out of range"),
        (OverflowError("x"), "out of range"),
    ],
    ids=lambda value: type(value).__module__ + "." + type(value).__name__,
)
def test_foreign_errors_are_worded_in_one_place(error: Exception, words: str) -> None:
    """Every error of PyAV and of the operating system becomes one line; bugs pass."""
    with pytest.raises(VideoError, match=words) as caught, video_faults(Path("a.mp4")):
        raise error
    assert caught.value.__cause__ is error
    with pytest.raises(KeyError), video_faults(Path("a.mp4")):
        raise KeyError


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (OSError(5, "x"), True),
        (PermissionError(13, "x"), True),
        (FileNotFoundError(2, "x"), True),
        (TimeoutError(), True),
        (MemoryError(), True),
        (av.error.MemoryError(12, "x"), True),
        (av.error.ExitError(1, "x"), True),
        (av.error.OSError(5, "x"), False),
        (av.error.InvalidDataError(1, "x"), False),
        (av.error.EOFError(1, "x"), False),
        (NotImplementedError("yaf32le"), False),
        (ValueError("x"), False),
    ],
    ids=lambda value: f"{type(value).__module__}.{type(value).__name__}",
)
def test_what_another_try_may_read_is_told_from_damage(error: Exception, passes: bool) -> None:
    with pytest.raises(VideoError) as caught, video_faults(Path("a.mp4")):
        raise error
    assert isinstance(caught.value, PassingVideoError) == passes


@pytest.mark.parametrize(
    ("start_s", "end_s", "words"),
    [
        (-1.0, None, "start -1.0 is not a time"),
        (None, float("nan"), "end nan is not a time"),
        (None, float("inf"), "end inf is not a time"),
        (2.0, 1.0, "start 2 is not before end 1"),
        (1.0, 1.0, "start 1 is not before end 1"),
        (None, 0.0, "start 0 is not before end 0"),
        (2.0, None, "start 2 is outside the video, which lasts 2.000 s"),
        (3.0, None, "start 3 is outside the video, which lasts 2.000 s"),
        (1.0, 9.0, "end 9 is outside the video, which lasts 2.000 s"),
    ],
)
def test_spans_that_cannot_be(
    tmp_path: Path, start_s: float | None, end_s: float | None, words: str
) -> None:
    """The flag, its value and what the video allows."""
    path = write_video(tmp_path / "a.mp4", range(0, 2000, 100))
    assert words in fault(path, start_s, end_s)


def test_names_are_only_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs, options, patterns and protocols in a name are a local file's name."""
    monkeypatch.chdir(tmp_path)
    film = write_video(tmp_path / "a.mp4", range(0, 800, 100)).read_bytes()
    Path("http:/host").mkdir(parents=True)
    for name in (
        "http://host/x.mp4", "-i", "--help", "%d.png", "%03d", "concat:a.mp4|b.mp4", "pipe:0", "-",
        "file:a.mp4", "a\nb.mp4", "\x1b[31mred.mp4", "x.m3u8", "*.jpg", "\udcff.mp4", "‮4pm.a",
    ):  # fmt: skip
        Path(name).write_bytes(film)
        assert len(set(clip_from_path(Path(name), 8, 16).times_s)) == 8
        Path(name).write_bytes(b"broken")
        assert "is not a video" in fault(Path(name))
    assert fault(Path("a\nb.mp4")).startswith(r"a\nb.mp4: "), "the line break is not lost"
    for name in ("http://127.0.0.1/x.mp4", "RTSP://127.0.0.1:554/x.mp4", "file:///none/x.mp4"):
        with pytest.raises(VideoError, match=f"^{name}: is a URL, and only local files are read; "):
            clip_from_path(Path(name), 8, 16)
    for name in ("frame%d.png", "c:/none.mp4", "at 10:/30.mp4"):
        assert "no such file" in fault(Path(name))


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile 'a.mp4'\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\na.mp4\n#EXT-X-ENDLIST\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\nm=video 5004 RTP/AVP 96\r\n",
        "\ufeff\n #EXTM3U\na.mp4\n",
    ],
)
def test_playlists_open_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A file that names others is refused by its first bytes, and by FFmpeg's whitelist too."""
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", range(0, 800, 100))
    Path("list.mp4").write_text(text)
    assert "playlist" in fault(tmp_path / "list.mp4")
    monkeypatch.setattr(source, "_refuse_playlist", lambda *_: None)
    assert fault(tmp_path / "list.mp4")


def test_truncated_files(tmp_path: Path) -> None:
    """What is there is sampled evenly; a file without its index is one line."""
    times = range(0, 5000, 100)
    options = {"g": "10", "bf": "2"}
    for name, muxer in (("a.mkv", {}), ("a.mp4", {"movflags": "faststart"}), ("a.ts", {})):
        path = write_video(tmp_path / name, times, options=options, muxer=muxer)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 8 // 10])
        clip = clip_from_path(path, 8, 32)
        numbers = numbers_in(clip.frames_thwc)
        assert len(set(numbers)) == 8, name
        assert numbers[-1] < 48
        assert clip.times_s == pytest.approx([n / 10 for n in numbers], abs=0.01)
    path = write_video(tmp_path / "b.mp4", times)
    path.write_bytes(path.read_bytes()[:-1500])
    assert fault(path)


def test_encrypted(tmp_path: Path) -> None:
    """Common encryption is named as such."""
    muxer = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb",
        "encryption_kid": "a7e61c373e219033c21091fa607bf3b8",
    }
    assert "encrypted (DRM)" in fault(write_video(tmp_path / "a.mp4", [0, 100], muxer=muxer))


def test_damage_in_the_middle(tmp_path: Path) -> None:
    """Flipped bytes cost frames, not the clip."""
    path = write_video(tmp_path / "a.mkv", range(0, 5000, 100), options={"g": "10"})
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data) * 2 // 3, 97):
        data[at] ^= 0xFF
    path.write_bytes(data)
    clip = clip_from_path(path, 8, 32)
    assert len(set(clip.times_s)) > 2


@pytest.mark.parametrize("error", [IndexError(), av.error.InvalidDataError(1, "x")])
def test_reading_goes_on_after_an_error(tmp_path: Path, error: Exception) -> None:
    """PyAV trips over streams that begin mid-file (IndexError), FFmpeg over damage."""
    with source.opened(write_video(tmp_path / "a.mkv", range(0, 5000, 100))) as opened:
        demux = opened._container.demux

        def tripping(stream: VideoStream) -> Iterator[Packet[VideoStream]]:
            yield from islice(demux(stream), 10)
            raise error

        opened._container = Mock(wraps=opened._container, demux=tripping)
        assert len(list(opened.frames())) == 50


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """A few bytes that claim 400 megapixels."""
    png = image_bytes(numbered(0))
    head = b"IHDR" + struct.pack(">II", 20000, 20000) + png[24:29]
    path = tmp_path / "bomb.png"
    path.write_bytes(png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:])
    assert "no frame can be decoded" in fault(path)


@pytest.mark.parametrize("thumbnail", [False, True])
def test_one_tile_or_a_thumbnail_is_not_taken_for_the_picture(
    tmp_path: Path, thumbnail: bool
) -> None:
    """FFmpeg gives tiles as streams; only its own program joins them."""
    tiled = write_tiled_avif(tmp_path / "tiled.avif", thumbnail)
    with av.open(str(tiled)) as container:
        assert len(container.streams.video) == 4 + thumbnail
    assert "picture in tiles" in fault(tiled)
    clip = clip_from_path(tmp_path / "tiled.part.avif", 2, 16)
    assert (clip.width, clip.height) == (64, 64)
    assert "is a still image" in fault(tmp_path / "tiled.part.avif", 0.01)


def test_an_animated_webp_is_named(tmp_path: Path) -> None:
    """FFmpeg opens it and decodes nothing; a broken still one is only broken."""
    path = tmp_path / "a.webp"
    first, *others = [Image.fromarray(numbered(number)) for number in range(3)]
    first.save(path, save_all=True, append_images=others)
    assert fault(path).startswith("a.webp: is an animated WebP, ")
    first.save(path)
    path.write_bytes(path.read_bytes()[:40])
    assert "no frame can be decoded" in fault(path)


def test_limits_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time and size have ends."""
    path = write_video(tmp_path / "a.mp4", range(0, 800, 100))
    monkeypatch.setattr(source, "MAX_DECODE_S", 0.0)
    with pytest.raises(PassingVideoError, match="took more than 0 s"):
        clip_from_path(path, 4, 16)
    monkeypatch.setattr(source, "MAX_VIDEO_PIXELS", 64 * 47)
    assert "64 x 48 is more than" in fault(path)


def test_a_stream_that_grows_after_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit holds for every picture, not for the first alone."""
    times_ms, large = range(0, 6000, 100), [np.zeros((96, 128, 3), np.uint8)] * 60
    small = write_video(tmp_path / "a.h264", times_ms).read_bytes()
    grown = write_video(tmp_path / "b.h264", times_ms, pictures=large).read_bytes()
    (tmp_path / "c.h264").write_bytes(small + grown)
    widths = []
    for most in (128 * 96, 64 * 48):
        monkeypatch.setattr(source, "MAX_VIDEO_PIXELS", most)
        with source.opened(tmp_path / "c.h264") as opened:
            widths.append({frame.width for frame in opened.frames()})
    assert widths == [{64, 128}, {64}]


def test_packets_that_give_no_frame_have_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []
    monkeypatch.setattr(source, "MAX_SILENT_PACKETS", 3)
    with source.opened(write_video(tmp_path / "a.mkv", range(0, 5000, 100))) as opened:
        monkeypatch.setattr(opened, "_decoded", lambda packet: tried.append(packet) or [])
        assert not list(opened.frames())
    assert len(tried) == 4


def test_where_a_seek_fails_all_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "a.mp4", range(0, 9000, 100), options={"g": "10"})
    wanted, tried = clip_from_path(path, 4, 32, 6.0), list[float]()

    def fails(self: source.Source, target_s: float) -> None:
        tried.append(target_s)
        raise av.error.InvalidDataError(1, "x")

    monkeypatch.setattr(source.Source, "seek", fails)
    found = clip_from_path(path, 4, 32, 6.0)
    assert tried and found.times_s == wanted.times_s
    assert np.array_equal(found.frames_thwc, wanted.frames_thwc)
