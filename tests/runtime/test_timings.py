"""The times of an answer: each stage once, none forgotten."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_bundle import write_bundle

from vqedge_runtime import DecodingOptions
from vqedge_runtime.answers import Backend, Timings, Video, chosen_answer
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.encoding import EncodingSession
from vqedge_runtime.llm import ChoiceScores, VideoRows


@pytest.fixture
def session(tmp_path: Path) -> EncodingSession:
    manifest = write_bundle(tmp_path / "a.vqedge").manifest
    return EncodingSession(FakeEncoder(32, 576), FakeBridge(576), manifest)


@pytest.fixture
def video(session: EncodingSession) -> Video:
    return session.encode_frames(np.zeros((8, 224, 224, 3), np.uint8))


def test_what_a_stored_video_took(session: EncodingSession, video: Video, tmp_path: Path) -> None:
    session.save(video, tmp_path / "a.vqt")
    stored = session.encode(tmp_path / "a.vqt").timings
    assert stored.decode > 0 < stored.encode, "reading it, and its bridge"


def test_a_choice_has_its_first_token_once_the_question_is_read(video: Video) -> None:
    scores = ChoiceScores(("a", "b"), (-1.0, -2.0), prefix_ms=3, question_ms=4, total_ms=9)
    spent = Timings(decode=10, preprocess=20, encode=30)
    found = chosen_answer(video, scores, spent, Backend("", "")).timings
    assert found == replace(spent, prefill=7, first_token=67, total=69)


def test_prefix_and_question_lie_before_the_first_token(wild: Any) -> None:
    rows = VideoRows(np.zeros((100, wild.width), np.float32))
    found = wild.ask(rows, "What moves?", DecodingOptions(max_tokens=2))
    assert min(found.prefix_ms, found.question_ms) > 0
    assert found.prefix_ms + found.question_ms < found.first_token_ms < found.total_ms
