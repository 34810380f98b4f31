"""The Python API on stand-ins for the models: what it takes, refuses and gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import asking_facts, tiny_facts, tiny_quantizer, write_bundle

from vqedge.bundle import BundleFacts
from vqedge_runtime import VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel

FRAMES = np.full((8, 224, 224, 3), 90, np.uint8)
TABLES = {"levels": 4, "entries": 1024, "sha256": "ab" * 32}


def session(path: Path, facts: BundleFacts | None = None, levels: int = 0) -> VideoQA:
    manifest = write_bundle(path / "tiny.vqedge", facts=facts).manifest
    return VideoQA(FakeEncoder(32, 576, levels), FakeBridge(576), FakeLanguageModel(), manifest)


@pytest.fixture
def qa(tmp_path: Path) -> VideoQA:
    return session(tmp_path)


# ---- what it gives


def test_results_can_be_compared_kept_in_a_set_and_printed(qa: VideoQA) -> None:
    video, other = qa.encode_frames(FRAMES), qa.encode_frames(FRAMES)
    for first, second in (
        (video, other),
        (video.tokens, other.tokens),
        (video.tokens.codes, other.tokens.codes),
    ):
        assert first == first and first != second and len({first, second}) == 2
    assert video.tokens.key() == other.tokens.key(), "the content is the same"
    answer = qa.ask(video, "Which?", choices=["red", "blue"])
    assert len({answer, answer}) == 1 and str(answer) == f"{answer}" == "red"
    assert "tokens=TokenSet(count=32, patches=2048)" in repr(video)
    assert repr(video.tokens.codes) == "Codes(count=32)"
    assert not any("array" in repr(thing) for thing in (video, video.tokens, answer))


def test_frames_that_wait_for_a_question_are_not_printed(tmp_path: Path) -> None:
    video = session(tmp_path, asking_facts()).encode_frames(FRAMES)
    assert video.frames_thwc is not None and "array" not in repr(video)


@pytest.mark.parametrize("levels", [0, 4])
def test_an_answer_can_be_written_as_json(tmp_path: Path, levels: int) -> None:
    learned = {"kind": "codebook", "codebook": TABLES} if levels else {}
    qa = session(tmp_path, tiny_facts(quantizer=tiny_quantizer(**learned)), levels)
    document = qa.ask(qa.encode_frames(FRAMES), "Which?", choices=["red", "blue"]).to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["answer"] == "red" and document["tokens"] == 32
    assert list(document["choices"]) == ["red", "blue"]
    assert ("ids" in document) == bool(levels)
    assert set(document["timings_ms"]) >= {"decode", "first_token", "total"}
