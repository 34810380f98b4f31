"""Opening the encoder beside the language model: what is handed out, raised and closed."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import write_bundle

from vqedge.bundle import Bundle
from vqedge.commands.ask import run_ask
from vqedge.errors import BackendUnavailable, BundleError, ConfigError
from vqedge_runtime import VideoQA
from vqedge_runtime import session as session_module
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders import ENCODERS, EncoderBackend, auto
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.encoders.protocol import Encoder
from vqedge_runtime.llm import FakeLanguageModel
from vqedge_runtime.opening import Opening

FRAMES = np.full((8, 224, 224, 3), 90, np.uint8)
WAIT_S = 20.0


class Closes:
    """Knows whether it is closed."""

    closed = False

    def close(self) -> None:
        """Note it."""
        self.closed = True


class Watched(Closes, FakeEncoder):
    """An encoder that knows."""


class WatchedBridge(Closes, FakeBridge):
    """A bridge that knows."""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle, and stand-ins for its bridge and language model; its folder."""
    monkeypatch.setattr(session_module, "open_bridge", lambda *_: FakeBridge(576))
    monkeypatch.setattr(session_module, "open_llama_cpp", lambda *_, **__: FakeLanguageModel())
    return write_bundle(tmp_path / "tiny.vqedge").root


def opens_as(monkeypatch: pytest.MonkeyPatch, encoder: Encoder, gate: threading.Event) -> None:
    """Let `onnxruntime` be this encoder, once the gate is open."""

    def opened(bundle: Bundle, threads: int | None) -> Encoder:
        assert gate.wait(WAIT_S)
        return encoder

    monkeypatch.setitem(ENCODERS, "onnxruntime", EncoderBackend(opened, lambda: None))


def opened_in(monkeypatch: pytest.MonkeyPatch, failures: int = 0) -> list[str]:
    """Let `onnxruntime` open after so many failures; the threads in which that was tried."""
    tried: list[str] = []

    def opens(bundle: Bundle, threads: int | None) -> Encoder:
        tried.append(threading.current_thread().name)
        if len(tried) <= failures:
            raise BackendUnavailable("the GPU is taken")
        return Watched(32, 576)

    monkeypatch.setitem(ENCODERS, "onnxruntime", EncoderBackend(opens, lambda: None))
    return tried


