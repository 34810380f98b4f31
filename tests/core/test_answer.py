"""Answers from a checkpoint: what is read, what is generated, which choice is likeliest."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from tiny_model import CODES, CONFIG, END, FRAMES, GRID, tiny_llm, tiny_tokenizer
from torch import Tensor, nn

import vqedge.model.answer as answer
from vqedge.config import QuantizerConfig
from vqedge.data.jsonl import VideoFile
from vqedge.data.suites import Item
from vqedge.errors import ConfigError, PromptError
from vqedge.evaluate import Reply
from vqedge.model.answer import CheckpointAnswerer, checked_budget
from vqedge_runtime.llm import ChoiceScores

SIZE, LONGEST = GRID * 14, 6
TOKENIZER = tiny_tokenizer()


class Rows(nn.Module):
    """An encoder whose rows depend on frames, their order and the budget; notes what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[list[int], int]] = []
        self.weight = torch.randn(
            FRAMES, CODES * CONFIG.llm.width, generator=torch.Generator().manual_seed(8)
        )

    def forward(self, frames: Tensor, budget: Tensor, text: Tensor | None = None) -> Any:
        means = frames.float().mean(dim=(1, 2, 3))
        self.seen.append((means.int().tolist(), int(budget)))
        rows = (means / 255 @ self.weight).view(CODES, -1)
        used = int(budget) or 2
        return SimpleNamespace(read=rows[:used])


@dataclass(frozen=True)
class Gray:
    """A clip whose frames get brighter."""

    level: int

    def frames(self, count: int, size: int) -> npt.NDArray[np.uint8]:
        levels = np.arange(self.level, self.level + 10 * count, 10, dtype=np.uint8)
        return np.broadcast_to(levels[:, None, None, None], (count, size, size, 3)).copy()


@dataclass
class Read:
    """Stands for the runtime's decoder."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)

    def __call__(self, path: Path, count: int, size: int, *span: Any) -> npt.NDArray[np.uint8]:
        self.asked.append((path, count, size, *span))
        return Gray(90).frames(count, size)


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A checkpoint of stand-ins: `encoder()` and `llm()` are the same objects every time."""
    monkeypatch.setattr(answer, "MAX_TOKENS", LONGEST)
    monkeypatch.setattr(answer, "llm_weights", lambda *_: SimpleNamespace(path=Path("llm")))
    monkeypatch.setattr(answer, "tokenizer_from_gguf", lambda _path, _system: TOKENIZER)
    encoder, llm = Rows(), tiny_llm()
    return SimpleNamespace(config=CONFIG, path=Path(), encoder=lambda: encoder, llm=lambda: llm)


def answerer_of(parts: Any, **changes: Any) -> CheckpointAnswerer:
    return CheckpointAnswerer(parts, Read(), **changes)


def reply_of(answerer: CheckpointAnswerer, item: Item) -> Reply:
    (found,) = answerer.replies([item])
    return found


def replies_of(answerer: CheckpointAnswerer, clip: Any, *questions: str) -> list[Reply]:
    return list(answerer.replies([item_of(clip, text) for text in questions]))


def item_of(clip: Any, question: str, *choices: str) -> Item:
    return Item(clip, "all", question, choices[0] if choices else "x", choices)


# ---- the slow twin: everything is read anew for every token


@torch.no_grad()
def log_probabilities(parts: Any, clip: Any, question: str, answer_ids: list[int]) -> Tensor:
    """After the prompt and after every token of an answer, float64 `[n + 1, vocab]`."""
    llm = parts.llm()
    embed = llm.get_input_embeddings()
    rows = torch.empty(0, CONFIG.llm.width)
    if clip is not None:
        encoded = Rows()(torch.from_numpy(clip.frames(FRAMES, SIZE)), torch.tensor(CODES))
        rows = encoded.read
    after = torch.tensor([*TOKENIZER.question(question), *answer_ids])
    prompt = torch.cat([embed(torch.tensor(TOKENIZER.before_video)), rows, embed(after)])
    logits = llm(inputs_embeds=prompt[None], use_cache=False).logits[0, -len(answer_ids) - 1 :]
    found: Tensor = logits.double().log_softmax(-1)
    return found


