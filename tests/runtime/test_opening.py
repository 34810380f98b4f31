"""Opening the encoder beside the language model: what is handed out, raised and closed."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import write_bundle

from vqedge.bundle import Bundle
from vqedge.errors import BackendUnavailable
from vqedge_runtime import VideoQA
from vqedge_runtime import session as session_module
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders import ENCODERS, Encoder, EncoderBackend
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel

FRAMES = np.full((8, 224, 224, 3), 90, np.uint8)
WAIT_S = 20.0


class Watched(FakeEncoder):
    """Knows whether it is closed."""

    closed = False

    def close(self) -> None:
        """Note it."""
        self.closed = True


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


def test_an_encoder_is_closed_where_the_language_model_fails(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, encoder = threading.Event(), Watched(32, 576)
    opens_as(monkeypatch, encoder, gate)

    def fails(*_: object, **__: object) -> FakeLanguageModel:
        gate.set()
        raise BackendUnavailable("no language model")

    monkeypatch.setattr(session_module, "open_llama_cpp", fails)
    with pytest.raises(BackendUnavailable, match="no language model"):
        VideoQA.open(models, encoder="onnxruntime", encoder_ahead=True)
    assert encoder.closed


def test_what_is_wrong_with_the_encoder_is_told_to_whoever_needs_it(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(bundle: Bundle, threads: int | None) -> Encoder:
        raise BackendUnavailable("no driver")

    monkeypatch.setitem(ENCODERS, "onnxruntime", EncoderBackend(refused, lambda: None))
    with VideoQA.open(models, encoder="onnxruntime", encoder_ahead=True) as qa:
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match="no driver"):
                qa.encode_frames(FRAMES)
