"""What training and evaluation read: clips by number, each with frames and questions.

A `ClipSource` is a sequence of `Clip`s and a fingerprint of what its numbers show; the feature
cache is keyed by it. The generated world, composed photos and a user's own JSONL file are three of
them (`vqedge.data.sources`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

UNNAMED = -1
Vocabulary = Mapping[str, tuple[str, ...]]
"""Words by group: a thing has at most one word of each group."""


@dataclass(frozen=True)
class QuestionAnswer:
    """One question with its expected answer; `kind` groups results.

    With choices the answer is one of them: a multiple-choice question, scored by likelihood.
    `named` are the answers that a question without choices names itself, if they are others in
    every question: who sees nothing can pick one of them.
    """

    kind: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    named: tuple[str, ...] = ()


@dataclass(frozen=True)
class Labels:
    """What every patch shows, in words: dense targets for the bridge's first lesson.

    Attributes:
        shown: int64 `[T, grid, grid]`: number of the thing each patch lies on, from 1; 0 for none.
        words: a thing's words, one dictionary of group to word each, in the order of the numbers.
    """

    shown: npt.NDArray[np.int64]
    words: tuple[dict[str, str], ...]


class Clip(Protocol):
    """One clip of a source."""

    def frames(self, count: int, size: int) -> npt.NDArray[np.uint8]:
        """RGB frames at the centres of `count` equal parts, uint8 `[count, size, size, 3]`."""

    def questions(self, rng: np.random.Generator, count: int) -> list[QuestionAnswer]:
        """`count` questions to train on; fewer if there are no more."""

    def one_question_per_kind(self, rng: np.random.Generator) -> list[QuestionAnswer]:
        """Questions to evaluate on, one of every kind that applies, in a fixed order."""

    def labels(self, frames: int, grid: int) -> Labels | None:
        """What its patches show, or None if that is not known."""

    def reversed(self) -> Clip | None:
        """The clip played backwards, or None where its questions would not hold."""


class ClipSource(Protocol):
    """Clips by number, the same clip under the same number every time."""

    def __len__(self) -> int:
        """How many clips there are."""

    def __getitem__(self, number: int) -> Clip:
        """Clip `number`."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The words of every group that its labels use; empty if it has no labels."""

    @property
    def fingerprint(self) -> str:
        """Changes when any number comes to show something else; letters, digits and dashes."""
