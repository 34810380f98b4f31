"""What the Python API takes for a bundle, videos, times, choices and options."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import write_bundle

from vqedge.bundle import Manifest
from vqedge.errors import BundleError, ConfigError, PromptError, VqtError
from vqedge_runtime import DecodingOptions, Video, VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel, Prompt, VideoRows


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


def another(qa: VideoQA, role: str) -> VideoQA:
    """A session with a bundle that differs in one file."""
    files = qa.manifest.files
    changed = [f.model_copy(update={"sha256": "ab" * 32}) if f.role == role else f for f in files]
    manifest = Manifest.sealed(qa.manifest, tuple(changed))
    return VideoQA(FakeEncoder(32, 576), FakeBridge(576), FakeLanguageModel(), manifest)


def test_a_video_of_another_bundle(
    qa: VideoQA, llm: FakeLanguageModel, clip: Path, tmp_path: Path
) -> None:
    """As a `.vqt` of one."""
    qa.save(qa.encode(clip), tmp_path / "a.vqt")
    for video in (qa.encode(clip), pickle.loads(pickle.dumps(qa.encode(tmp_path / "a.vqt")))):
        other = another(qa, "bridge")
        acts: list[Callable[[], object]] = [
            lambda: other.ask(video, "What?"),  # noqa: B023
            lambda: other.ask(video, "What?", choices=["red", "blue"]),  # noqa: B023
            lambda: other.ask_many([(video, "What?")]),  # noqa: B023
            lambda: other.stream(video, "What?"),  # noqa: B023
            lambda: other.evidence(video, "What?", "Red."),  # noqa: B023
            lambda: other.prefill(video),  # noqa: B023
            lambda: other.save(video, tmp_path / "b.vqt"),  # noqa: B023
        ]
        for act in acts:
            with pytest.raises(VqtError, match=r"^the video was made with another bundle \(.*; e"):
                act()
        another(qa, "encoder").save(video, tmp_path / "b.vqt")  # it is the bridge that reads codes
        (tmp_path / "b.vqt").unlink()


def test_numbers_of_numpy_may_say_when(qa: VideoQA, clip: Path) -> None:
    for one, two in ((np.float32(1), np.float32(2)), (np.int64(1), np.array(2))):
        video = qa.encode(clip, start_s=one, end_s=two)
        answer = qa.ask(video, "Which?", choices=["red", "blue"])
        assert json.dumps(answer.to_dict()) and type(video.start_s) is type(video.end_s) is float
        assert (video.start_s, video.end_s) == (1.0, 2.0)


@pytest.mark.parametrize(
    "given", ["1", True, np.timedelta64(1, "s"), np.ones(1), 1j, [1.0], 10**400]
)
def test_a_start_or_end_that_is_no_number(qa: VideoQA, clip: Path, given: Any) -> None:
    for name in ("start_s", "end_s"):
        with pytest.raises(ConfigError, match=f"^{name} .*: give a number of seconds$"):
            qa.encode(clip, **{name: given})


@pytest.mark.parametrize(
    "act",
    [
        lambda qa, video: qa.ask(video, " "),
        lambda qa, video: qa.ask(video, "Which?", choices=["red", "red"]),
        lambda qa, video: qa.ask_many([(video, "What?"), (video, "")]),
        lambda qa, video: qa.llm.prefill_video(VideoRows(np.ones((3, 5), np.float32))),
        lambda qa, video: qa.llm.score_many([Prompt(video.rows, "What?")], " "),
        lambda qa, video: qa.ask_many([]),
    ],
)
def test_what_reads_nothing_ends_no_stream(
    qa: VideoQA, llm: FakeLanguageModel, act: Callable[[VideoQA, Video], object]
) -> None:
    """The stand-in; `test_llm_many` has the real one."""
    video = qa.encode_frames(np.full((8, 224, 224, 3), 90, np.uint8))
    llm.enqueue("A red ball.")
    stream = qa.stream(video, "What?")
    assert next(stream) == "A"
    with suppress(PromptError, BundleError):
        assert act(qa, video) == []
    assert "".join(stream) == " red ball."
