"""What one forward pass reads: clips, and the questions about them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch

from vqedge.data.clips import QuestionAnswer
from vqedge.data.mixture import Pick
from vqedge.model.batch import NO_WORD, Asked, ClipBatch
from vqedge.model.encoder import rows_per_code
from vqedge.model.llm import PromptTokenizer
from vqedge.model.packing import IGNORED, PackedBatch, pack
from vqedge.recipe import TrainConfig
from vqedge.reducers import follows_question
from vqedge.training.dataset import PART, TrainingClips
from vqedge.training.questions import HeldOut

_ROW = 256  # tokens of questions of a file that share a row
_CELLS = 1 << 20  # of attention: of each head, and of each layer one after another


class _Row(NamedTuple):
    """A clip, and the answers to score of what is asked about it, of so many tokens."""

    pick: Pick
    spoken: list[QuestionAnswer]
    tokens: int


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

    def held_out(self, clips: TrainingClips, asked: Sequence[HeldOut]) -> Iterator[Batch]:
        """Held-out clips at the default budget, a few at a time, with every answer to score.

        All questions about a clip that is made are a row; those of a file are cut into rows, and
        these into batches, by how long they are.

        Args:
            clips: the clips.
            asked: about them, as `questions_of` has it.
        """
        budget = self.config.model.quantizer.default_budget
        made = self._rows([each for each in asked if not each.of_file])
        own = self._rows([each for each in asked if each.of_file], self._most_tokens)
        prefix = len(self.tokenizer.before_video) + budget * rows_per_code(self.config.model)
        for part in chain(_parts(made), _parts(own, prefix, _CELLS)):
            picks, spoken = [row.pick for row in part], [row.spoken for row in part]
            yield self._batch(clips, picks, budget, spoken)

    @property
    def _most_tokens(self) -> int:
        """Most tokens of a file's questions that share a row."""
        return 1 if follows_question(self.config.model.quantizer.kind) else _ROW

    def _rows(self, asked: Sequence[HeldOut], most: float = math.inf) -> Iterator[_Row]:
        """Answers to score, as many about a clip at once as have so many tokens, one at least."""
        for pick, questions in groupby(asked, key=lambda each: each.pick):
            row = _Row(pick, [], 0)
            for item in chain.from_iterable(each.spoken() for each in questions):
                tokens = self._tokens(item)
                if row.spoken and row.tokens + tokens > most:
                    yield row
                    row = _Row(pick, [], 0)
                row = _Row(pick, [*row.spoken, item], row.tokens + tokens)
            yield row

    def _tokens(self, item: QuestionAnswer) -> int:
        """How many a question and its answer take."""
        with self._one_at_a_time:
            question = self.tokenizer.question(item.question)
            return len(question) + len(self.tokenizer.answer(item.answer)) - 1

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


def _parts(rows: Iterable[_Row], prefix: int = 0, most: float = math.inf) -> Iterator[list[_Row]]:
    """As many rows at once as attention takes so many cells for, one at least.

    Args:
        rows: all of them.
        prefix: tokens before a row's questions.
        most: cells, each a pair of columns of a row.
    """
    part, longest = list[_Row](), 0
    for row in rows:
        longest = max(longest, prefix + row.tokens)
        if part and (len(part) == PART or (len(part) + 1) * longest**2 > most):
            yield part
            part, longest = [], prefix + row.tokens
        part.append(row)
    if part:
        yield part