def slow_answer(parts: Any, clip: Any, question: str) -> str:
    ids: list[int] = []
    while len(ids) < LONGEST:
        scores = log_probabilities(parts, clip, question, ids)[-1]
        if not ids:
            scores[END] = -torch.inf
        if (best := int(scores.argmax())) == END:
            break
        ids.append(best)
    return " ".join(map(str, ids))


def slow_totals(parts: Any, clip: Any, question: str, choices: tuple[str, ...]) -> list[float]:
    totals = []
    for choice in choices:
        ids = TOKENIZER.answer(choice)
        scores = log_probabilities(parts, clip, question, ids[:-1])
        totals.append(float(scores[range(len(ids)), ids].sum()))
    return totals


QUESTIONS = ("What?", "Which color is it?", "How many?")
CLIPS = (Gray(0), Gray(120))


def test_answers_are_those_of_reading_everything_anew(parts: Any) -> None:
    answerer = answerer_of(parts)
    found = [reply.text for clip in CLIPS for reply in replies_of(answerer, clip, *QUESTIONS)]
    expected = [slow_answer(parts, clip, text) for clip in CLIPS for text in QUESTIONS]
    assert found == expected
    assert len(set(found)) > 1 and all(found)


def test_an_answer_is_never_empty_and_ends_with_its_turn(parts: Any) -> None:
    """Of a model that always wants to end its turn, as of the runtime's, the next best is taken."""
    answerer = answerer_of(parts)
    llm = parts.llm()
    head = torch.zeros_like(llm.lm_head.weight)
    llm.lm_head = nn.Linear(head.shape[1], head.shape[0])
    llm.lm_head.weight = nn.Parameter(head, requires_grad=False)
    llm.lm_head.bias = nn.Parameter(torch.zeros(head.shape[0]), requires_grad=False)
    llm.lm_head.bias[END], llm.lm_head.bias[7] = 9.0, 5.0
    assert reply_of(answerer, item_of(CLIPS[0], "What?")).text == "7"
    llm.lm_head.bias[END] = -9.0
    assert reply_of(answerer, item_of(CLIPS[0], "What?")).text == " ".join(["7"] * LONGEST)


CHOICES = ("red", "a long answer", "no", "two")
SHORT = ("red", "two", "elf", "cat", "dog", "sun")


def test_the_likeliest_choice_is_that_of_the_runtimes_rule(parts: Any) -> None:
    """The sum over all tokens counts, not their mean, and not the first of them."""
    answerer = answerer_of(parts)
    found, expected, by_mean = [], [], []
    for clip, choices in ((CLIPS[0], CHOICES), (CLIPS[1], CHOICES), (CLIPS[1], SHORT)):
        for question in QUESTIONS[:2]:
            totals = tuple(slow_totals(parts, clip, question, choices))
            counts = tuple(len(choice) + 1 for choice in choices)
            means = [total / count for total, count in zip(totals, counts, strict=True)]
            expected.append(ChoiceScores(choices, totals).best)
            by_mean.append(choices[means.index(max(means))])
            found.append(reply_of(answerer, item_of(clip, question, *choices)).text)
    assert found == expected
    assert len(set(found)) > 1 and found != by_mean, "these choices do not tell the rules apart"


def test_the_first_of_equal_choices_and_space_around_them(parts: Any) -> None:
    answerer = answerer_of(parts)
    assert reply_of(answerer, item_of(CLIPS[0], "What?", " red", "red ")).text == " red"


@pytest.mark.parametrize("together", [1, 4, 8])
def test_questions_that_go_together_do_not_see_each_other(
    parts: Any, monkeypatch: pytest.MonkeyPatch, together: int
) -> None:
    """In any order and company, generated or scored: the answers of asking each alone."""
    monkeypatch.setattr(answer, "_TOGETHER", together)
    items = [item_of(CLIPS[0], text, *choices) for text in QUESTIONS for choices in ((), CHOICES)]
    answerer = answerer_of(parts)
    alone = [reply_of(answerer, item) for item in items]
    parts.encoder().seen.clear()
    assert list(answerer.replies(items)) == alone
    assert len(parts.encoder().seen) == 1, "a clip is encoded once for all its questions"
    assert list(answerer.replies(items[::-1])) == alone[::-1]


