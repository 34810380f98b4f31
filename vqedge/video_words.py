"""A video as words of a vocabulary: which there are, how they are numbered and spelled.

A code is told by a group of words: where it is, how large and how that changes, over which frames
it occurs, the finer entries of the learned codebook that it is the sum of, which way it moves, and
its coarsest entry. Every word that is no entry begins with a name, one of a few dozen groups of
coarse entries, so that it says by itself what it is about. A word means the same in every video: a
language model can hold a row for each (`docs/video-words.md`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from vqedge.config import ModelConfig

HASH_WORDS = 4  # of a code: place, size, span, motion; the others are the codebook's entries
NAMES = 64  # at most; no more than entries
PLACES = 6  # from left to right, and from top to bottom
MOTION_STEPS = 3  # either way, in x and in y
SIZES = 16  # by quarters of an octave, from a sixteenth of a frame's side to all of it
GROWTH_STEPS = 2  # either way
UNUSED_WORD = -1  # in rows of codes that are not in use


class Kind(NamedTuple):
    """Words of one kind: numbered from `first`, `size` of them."""

    first: int
    size: int

    @property
    def end(self) -> int:
        """One past the last."""
        return self.first + self.size


@dataclass(frozen=True)
class VideoVocabulary:
    """All words of a model.

    Args:
        levels: entries in the sum that a code is.
        entries: of each level.
        frames: T.
    """

    levels: int
    entries: int
    frames: int

    @property
    def per_code(self) -> int:
        """Words of one code."""
        return HASH_WORDS + self.levels

    @property
    def names(self) -> int:
        """Groups of coarse entries."""
        return min(NAMES, self.entries)

    @property
    def code(self) -> Kind:
        """Entries, level by level."""
        return Kind(0, self.levels * self.entries)

    @property
    def place(self) -> Kind:
        """By name: the part of the frame that the middle lies in, row-major."""
        return self._after(self.code, PLACES * PLACES)

    @property
    def size(self) -> Kind:
        """By name: sizes, smallest first, each with its growth from shrinking to growing."""
        return self._after(self.place, SIZES * (2 * GROWTH_STEPS + 1))

    @property
    def span(self) -> Kind:
        """By name: first and last frame, those that begin with frame 0 first."""
        return self._after(self.size, self.frames * (self.frames + 1) // 2)

    @property
    def motion(self) -> Kind:
        """By name: steps in y, then in x, each from most negative to most positive."""
        return self._after(self.span, (2 * MOTION_STEPS + 1) ** 2)

    def __len__(self) -> int:
        return self.motion.end

    def spans(self) -> list[tuple[int, int]]:
        """First and last frame of every span, in the order of their words."""
        frames = range(self.frames)
        return [(first, last) for first in frames for last in frames[first:]]

    def spellings(self) -> list[str]:
        """How every word is written in a prompt, by its number."""
        steps = range(-MOTION_STEPS, MOTION_STEPS + 1)
        growth = range(-GROWTH_STEPS, GROWTH_STEPS + 1)
        places, names = range(PLACES), range(self.names)
        kinds = (
            [f"x{x}y{y}" for y in places for x in places],
            [f"s{size}g{step}" for size in range(SIZES) for step in growth],
            [f"t{first}-{last}" for first, last in self.spans()],
            [f"dx{x}dy{y}" for y in steps for x in steps],
        )
        return [
            *(f"<|v{number}|>" for number in range(self.code.size)),
            *(f"<|n{name}{word}|>" for kind in kinds for name in names for word in kind),
        ]

    def text(self, words: Iterable[int]) -> str:
        """The words of a video as the piece of a prompt that stands for it."""
        spellings = self.spellings()
        return "".join(spellings[word] for word in words)

    def _after(self, kind: Kind, size: int) -> Kind:
        """So many words for each name, numbered after another kind."""
        return Kind(kind.end, self.names * size)


def vocabulary_of(config: ModelConfig) -> VideoVocabulary | None:
    """The words that a model's videos are told in; None where rows are made for each clip."""
    if config.attention.hash != "tokens":
        return None
    quantizer = config.quantizer
    return VideoVocabulary(quantizer.levels, quantizer.entries, config.encoder.frames)
