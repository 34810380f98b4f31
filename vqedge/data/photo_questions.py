"""Questions about things that are shown one after another, each with the one right answer.

Pure functions of their nouns and a generator, as `vqedge.data.questions` are of a scene: `things`
are those that a clip shows, in order; `nouns` are all that a question may name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np

from vqedge.data.clips import QuestionAnswer
from vqedge.data.questions import DESCRIBE, VIDEO_OF, in_rounds, one_of, with_article

Asker = Callable[[Sequence[str], Sequence[str], np.random.Generator], QuestionAnswer | None]

_TRIES = 2  # for every question that is wanted: a clip of one thing has hardly so many kinds


def questions_in_rounds(
    things: Sequence[str],
    nouns: Sequence[str],
    rng: np.random.Generator,
    count: int,
    caption_share: float,
    kinds: Sequence[str],
) -> list[QuestionAnswer]:
    """Questions of kinds that take turns, no two alike; fewer than `count` if there are no more.

    Args:
        things: what the clip shows.
        nouns: what may be named.
        rng: picks the order of kinds, and what is asked.
        count: how many at most.
        caption_share: how often, among clips, one of them asks for a description.
        kinds: those of a round, twice where a kind is asked twice as often.
    """
    found = [caption(things, rng)] if rng.random() < caption_share else []
    tries = max(_TRIES * count, len(kinds))  # a round asks something of every clip
    for kind in islice(in_rounds(kinds, rng), tries):
        item = KINDS[kind](things, nouns, rng)
        if item is not None and item not in found and len(found) < count:
            found.append(item)
    return found


def one_question_per_kind(
    things: Sequence[str], nouns: Sequence[str], rng: np.random.Generator
) -> list[QuestionAnswer]:
    """One question of every kind that applies, in a fixed order."""
    asked = (ask(things, nouns, rng) for ask in KINDS.values())
    return [question for question in asked if question is not None]


def caption(things: Sequence[str], rng: np.random.Generator) -> QuestionAnswer:
    """A description of the whole clip, photos in order."""
    text = ", then ".join(with_article(thing) for thing in things)
    return QuestionAnswer("caption", one_of(DESCRIBE, rng), VIDEO_OF + text)


def _thing(
    things: Sequence[str], _nouns: Sequence[str], rng: np.random.Generator
) -> QuestionAnswer | None:
    if len(things) > 1:
        return None
    text = one_of(("What is shown?", "What thing is in the video?", "Name the thing."), rng)
    return QuestionAnswer("thing", text, things[0])


def _first(
    things: Sequence[str], _nouns: Sequence[str], rng: np.random.Generator
) -> QuestionAnswer | None:
    if not _ordered(things):
        return None
    places = sorted(rng.permutation(len(things))[:2].tolist())
    earlier, later = (things[place] for place in places)
    ordered = (earlier, later) if rng.random() < 0.5 else (later, earlier)
    one, other = (f"the {thing}" for thing in ordered)
    text = f"Which comes first, {one} or {other}?"
    return QuestionAnswer("first", text, f"the {earlier}", named=(one, other))


def _sequence(
    things: Sequence[str], _nouns: Sequence[str], rng: np.random.Generator
) -> QuestionAnswer | None:
    if not _ordered(things):
        return None
    draw = int(rng.integers(3))
    if draw == 0:
        return QuestionAnswer("sequence", "What comes first?", things[0])
    if draw == 1:
        return QuestionAnswer("sequence", "What comes last?", things[-1])
    place = int(rng.integers(len(things) - 1))
    text = f"What comes right after the {things[place]}?"
    return QuestionAnswer("sequence", text, things[place + 1])


def _ordered(things: Sequence[str]) -> bool:
    """Is there an order to ask about; what is shown twice is shown longest, and tells it."""
    return len(things) > 1 and len(set(things)) == len(things)


def _different(
    things: Sequence[str], _nouns: Sequence[str], _rng: np.random.Generator
) -> QuestionAnswer:
    return QuestionAnswer("different", "How many different things are shown?", str(len({*things})))


def _present(
    things: Sequence[str], nouns: Sequence[str], rng: np.random.Generator
) -> QuestionAnswer:
    """Is something there; in half of the questions it is not, unless everything is."""
    absent = [noun for noun in nouns if noun not in things]
    yes = rng.random() < 0.5 or not absent
    noun = one_of(things if yes else absent, rng)
    text = f"Is there {with_article(noun)} in the video?"
    return QuestionAnswer("present", text, "yes" if yes else "no")


KINDS: dict[str, Asker] = {
    "thing": _thing,
    "first": _first,
    "sequence": _sequence,
    "different": _different,
    "present": _present,
}
