"""What one forward pass reads: clips, and the questions about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from threading import Lock

import numpy as np
import torch

from vqedge.data.clips import QuestionAnswer
from vqedge.data.jsonl import FileClip
from vqedge.data.mixture import Pick
from vqedge.data.training import NO_WORD, PART, Asked, ClipBatch, TrainingClips
from vqedge.model.encoder import rows_per_code
from vqedge.model.llm import PromptTokenizer
from vqedge.model.packing import IGNORED, PackedBatch, pack
from vqedge.recipe import TrainConfig
from vqedge.reducers import follows_question

_ROW = 24  # answers about a clip that are scored at once, and the choices of one question more


@dataclass(frozen=True)
class Batch:
    """Clips with their questions.

    Attributes:
        clips: B of them.
        packed: their questions, B rows; a row each where tokens follow the question.
        kinds: of every question, in the order of `Scores.correct`.
        answer_tokens: how many there are to predict.
    """

    clips: ClipBatch
    packed: PackedBatch
    kinds: tuple[str, ...]
    answer_tokens: int


@dataclass(frozen=True)
class HeldOut:
    """A question to evaluate on, and the answers that are scored: its own, or all its choices."""

    item: QuestionAnswer
    answers: tuple[str, ...]

    def spoken(self) -> list[QuestionAnswer]:
        """It with each of the answers."""
        return [replace(self.item, answer=answer) for answer in self.answers]

    def is_right(self, correct: Sequence[bool], likelihood: Sequence[float]) -> bool:
        """Of choices the likeliest is what is said, first of equals.

        Args:
            correct: is every token of each answer the most likely one?
            likelihood: of each answer.
        """
        if len(self.answers) == 1:
            return correct[0]
        return self.answers[likelihood.index(max(likelihood))] == self.item.answer


class Batches:
    """Makes batches, each a pure function of the seed, the step and the clips.

    Args:
        config: the run.
        tokenizer: of the language model.
        device: where batches go.
    """

    def __init__(
        self, config: TrainConfig, tokenizer: PromptTokenizer, device: torch.device
    ) -> None:
        self.config, self.tokenizer, self.device = config, tokenizer, device
        self._one_at_a_time = Lock()  # a tokenizer is not for two threads: calls change its state

    def of_step(self, clips: TrainingClips, picks: list[Pick], budget: int, step: int) -> Batch:
        """Clips of a step with questions drawn for it."""
        asked = []
        for pick in picks:
            key = [self.config.seed, step, pick.source, pick.number, pick.backwards]
            rng = np.random.default_rng(key)
            asked.append(clips.clip(pick).questions(rng, self.config.data.questions_per_clip))
        return self._batch(clips, picks, budget, asked)

    def held_out(self, clips: TrainingClips) -> Iterator[tuple[Batch, list[HeldOut]]]:
        """Held-out clips at the default budget, a few at a time, the same every time.

        Of clips that are made, one question of each kind; of a file's all of them.

        Yields:
            what is read, and its questions in their order: of each as many answers as it has.
        """
        rows = ((pick, part) for pick in clips.in_order() for part in _to_evaluate(clips, pick))
        while few := list(islice(rows, PART)):
            picks, parts = zip(*few, strict=True)
            spoken = [[item for asked in part for item in asked.spoken()] for part in parts]
            budget = self.config.model.quantizer.default_budget
            yield self._batch(clips, [*picks], budget, spoken), [*chain(*parts)]

    def _batch(
        self,
        clips: TrainingClips,
        picks: list[Pick],
        budget: int,
        asked: Sequence[list[QuestionAnswer]],
    ) -> Batch:
        chosen, each = clips.batch(picks, budget), asked
        with self._one_at_a_time:
            if follows_question(self.config.model.quantizer.kind):
                each = [[item] for questions in asked for item in questions]
                chosen = chosen._replace(asked=self._asked(asked))
            packed = pack(self.tokenizer, each, budget * rows_per_code(self.config.model))
        answer_tokens = int((packed.targets != IGNORED).sum())
        packed = PackedBatch(
            *(part.to(self.device) for part in (packed.ids, packed.segment, packed.targets))
        )
        kinds = tuple(item.kind for questions in asked for item in questions)
        return Batch(chosen.to(self.device), packed, kinds, answer_tokens)

    def _asked(self, asked: Sequence[list[QuestionAnswer]]) -> Asked:
        """Questions that each have tokens of their own, clip after clip."""
        clip = [place for place, questions in enumerate(asked) for _ in questions]
        words = [
            torch.tensor(self.tokenizer.words(item.question))
            for questions in asked
            for item in questions
        ]
        ids = torch.nn.utils.rnn.pad_sequence(words, batch_first=True, padding_value=NO_WORD)
        return Asked(torch.tensor(clip), ids)


def _to_evaluate(clips: TrainingClips, pick: Pick) -> Iterator[list[HeldOut]]:
    """What is asked about a clip, as many questions at once as fit a row."""
    clip = clips.clip(pick)
    if not isinstance(clip, FileClip):
        items = clip.one_question_per_kind(np.random.default_rng([pick.source, pick.number, 1]))
        yield [HeldOut(item, (item.answer,)) for item in items]
        return
    row: list[HeldOut] = []
    for item in clip.asked:
        if sum(len(asked.answers) for asked in row) >= _ROW:
            yield row
            row = []
        row.append(HeldOut(item, item.choices or (item.answer,)))
    yield row
