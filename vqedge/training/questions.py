"""What validation asks, the same every time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from vqedge.data.clips import QuestionAnswer
from vqedge.data.jsonl import FileClip
from vqedge.data.mixture import Pick
from vqedge.training.dataset import TrainingClips


@dataclass(frozen=True)
class HeldOut:
    """A question about a clip, and the answers that are scored: its own, or all its choices."""

    pick: Pick
    item: QuestionAnswer
    answers: tuple[str, ...]
    of_file: bool = False

    def spoken(self) -> list[QuestionAnswer]:
        """It with each of the answers."""
        return [replace(self.item, answer=answer) for answer in self.answers]

    def is_right(self, correct: Sequence[bool], likelihood: Sequence[float]) -> bool:
        """Whether the answer is right: of choices the likeliest one is said, the first of equals.

        Args:
            correct: is every token of each answer the most likely one?
            likelihood: of each answer.
        """
        if len(self.answers) == 1:
            return correct[0]
        return self.answers[likelihood.index(max(likelihood))] == self.item.answer


def questions_of(clips: TrainingClips, most: int) -> list[HeldOut]:
    """One question of each kind about every clip that is made, then those of files.

    Args:
        clips: that are held out.
        most: questions of one file.
    """
    made, files = list[HeldOut](), list[HeldOut]()
    for _, picks in groupby(clips.in_order(), key=lambda pick: pick.source):
        own = list[tuple[Pick, FileClip]]()
        for pick in picks:
            clip = clips.clip(pick)
            if isinstance(clip, FileClip):
                own.append((pick, clip))
                continue
            items = clip.one_question_per_kind(np.random.default_rng([pick.source, pick.number, 1]))
            made += [HeldOut(pick, item, (item.answer,)) for item in items]
        files += _spread(own, most)
    return made + files


def identity_of(clips: TrainingClips, asked: Sequence[HeldOut]) -> str:
    """What figures have in common that can be compared: the clips, and all that is asked."""
    told = repr(([source.fingerprint for source in clips.sources], asked))
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _spread(clips: Iterable[tuple[Pick, FileClip]], most: int) -> Iterator[HeldOut]:
    """No clip is asked a question more before all are asked as many, where they have them."""
    rng, turns = np.random.default_rng(0), list[tuple[int, float, int, int]]()
    found = [*clips]
    for number, (_, clip) in enumerate(found):
        order = rng.permutation(len(clip.asked))
        turns += [(turn, rng.random(), number, int(place)) for turn, place in enumerate(order)]
    for number, place in sorted(last[2:] for last in sorted(turns)[:most]):
        pick, clip = found[number]
        item = clip.asked[place]
        yield HeldOut(pick, item, item.choices or (item.answer,), of_file=True)
