"""A video that ends earlier than its file says: its clip tells, and whoever shows it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from command_line import vqedge_here
from tiny_bundle import write_bundle
from video_maker import write_video

import vqedge.commands.encode
import vqedge.commands.encoded
from vqedge.bundle import Bundle
from vqedge.commands.chat import Chat
from vqedge_runtime import VideoQA
from vqedge_runtime.batch import BatchEncoder, Job, Outcome
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel
from vqedge_runtime.video import clip_from_path

T, SIZE, LASTS_S = 8, 32, 5.0
OPTIONS = {"g": "10", "bf": "2"}
TIMES_MS = range(0, 5000, 100)
NOTE = re.compile(r"ends at ([0-9.]+) s, earlier than it says")


def truncated(path: Path) -> Path:
    """The first three quarters of a file's bytes, in its place."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    return path


def with_sound(path: Path, out: Path, sound_s: int) -> Path:
    """The pictures of a file beside so many seconds of silence."""
    with av.open(str(path)) as pictures, av.open(str(out), "w") as output:
        video = output.add_stream_from_template(pictures.streams.video[0])
        sound = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        packets = [packet for packet in pictures.demux(video=0) if packet.dts is not None]
        for packet in packets:
            packet.stream = video
        for second in range(sound_s):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
            frame.rate, frame.pts = 8000, 8000 * second
            packets += sound.encode(frame)
        packets += sound.encode(None)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            output.mux(packet)
    return out


@pytest.fixture
def cut(tmp_path: Path) -> Path:
    """A film of five seconds with its header, and not all that comes after."""
    return truncated(write_video(tmp_path / "cut.mkv", TIMES_MS, options=OPTIONS))


@pytest.mark.parametrize(
    ("name", "muxer"), [("a.mkv", {}), ("a.mp4", {"movflags": "faststart"}), ("a.webm", {})]
)
def test_a_truncated_file_has_a_note(tmp_path: Path, name: str, muxer: dict[str, str]) -> None:
    codec = "libvpx" if name.endswith("webm") else "libx264"
    options = {} if name.endswith("webm") else OPTIONS
    path = write_video(tmp_path / name, TIMES_MS, codec, options=options, muxer=muxer)
    assert clip_from_path(path, T, SIZE).note == ""
    clip = clip_from_path(truncated(path), T, SIZE)
    assert 1.0 < clip.duration_s < LASTS_S - 1.0
    assert clip.note == f"ends at {clip.duration_s:g} s, earlier than it says"


def test_the_note_is_of_the_span_that_is_asked_for(cut: Path) -> None:
    end_s = clip_from_path(cut, T, SIZE).duration_s
    spans = {(0.0, 1.0): False, (0.0, end_s + 0.4): False, (0.0, 4.9): True, (1.0, None): True}
    for span, told in spans.items():
        assert bool(clip_from_path(cut, T, SIZE, *span).note) == told, span


@pytest.fixture
def ordinary(tmp_path: Path) -> dict[str, Path]:
    """Whole files whose last frame is over before what the header says."""
    film = write_video(tmp_path / "film.mkv", TIMES_MS, options=OPTIONS)
    offset = write_video(tmp_path / "offset.mkv", range(10_000, 15_000, 100), options=OPTIONS)
    slides = write_video(tmp_path / "slides.mkv", [0, 2000, 4000, 9000], rate=Fraction(1, 2))
    uneven = write_video(tmp_path / "uneven.mp4", [0, 100, 200, 900, 1000, 3000, 3100, 5000])
    return {
        "sound that goes on": with_sound(film, tmp_path / "sound.mkv", 8),
        "sound that goes on, in mov": with_sound(film, tmp_path / "sound.mov", 8),
        "times that start late": offset,
        "slides": slides,
        "variable frame rate": uneven,
    }


def test_a_whole_file_has_none(ordinary: dict[str, Path]) -> None:
    for name, path in ordinary.items():
        for frames in (T, 64):
            assert clip_from_path(path, frames, SIZE).note == "", name


def test_sound_that_goes_on_hides_no_truncation(tmp_path: Path) -> None:
    film = write_video(tmp_path / "film.mkv", TIMES_MS, options=OPTIONS)
    path = truncated(with_sound(film, tmp_path / "sound.mkv", 8))
    assert NOTE.fullmatch(clip_from_path(path, T, SIZE).note)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "fake.vqedge")


def encoded(path: Path, bundle: Bundle, window_s: float | None = None) -> Outcome:
    batch = BatchEncoder(FakeEncoder(4, 576), bundle.manifest, 32, window_s)
    [outcome] = batch.run([Job(path, path.with_suffix(".vqt"))])
    assert outcome.error == ""
    return outcome


@pytest.mark.parametrize("window_s", [None, 0.5, 1.0, 2.0])
def test_files_of_codes_tell(
    cut: Path, ordinary: dict[str, Path], bundle: Bundle, window_s: float | None
) -> None:
    assert NOTE.fullmatch(encoded(cut, bundle, window_s).note)
    for name, path in ordinary.items():
        assert encoded(path, bundle, window_s).note == "", name


@pytest.fixture
def qa(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[VideoQA]:
    """The session that commands open; a language model that has an answer."""
    llm = FakeLanguageModel()
    llm.enqueue("Red.")
    session = VideoQA(FakeEncoder(4, 576), FakeBridge(576), llm, bundle.manifest)
    monkeypatch.setattr(VideoQA, "open", lambda *_, **__: session)
    for module in (vqedge.commands.encode, vqedge.commands.encoded):
        monkeypatch.setattr(module, "open_encoder", lambda *_: FakeEncoder(4, 576))
    with session:
        yield session


@pytest.mark.parametrize(
    "arguments", [("ask", "cut.mkv", "What?"), ("viz", "cut.mkv", "-o", "cut.png")]
)
def test_commands_tell_in_one_line(
    cut: Path,
    qa: VideoQA,
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(cut.parent)
    monkeypatch.setenv("VQEDGE_BUNDLE", str(bundle.root))
    found = vqedge_here(monkeypatch, capsys)(*arguments)
    told = [line for line in found.err.splitlines() if "earlier" in line]
    assert found.code == 0 and "earlier" not in found.out
    assert len(told) == 1 and told[0].startswith("cut.mkv: ends at ")


def test_chat_tells_of_each_video(
    cut: Path, qa: VideoQA, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = write_video(cut.with_name("whole.mkv"), TIMES_MS, options=OPTIONS)
    chat: Any = Chat(qa, whole)
    assert "earlier" not in capsys.readouterr().err
    chat.talk(iter([f"/video {cut}"]))
    assert capsys.readouterr().err.count(f"{cut}: ends at ") == 1


def test_a_video_in_python_says_it(cut: Path, qa: VideoQA) -> None:
    assert NOTE.fullmatch(qa.encode(cut).note)
    assert qa.encode_frames(np.zeros((8, 48, 64, 3), np.uint8)).note == ""
