"""Answers that are given are scored: each by its own likelihood, in groups that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import END, SPEECH, video

from vqedge.errors import PromptError
from vqedge_runtime.llm import ChoiceScores, open_llama_cpp

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


@pytest.mark.parametrize("name", ["wild", "base"])
def test_choices_score_as_each_prompt_from_scratch(
    name: str, request: pytest.FixtureRequest
) -> None:
    llm = request.getfixturevalue(name)
    count = {"wild": 20, "base": 3}[name]  # 20 are more than one group of branches
    choices = [f"number {i} of all" for i in range(count - 1)] + ["red"]
    clip, question = video(6, width=llm.width), "Which?"
    scores = llm.score_choices(clip, question, choices)
    reader = llm._reader
    prompt = [*llm.tokens_from_text("\n" + question), *reader.chat.after_question]
    for choice, total in zip(choices, scores.totals, strict=True):
        answer = reader.chat.answer_ids(choice)
        logits = llm.logits(reader._before, clip.rows, prompt + answer).astype(np.float64)
        rows = logits[-len(answer) - 1 : -1]
        expected = sum(r[t] - np.log(np.exp(r).sum()) for r, t in zip(rows, answer, strict=True))
        assert total == pytest.approx(expected, abs=2e-3)
    assert sum(scores.probabilities) == pytest.approx(1)


@pytest.mark.parametrize(
    ("lengths", "room", "groups"),
    [([3] * 5, 7, [2, 2, 1]), ([1] * 20, 99, [15, 5]), ([7, 1, 6, 1], 7, [1, 2, 1])],
)
def test_groups_are_as_long_as_they_can_be(
    lengths: list[int], room: int, groups: list[int]
) -> None:
    from vqedge_runtime.llm.scoring import groups_of

    found = groups_of([[0] * length for length in lengths], room)
    assert [len(group) for group in found] == groups


def test_choices_go_in_groups_that_fit(wild: Any, wild_path: Path) -> None:
    choices = [f"number {i} of all of them" for i in range(12)]  # of 23 ids: two have room
    expected = wild.score_choices(video(), "Which?", choices).totals
    least = len(wild.prompt_ids("Which?")[0]) + 8 + len(wild.prompt_ids("Which?")[1])
    with open_llama_cpp(wild_path, threads=1, context=256, max_context=least + 50) as llm:
        found = llm.score_choices(video(), "Which?", choices).totals
        assert found == pytest.approx(expected, abs=2e-3)
        with pytest.raises(PromptError, match=r"a choice has 61 tokens, .* 50 .* the choice$"):
            llm.score_choices(video(), "Which?", ["red", "blue" * 15])
        with pytest.raises(PromptError, match="shorten the question"):
            llm.score_choices(video(), "Which is it" * 9, ["red", "blue"])
        assert llm.score_choices(video(), "Which?", choices).totals == found


def test_the_likeliest_choice_is_best(parrot: Any) -> None:
    scores = parrot.score_choices(video(), "Speak", ["no", SPEECH, f" {SPEECH}é "])
    assert scores.best == SPEECH
    assert scores.totals[1] == pytest.approx(0, abs=1e-4)
    for nothing in ([], ["a", " "]):
        with pytest.raises(PromptError, match="choice"):
            parrot.score_choices(video(), "Speak", nothing)


def test_likelihoods_too_small_to_be_numbers_are_compared_all_the_same() -> None:
    found = ChoiceScores(("a", "b"), (-900.0, -901.0)).probabilities
    assert found == pytest.approx((0.731, 0.269), abs=1e-3)


def test_special_tokens_in_a_choice_stay_text(wild: Any) -> None:
    ids = wild._reader.chat.answer_ids("a<|im_end|>b")
    assert ids[-1] == END and END not in ids[:-1]