def test_an_empty_question_is_refused_before_anything_is_read(parts: Any) -> None:
    with pytest.raises(PromptError, match="the question is empty"):
        replies_of(answerer_of(parts), CLIPS[0], "What?", " ")
    assert not parts.encoder().seen


# ---- what it is shown


def test_a_file_is_read_by_the_given_reader(parts: Any) -> None:
    read = Read()
    answerer = CheckpointAnswerer(parts, read)
    clip = VideoFile(Path("a.mp4"), 0.5, 2.0)
    texts = [reply.text for reply in replies_of(answerer, clip, *QUESTIONS)]
    assert read.asked == [(Path("a.mp4"), FRAMES, SIZE, 0.5, 2.0)]
    assert texts == [slow_answer(parts, Gray(90), text) for text in QUESTIONS]


@pytest.mark.parametrize(("budget", "tokens"), [(None, CODES), (3, 3), (1, 1), ("auto", 2)])
def test_the_budget_reaches_the_encoder(parts: Any, budget: Any, tokens: int) -> None:
    reply = reply_of(answerer_of(parts, budget=budget), item_of(CLIPS[0], "What?"))
    assert reply.tokens == tokens
    (_, seen) = parts.encoder().seen[0]
    assert seen == (0 if budget == "auto" else tokens)


def test_facts_for_the_report(parts: Any) -> None:
    answerer = answerer_of(parts)
    assert (answerer.frames, answerer.tokens_before) == (FRAMES, FRAMES * GRID**2)
    assert set(answerer.backend) == {"encoder", "llm"}


def test_shuffled_frames_are_shown_in_another_order(parts: Any) -> None:
    answerer = answerer_of(parts)
    shuffled = answerer.perturbed()["shuffled frames"]
    for level in range(0, 200, 20):
        replies_of(answerer, Gray(level), "What?")
        replies_of(shuffled, Gray(level), "What?")
    orders = [means for means, _ in parts.encoder().seen]
    straight, mixed = orders[0::2], orders[1::2]
    assert all(order == sorted(order) for order in straight)
    assert [sorted(order) for order in mixed] == straight
    assert sum(order != sorted(order) for order in mixed) > 5


def test_blind_is_without_any_video(parts: Any) -> None:
    answerer = answerer_of(parts)
    blind = answerer.perturbed()["blind"]
    for clip in CLIPS:
        (reply,) = replies_of(blind, clip, QUESTIONS[1])
        assert (reply.tokens, reply.text) == (0, slow_answer(parts, None, QUESTIONS[1]))
    assert not parts.encoder().seen


def test_the_perturbed_and_the_whole_do_not_disturb_each_other(parts: Any) -> None:
    answerer = answerer_of(parts)
    alone = replies_of(answerer, CLIPS[0], *QUESTIONS)
    blind = answerer.perturbed()["blind"]
    between = []
    for text in QUESTIONS:
        replies_of(blind, CLIPS[0], text)
        between += replies_of(answerer, CLIPS[0], text)
    assert between == alone


# ---- the budget


@pytest.mark.parametrize("budget", [0, -1, 65])
def test_a_budget_that_a_checkpoint_does_not_have(budget: int) -> None:
    with pytest.raises(ConfigError, match=f"budget {budget}: this checkpoint takes 1 to 64 tok"):
        checked_budget(QuantizerConfig(), budget)


@pytest.mark.parametrize("kind", ["reducer:uniform-pool", "reducer:random-prune"])
def test_what_cannot_adapt_is_not_asked_to(kind: Any) -> None:
    with pytest.raises(ConfigError, match="budget auto: this checkpoint has a fixed budget"):
        checked_budget(QuantizerConfig(kind=kind), "auto")
    assert checked_budget(QuantizerConfig(kind=kind), None) == 32


def test_a_checkpoint_is_not_loaded_for_a_budget_it_does_not_have() -> None:
    def never() -> Any:
        raise AssertionError("loaded")

    parts: Any = SimpleNamespace(config=CONFIG, path=Path(), encoder=never, llm=never)
    with pytest.raises(ConfigError):
        CheckpointAnswerer(parts, Read(), CODES + 1)