def test_the_language_model_does_not_wait_for_the_encoder(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, encoder = threading.Event(), Watched(32, 576)
    opens_as(monkeypatch, encoder, gate)
    qa = VideoQA.open(models, encoder="onnxruntime", encoder_ahead=True)
    gate.set()
    assert qa.backend.encoder == encoder.name and qa.encoder is encoder
    assert qa.encode_frames(FRAMES).encoder == encoder.name
    assert not encoder.closed
    qa.close()
    qa.close()
    assert encoder.closed


def test_closing_closes_an_encoder_that_nobody_waited_for(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, encoder = threading.Event(), Watched(32, 576)
    opens_as(monkeypatch, encoder, gate)
    qa = VideoQA.open(models, encoder="onnxruntime", encoder_ahead=True)
    threading.Timer(0.05, gate.set).start()
    qa.close()
    assert encoder.closed
    with pytest.raises(BackendUnavailable, match="this VideoQA is closed"):
        qa.encode_frames(FRAMES)


def test_encoder_and_bridge_are_closed_where_the_language_model_fails(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, encoder, bridge = threading.Event(), Watched(32, 576), WatchedBridge(576)
    opens_as(monkeypatch, encoder, gate)
    monkeypatch.setattr(session_module, "open_bridge", lambda *_: bridge)

    def fails(*_: object, **__: object) -> FakeLanguageModel:
        gate.set()
        raise BackendUnavailable("no language model")

    monkeypatch.setattr(session_module, "open_llama_cpp", fails)
    with pytest.raises(BackendUnavailable, match="no language model"):
        VideoQA.open(models, encoder="onnxruntime", encoder_ahead=True)
    assert encoder.closed and bridge.closed


def test_an_encoder_that_fails_ahead_is_opened_again_for_who_needs_it(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = opened_in(monkeypatch, failures=2)
    with VideoQA.open(models, encoder="onnxruntime", encoder_ahead=True) as qa:
        with pytest.raises(BackendUnavailable, match="the GPU is taken"):
            qa.encode_frames(FRAMES)
        assert qa.encode_frames(FRAMES).encoder == qa.encode_frames(FRAMES).encoder
    assert tried == ["vqedge-opening_0", "MainThread", "MainThread"]


def test_without_ahead_nothing_is_opened_until_it_is_needed(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = opened_in(monkeypatch)
    with VideoQA.open(models, encoder="onnxruntime") as qa:
        assert tried == []
        qa.encode_frames(FRAMES)
    assert tried == ["MainThread"]


@pytest.mark.parametrize("threads", [0, 20_000])
def test_so_many_threads_are_refused_before_anything_is_opened(
    threads: int, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = opened_in(monkeypatch)
    with pytest.raises(ConfigError, match=f"threads {threads}: give 1 to 512"):
        VideoQA.open(models, encoder="onnxruntime", encoder_ahead=True, threads=threads)
    assert tried == []


def test_llama_cpp_is_started_before_there_is_another_thread(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started() -> None:
        assert not [t for t in threading.enumerate() if t.name.startswith("vqedge-opening")]
        raise BackendUnavailable("no llama.cpp here")

    monkeypatch.setattr(session_module, "start_llama_cpp", started)
    with pytest.raises(BackendUnavailable, match="no llama"):
        VideoQA.open(models, encoder="onnxruntime", encoder_ahead=True)


def test_a_forked_process_opens_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, own, others = threading.Event(), Watched(), Watched()

    def waits() -> Watched:
        assert gate.wait(WAIT_S)
        return others

    opening = Opening(waits, lambda: own)
    here = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    assert opening() is own and opening() is own
    opening.close()
    monkeypatch.setattr(os, "getpid", lambda: here)
    gate.set()
    opening.close()
    assert others.closed and not own.closed


@pytest.mark.parametrize(("name", "ahead"), [("clip.mp4", True), ("clip.vqt", False)])
def test_commands_open_the_encoder_ahead_for_videos_alone(
    name: str, ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def opened(*_: object, encoder_ahead: bool = False, **__: object) -> VideoQA:
        asked.append(encoder_ahead)
        raise BackendUnavailable("enough")

    monkeypatch.setattr(VideoQA, "open", opened)
    (tmp_path / name).touch()
    with pytest.raises(BackendUnavailable, match="enough"):
        run_ask(tmp_path / name, "What?", tmp_path)
    assert asked == [ahead]


# ---- opened late


@pytest.fixture
def reading(models: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Let `onnxruntime` read its file; what it has read."""
    read: list[bytes] = []

    def opens(bundle: Bundle, threads: int | None) -> Encoder:
        read.append(bundle.path_of("encoder").read_bytes())
        return Watched(32, 576)

    monkeypatch.setitem(ENCODERS, "onnxruntime", EncoderBackend(opens, lambda: None))
    return read


def test_a_process_that_goes_elsewhere_has_its_bundle_and_its_videos(
    models: Path, reading: list[bytes], clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = models.parent
    shutil.copy(clip, here / "clip.mp4")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here)
    with VideoQA.open("tiny.vqedge", encoder="onnxruntime") as qa:
        video = qa.encode("clip.mp4")
        assert video.source == here / "clip.mp4"
        with VideoQA.open("tiny.vqedge", encoder="onnxruntime") as later:
            monkeypatch.chdir("elsewhere")
            later.encode_frames(FRAMES)
        qa.save(video, here / "a.vqt")
    assert reading == [(models / "encoder.onnx").read_bytes()] * 2


@pytest.mark.parametrize("backend", ["onnxruntime", "auto"])
@pytest.mark.parametrize("gone", [False, True])
def test_an_encoder_that_was_replaced_since_is_refused(
    backend: str, gone: bool, models: Path, reading: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models.parent)
    file = models / "encoder.onnx"
    told = "has changed since the bundle was opened, or is gone; open the bundle"
    with VideoQA.open("tiny.vqedge", encoder=backend) as qa:
        content = file.read_bytes()
        file.unlink() if gone else file.write_bytes(content[::-1])
        with pytest.raises(BundleError, match=f"^tiny.vqedge: encoder.onnx: {told} again$"):
            qa.encode_frames(FRAMES)
        assert not reading
        file.write_bytes(content)  # the same, at another time
        os.utime(file, (1, 1))
        monkeypatch.setattr(auto, "open_fastest", ENCODERS["onnxruntime"].open)
        qa.encode_frames(FRAMES)
        assert len(reading) == 1


def test_what_no_encoder_reads_may_change_since(models: Path, reading: list[bytes]) -> None:
    with VideoQA.open(models, encoder="onnxruntime") as qa:
        (models / "parity.json").write_bytes(b"{}")
        qa.encode_frames(FRAMES)
