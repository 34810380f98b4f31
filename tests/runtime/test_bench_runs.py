"""What `vqedge bench` times: prompts that are read whole, each as often as it says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny_gguf import CONTEXT, WIDTH, video

import vqedge.commands.bench as command
from vqedge_runtime import TokenSet, bench
from vqedge_runtime.tokens import Codes

ROWS = 8


@pytest.fixture
def qa(wild: Any) -> Any:
    return SimpleNamespace(llm=wild, asked=lambda video, _question: video)


@pytest.fixture
def clip() -> Any:
    """Four hundred patches, more than the context at first has room for."""
    return of_patches(400)


def of_patches(count: int, codes: int = ROWS, words: bool = False) -> Any:
    """A clip of `ROWS` rows; as words, several of each code."""
    rows = video(3, ROWS, WIDTH)
    index_map = np.arange(count, dtype=np.int32).reshape(1, 1, count) % codes
    found = Codes(index_map, np.zeros((codes, 1), np.float16))
    tokens = TokenSet(rows.rows, found, np.arange(ROWS, dtype=np.int32) if words else None)
    return SimpleNamespace(tokens=tokens, rows=rows)


def test_side_by_side_reads_as_much_as_one_by_one(
    qa: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []
    ask, ask_many, reader = qa.llm.ask, qa.llm.ask_many, qa.llm._reader

    def holds(rows: Any) -> bool:
        return reader._holds(rows) or rows.key in reader._aside._states

    def noted(rows: Any, question: str, options: Any) -> Any:
        held.append(holds(rows))
        return ask(rows, question, options)

    def noted_many(prompts: Any, options: Any) -> Any:
        held.extend(holds(prompt.video) for prompt in prompts)
        return ask_many(prompts, options)

    monkeypatch.setattr(qa.llm, "ask", noted)
    monkeypatch.setattr(qa.llm, "ask_many", noted_many)
    found = bench._together(qa, clip, 1)
    clips, questions = held[:16], held[16:]
    assert not any(clips), "eight clips are read in both ways"
    assert questions == [False, *[True] * 7, *[False] * 8], "one clip is read once in both"
    assert {row["prompts"] for row in found.values()} == {8}


def test_asking_after_another_clip_reads_neither_again(qa: Any, clip: Any) -> None:
    qa.llm.prefill_video(clip.rows)
    found = bench._asked_after_another(qa, clip, 3)
    assert [answer.reused_prefix for answer in found] == [True] * 3


def test_the_unreduced_prompt_is_read_whole_in_a_context_that_is_there(
    qa: Any, clip: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, ask = [], qa.llm.ask

    def noted(*arguments: Any) -> Any:
        sizes.append(qa.llm._reader.context.size)
        return ask(*arguments)

    monkeypatch.setattr(qa.llm, "ask", noted)
    found = bench._asked_unreduced(qa, clip, 2)
    assert sizes[0] < 400 < sizes[1] == sizes[2], "the first is a warm-up"
    assert [answer.reused_prefix for answer in found] == [False, False]
    assert {400 < answer.prompt_tokens < 500 for answer in found} == {True}


def test_of_a_code_of_many_words_the_unreduced_prompt_has_the_first(
    qa: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, ask = list[Any](), qa.llm.ask
    monkeypatch.setattr(qa.llm, "ask", lambda rows, *more: read.append(rows) or ask(rows, *more))
    words = of_patches(5, codes=2, words=True)
    bench._asked_unreduced(qa, words, 1)
    assert np.array_equal(read[0].rows, words.tokens.rows[[0, 4, 0, 4, 0]])


def test_patches_that_no_context_holds_leave_the_other_figures(
    qa: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench._asked_unreduced(qa, of_patches(CONTEXT), 1) == []
    found = bench._against_unreduced({}, {"cold": 3.0, "llm": 2.0, "reask": 1.0})
    assert set(found.values()) == {None}
    timed = {"open_ms": 1.0, "stages_ms": {}, "encoders": {}, "together": {}, "tokens": 32}
    first = {f"{name}_first_token_ms": 1.0 for name in ("cold", "reask", "return")}
    spread = {"p90_ms": dict.fromkeys(["cold_first_token", "reask_first_token"], 1.0)}
    spread["p90_ms"]["return_first_token"] = 1234.5
    rest = {"tokens_per_s": 1.0, "peak_rss_mb": 1.0, "unreduced_tokens": 8192, **spread}
    command._print_table(timed | first | rest | found)
    told = capsys.readouterr().out.splitlines()
    assert told[-1] == "8192 unreduced tokens: more than the context holds"
    assert not any("unreduced first token" in line for line in told)
    assert any(" ".join(line.split()) == "return first token 1.0 ms p90 1234.5" for line in told)


def test_the_spread_is_told_beside_the_medians() -> None:
    samples = {"encode": [float(ms) for ms in range(11)], "decode": [7.0], "unreduced": []}
    assert bench._medians(samples) == {"encode": 5.0, "decode": 7.0}
    assert bench._p90s(samples) == {"encode": 9.0, "decode": 7.0}
