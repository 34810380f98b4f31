"""Earlier turns are read once in a talk, and change nothing in it whatever was read between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import Mock

import numpy as np
import numpy.typing as npt
import pytest
from tiny_gguf import base_gguf, video

from vqedge.errors import BackendUnavailable
from vqedge_runtime.llm import DecodingOptions, Exchange, Prompt, VideoRows, open_llama_cpp

SHORT = DecodingOptions(max_tokens=4)
ROUNDING = 3e-2  # of a logit: keys and values are float16
CLIP, OTHER = video(3, rows=20), video(4)
TURNS = [Exchange("What moves?", "a ring"), Exchange("Where to?", "up, and then down")]
OTHERS = [TURNS[0], Exchange("Which way?", "to the left, along the border")]


@pytest.fixture
def base() -> Iterator[Any]:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    with open_llama_cpp(base_gguf(), threads=1, context=512) as llm:
        yield llm


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the cells of every native call."""
    from vqedge_runtime.llm.handles import Context

    counts: list[int] = []
    decode = Context._decode

    def counting(context: Any, cells: Any) -> None:
        counts.append(len(cells))
        decode(context, cells)

    monkeypatch.setattr(Context, "_decode", counting)
    return counts


def logits(
    llm: Any, history: Sequence[Exchange] = TURNS, clip: VideoRows = CLIP
) -> npt.NDArray[np.float32]:
    """After a question with turns before it."""
    llm.stream(clip, "And then?", SHORT, history)
    found: npt.NDArray[np.float32] = llm._reader.context.last_logits()
    return found


@pytest.mark.parametrize(("name", "count"), [("wild", 5), ("base", 3)])
def test_a_talk_reads_what_is_new_and_says_the_same(
    name: str, count: int, request: pytest.FixtureRequest, read: list[int]
) -> None:
    """Not more turns of the real one: llama.cpp rounds otherwise where it reads 64 and more."""
    llm = request.getfixturevalue(name)
    clip = video(3, 20, llm.width)

    def talk(anew: bool) -> tuple[list[Exchange], list[int], npt.NDArray[np.float32]]:
        turns: list[Exchange] = []
        counts: list[int] = []
        for question in ("What moves?", "Where to?", "Which is it?", "So?", "Then?")[:count]:
            if anew:
                llm.prefill_video(clip)
            read.clear()
            with llm.stream(clip, question, SHORT, turns) as stream:
                counts.append(sum(read))
                found = llm._reader.context.last_logits()
                turns.append(Exchange(question, stream.read().text))
        return turns, counts, found

    talk(anew=True)  # the context grows, then stays
    turns, counts, wanted = talk(anew=True)
    llm.prefill_video(clip)
    again, fewer, found = talk(anew=False)
    assert fewer == [counts[0], *np.diff(counts)], "all of the turn before was there"
    difference = np.abs(found - wanted)
    print(f"{name}: max {difference.max():.1e}, mean {difference.mean():.1e}")
    assert again == turns and difference.max() < ROUNDING


BETWEEN: dict[str, Callable[[Any, bytes], object]] = {
    "a question alone": lambda llm, _: llm.ask(CLIP, "What moves at all?", SHORT),
    "an answer": lambda llm, _: llm.stream(CLIP, "And then?", SHORT, TURNS).read(),
    "other turns": lambda llm, _: logits(llm, OTHERS),
    "fewer turns": lambda llm, _: logits(llm, TURNS[:1]),
    "another video": lambda llm, _: logits(llm, TURNS, OTHER),
    "the video alone": lambda llm, _: llm.prefill_video(CLIP),
    "its state taken": lambda llm, _: llm.prefix_state(CLIP),
    "its state put back": lambda llm, state: llm.restore_prefix(CLIP, state),
    "a state that does not fit": lambda llm, state: llm.restore_prefix(CLIP, state[:-4]),
    "choices": lambda llm, _: llm.score_choices(CLIP, "And then?", ["up it goes", "down"]),
    "prompts": lambda llm, _: llm.ask_many([Prompt(OTHER, "Then?"), Prompt(CLIP, "So?")], SHORT),
    "scores": lambda llm, _: llm.score_many([Prompt(CLIP, "Then?")] * 2, "up it goes"),
    "ids": lambda llm, _: llm.logits(list(range(99))),
    "a larger context": lambda llm, _: llm.prefill_video(video(5, rows=700)),
    "nothing, all forgotten": lambda llm, _: llm.forget(),
}


@pytest.mark.parametrize("between", BETWEEN)
def test_nothing_stale_is_used_after_another_read(wild: Any, between: str) -> None:
    wanted, state = logits(wild), wild.prefix_state(CLIP)
    logits(wild)
    BETWEEN[between](wild, state)
    np.testing.assert_allclose(logits(wild), wanted, atol=ROUNDING)


def test_nothing_stale_is_used_after_a_read_that_failed(
    wild: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = logits(wild)
    failing = Mock(side_effect=BackendUnavailable("made to fail"))
    with monkeypatch.context() as patch, pytest.raises(BackendUnavailable, match="made to fail"):
        patch.setattr(type(wild._reader.context), "_decode", failing)
        logits(wild, OTHERS)
    np.testing.assert_allclose(logits(wild), wanted, atol=ROUNDING)


def test_without_turns_a_question_is_read_as_ever(wild: Any, read: list[int]) -> None:
    """Its numbers are to the bit the same, whatever was asked before."""
    logits(wild)
    wild.stream(CLIP, "What moves at all?", SHORT)
    read.clear()
    wild.stream(CLIP, "What moves at all?", SHORT)
    assert sum(read) == len(wild.prompt_ids("What moves at all?")[1])
