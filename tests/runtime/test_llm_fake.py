"""The stand-in for tests of what uses a language model."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vqedge.errors import BackendUnavailable, BundleError, PromptError
from vqedge_runtime.llm import (
    ChoiceScores,
    DecodingOptions,
    FakeLanguageModel,
    Generation,
    LanguageModel,
    TextStream,
    VideoRows,
)


def test_another_thread_may_close_a_stream_that_is_being_read() -> None:
    under_way, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def pieces() -> Generator[str, None, None]:
        try:
            for piece in "abc":
                under_way.set()
                assert go_on.wait(120)
                yield piece
        finally:
            ended.set()

    stream = TextStream(pieces(), lambda: Generation(""))
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(next, stream)
        assert under_way.wait(120)
        try:
            stream.close()
            assert not ended.is_set()
        finally:
            go_on.set()
        assert read.result() == "a"
    assert ended.is_set(), "what the pieces held is free"
    assert list(stream) == []
    stream.close()


def test_the_fake_says_what_is_queued_and_refuses_what_the_real_one_refuses() -> None:
    fake = FakeLanguageModel(width=4)
    model: LanguageModel = fake
    fake.enqueue("A red ball moves.")
    clip = VideoRows(np.ones((3, 4), np.float32))
    with model.stream(clip, "What?") as stream:
        assert list(stream) == ["A", " red", " ball", " moves."]
    fake.enqueue("A red ball")
    answer = model.ask(clip, "What?", DecodingOptions(max_tokens=2))
    assert (answer.text, answer.reused_prefix, answer.stopped) == ("A red", True, False)
    fake.enqueue_scores(-3.0, -1.0)
    scores: ChoiceScores = model.score_choices(clip, "Which?", ["a", "b"])
    assert (scores.best, fake.calls[-1]) == ("b", (clip.key, "Which?"))
    with pytest.raises(AssertionError, match="enqueue"):
        model.ask(clip, "More?")
    with pytest.raises(PromptError):
        model.ask(clip, " ")
    with pytest.raises(BundleError):
        model.ask(VideoRows(np.ones((3, 5), np.float32)), "What?")
    model.close()
    with pytest.raises(BackendUnavailable):
        model.ask(clip, "What?")
