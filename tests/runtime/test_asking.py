"""What the Python API takes for a bundle, choices and options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import write_bundle

from vqedge.errors import BundleError, ConfigError, PromptError
from vqedge_runtime import DecodingOptions, VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel


@pytest.fixture
def llm() -> FakeLanguageModel:
    return FakeLanguageModel()


@pytest.fixture
def qa(llm: FakeLanguageModel, tmp_path: Path) -> VideoQA:
    manifest = write_bundle(tmp_path / "fake.vqedge").manifest
    return VideoQA(FakeEncoder(32, 576), FakeBridge(576), llm, manifest)


def test_choices_for_many(qa: VideoQA, llm: FakeLanguageModel, clip: Path) -> None:
    llm.enqueue_scores(-9.0, -1.0)
    llm.enqueue_scores(-1.0, -9.0)
    pairs = [(clip, "Which?"), (qa.encode(clip, 8), "Which?")]
    first, second = qa.ask_many(iter(pairs), choices=iter(["red", "blue"]))
    assert [(str(answer), answer.tokens) for answer in (first, second)] == [
        ("blue", 32),
        ("red", 8),
    ]
    assert list(first.choice_scores) == ["red", "blue"] and first.choice_scores["blue"] > 0.9
    assert isinstance(qa.encoder, FakeEncoder) and qa.encoder.calls == 2
    with pytest.raises(PromptError):
        qa.ask_many(pairs, choices=["red", "red"])
    with pytest.raises(ConfigError, match="choices need none"):
        qa.ask_many(pairs, choices=["red", "blue"], options=DecodingOptions())


@pytest.mark.parametrize("options", [{"max_tokens": 3}, {}, 3])
def test_options_of_another_kind(qa: VideoQA, llm: FakeLanguageModel, options: Any) -> None:
    """Told before a video is looked at."""
    told = re.escape(f"options {options!r}: give DecodingOptions(max_tokens=...)")
    for ask in (qa.ask, qa.stream):
        with pytest.raises(ConfigError, match=told):
            ask("gone.mp4", "What?", options=options)
    with pytest.raises(ConfigError, match=told):
        qa.ask_many([("gone.mp4", "What?")], options=options)
    assert not llm.calls


def test_the_bundle_that_is_used_without_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As far as the check of its files, which are none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VQEDGE_BUNDLE", raising=False)
    with pytest.raises(BundleError, match=r"^no bundle: give .* in Python its path, or"):
        VideoQA.open()
    for name in ("build/tiny.vqedge", "tiny.vqedge", "named.vqedge"):
        (tmp_path / name).mkdir(parents=True)
        if name == "named.vqedge":
            monkeypatch.setenv("VQEDGE_BUNDLE", name)
        with pytest.raises(BundleError, match=f"^{name}: "):
            VideoQA.open()
