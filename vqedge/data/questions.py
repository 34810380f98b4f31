"""Questions about a `Scene`, each with the one right answer.

Pure functions of the scene and a generator. Where an answer is yes or no, both are as likely
whatever the scenes are, so that nobody does better than the prior without looking.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, permutations
from typing import TypeVar

import numpy as np

from vqedge.data.clips import QuestionAnswer
from vqedge.data.world import COLORS, DIRECTIONS, SHAPES, TEXTURES, MovingObject, Scene
from vqedge.errors import ConfigError

_T = TypeVar("_T")
Asker = Callable[[Scene, np.random.Generator], QuestionAnswer | None]

# How far apart two objects must be before anyone is asked to compare them.
_LARGER, _FASTER, _LONGER = 1.3, 1.8, 0.25
_CHOICES = 5

VIDEO_OF = "a video of "  # how a description begins
DESCRIBE = ("What does the video show?", "Describe the video.", "What is this?")
_BETWEEN_FACTS = re.compile(r", (?:then )?| and (?=an? )")  # but not in "moving up and left"


def questions_from_scene(
    scene: Scene,
    rng: np.random.Generator,
    count: int,
    caption_share: float = 0.0,
    kinds: Sequence[str] = (),
) -> list[QuestionAnswer]:
    """Ask `count` questions, every kind that applies as often as the others.

    Args:
        scene: what the clip shows.
        rng: picks kinds, objects and wording.
        count: how many.
        caption_share: how often, among clips, one of them asks for a description.
        kinds: those of a round, twice where a kind is asked twice as often; each once if empty.
    """
    found = [caption(scene, rng)] if rng.random() < caption_share else []
    order = in_rounds(kinds or [*KINDS], rng)
    while len(found) < count:
        question = TRAINED_KINDS[next(order)](scene, rng)
        if question is not None:
            found.append(question)
    return found


def one_of(items: Sequence[_T], rng: np.random.Generator) -> _T:
    """One of them, each as likely as the others."""
    return items[int(rng.integers(len(items)))]


def in_rounds(kinds: Sequence[str], rng: np.random.Generator) -> Iterator[str]:
    """Kinds without end: all of them in every round, each round in an order of its own."""
    while True:
        yield from reversed([str(kind) for kind in rng.permutation(list(kinds))])


def kinds_by_weight(
    weights: Mapping[str, int], kinds: Sequence[str], others: Sequence[str] = ()
) -> tuple[str, ...]:
    """A round of kinds, each as often as its weight says.

    Args:
        weights: by kind.
        kinds: those that are asked once where nothing is said.
        others: those that are not asked then.

    Raises:
        ConfigError: a weight is for a kind that there is not.
    """
    known = [*kinds, *others]
    unknown = ", ".join(sorted(set(weights) - set(known)))
    if unknown:
        raise ConfigError(
            f"no such kind of question: {unknown} (kind_weights); there are {', '.join(known)}"
        )
    usual = dict.fromkeys(kinds, 1)
    return tuple(kind for kind in known for _ in range(weights.get(kind, usual.get(kind, 0))))


def one_question_per_kind(scene: Scene, rng: np.random.Generator) -> list[QuestionAnswer]:
    """One question of every kind that applies to the scene, in a fixed order."""
    asked = (ask(scene, rng) for ask in KINDS.values())
    return [question for question in asked if question is not None]


def caption(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    """A description of the whole clip, objects in order of appearance."""
    parts = [
        f"{with_article(_named(item))} moving {item.direction}"
        if item.speed
        else f"a still {_named(item)}"
        for item in scene.objects
    ]
    text = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    question = one_of(DESCRIBE, rng)
    return QuestionAnswer("caption", question, VIDEO_OF + text)


def facts_of(description: str) -> list[str]:
    """What a description tells of each thing, in order: `an orange ring moving up and left`.

    Args:
        description: in the words of `caption`, of this module or of `photo_questions`.
    """
    return _BETWEEN_FACTS.split(description.removeprefix(VIDEO_OF))


def with_article(noun: str) -> str:
    """`a red ring`, `an orange ring`."""
    vowel = noun[0] in "aeiou" and not noun.startswith(("eu", "ew", "uni"))
    return f"{'an' if vowel else 'a'} {noun}"


def _named(item: MovingObject) -> str:
    return f"{item.color} {item.shape}"


def _color(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    shapes = [item.shape for item in scene.objects]
    candidates = [item for item in scene.objects if shapes.count(item.shape) == 1]
    if not candidates:
        return None
    item = one_of(candidates, rng)
    text = one_of(("What color is the {}?", "What is the color of the {}?"), rng)
    return QuestionAnswer("color", text.format(item.shape), item.color)


def _shape(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    item = one_of(scene.objects, rng)
    text = one_of(("What shape is the {} object?", "What is the {} object?"), rng)
    return QuestionAnswer("shape", text.format(item.color), item.shape)


def _texture(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    item = one_of(scene.objects, rng)
    text = one_of(("Is the {} plain, striped or spotted?", "What pattern does the {} have?"), rng)
    return QuestionAnswer("texture", text.format(_named(item)), item.texture)


def _direction(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    item = one_of(scene.objects, rng)
    text = one_of(("Which way does the {} move?", "In which direction does the {} move?"), rng)
    return QuestionAnswer("direction", text.format(_named(item)), item.direction)


def _count(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    """All objects, or those of one shape or texture that may not be there at all."""
    draw = rng.random()
    if draw < 0.5:
        asked = ("How many objects are there?", "How many objects are there in the video?")
        text = one_of(asked, rng)
        return QuestionAnswer("count", text, str(len(scene.objects)))
    if draw < 0.75:
        shapes = SHAPES if rng.random() < 0.3 else [item.shape for item in scene.objects]
        shape = one_of(shapes, rng)
        there = sum(item.shape == shape for item in scene.objects)
        return QuestionAnswer("count", f"How many {_plural(shape)} are there?", str(there))
    texture = one_of(TEXTURES, rng)
    there = sum(item.texture == texture for item in scene.objects)
    return QuestionAnswer("count", f"How many {texture} objects are there?", str(there))


def _plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def _exist(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    """In half of the questions the named object is not there, though its colour may be."""
    shown = {(item.color, item.shape) for item in scene.objects}
    if rng.random() < 0.5:
        item = one_of(scene.objects, rng)
        color, shape, answer = item.color, item.shape, "yes"
    else:
        absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in shown]
        color, shape = one_of(absent, rng)
        answer = "no"
    return _is_there_a("exist", color, shape, answer, rng)


def binding(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    """Whether a colour and a shape, both of which are there, are those of one thing.

    Half of them are, of every colour and of every shape; None where no two things could be taken
    for two others of the same colours and shapes.
    """
    shown = {(item.color, item.shape) for item in scene.objects}
    mixed = [
        (one, other)
        for one, other in permutations(scene.objects, 2)
        if not shown & {(one.color, other.shape), (other.color, one.shape)}
    ]
    if not mixed:
        return None
    one, other = one_of(mixed, rng)
    if rng.random() < 0.5:
        return _is_there_a("binding", one.color, one.shape, "yes", rng)
    return _is_there_a("binding", one.color, other.shape, "no", rng)


def _is_there_a(
    kind: str, color: str, shape: str, answer: str, rng: np.random.Generator
) -> QuestionAnswer:
    text = one_of(("Is there {}?", "Is there {} in the video?"), rng)
    return QuestionAnswer(kind, text.format(with_article(f"{color} {shape}")), answer)


def _order(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    """Only where the objects appear one after another."""
    if not scene.staggered:
        return None
    place = int(rng.integers(3))
    if place == 0:
        text, wanted = "What color is the object that appears first?", scene.objects[0]
    elif place == 1:
        text, wanted = "What color is the object that appears last?", scene.objects[-1]
    else:
        after = int(rng.integers(len(scene.objects) - 1))
        before, wanted = scene.objects[after : after + 2]
        text = f"What color is the object that appears right after the {_named(before)}?"
    return QuestionAnswer("order", text, wanted.color)


def _stay(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    """Only where some objects are there at the start (or the end) and some are not."""
    start = rng.random() < 0.5
    there = [item for item in scene.objects if _is_there(item, start)]
    gone = [item for item in scene.objects if not _is_there(item, start)]
    if not there or not gone:
        return None
    yes = rng.random() < 0.5
    item = one_of(there if yes else gone, rng)
    text = "Is the {} there from the start?" if start else "Is the {} still there at the end?"
    return QuestionAnswer("stay", text.format(_named(item)), "yes" if yes else "no")


def _is_there(item: MovingObject, start: bool) -> bool:
    return item.appears_at == 0.0 if start else item.vanishes_at == 1.0


def _change(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    """What becomes of an object's size, every outcome in the scene as likely as the others."""
    outcomes = sorted({_outcome(item) for item in scene.objects})
    outcome = one_of(outcomes, rng)
    item = one_of([item for item in scene.objects if _outcome(item) == outcome], rng)
    text = one_of(("How does the size of the {} change?", "Does the {} grow or shrink?"), rng)
    return QuestionAnswer("change", text.format(_named(item)), outcome)


def _outcome(item: MovingObject) -> str:
    if item.growth == 1.0:
        return "it stays the same"
    return "it grows" if item.growth > 1.0 else "it shrinks"


def _compare(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    """Which of two is larger or faster, where that is plain to see."""
    faster = rng.random() < 0.5
    word, measure, ratio = (
        ("moves faster", _speed, _FASTER) if faster else ("is larger", _size, _LARGER)
    )
    pairs = [
        sorted(pair, key=measure)
        for pair in combinations(scene.objects, 2)
        if min(map(measure, pair)) * ratio < max(map(measure, pair))
        and (faster or all(item.growth == 1.0 for item in pair))
    ]
    return _which("compare", word, pairs, rng)


def _speed(item: MovingObject) -> float:
    return item.speed


def _size(item: MovingObject) -> float:
    return item.radius


def _duration(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    pairs = [
        sorted(pair, key=lambda item: item.lasts)
        for pair in combinations(scene.objects, 2)
        if abs(pair[0].lasts - pair[1].lasts) >= _LONGER
    ]
    return _which("duration", "is there longer", pairs, rng)


def _which(
    kind: str, what: str, pairs: Sequence[Sequence[MovingObject]], rng: np.random.Generator
) -> QuestionAnswer | None:
    """Which of a pair (less, more) is more, named in either order."""
    if not pairs:
        return None
    pair = one_of(pairs, rng)
    ordered = pair if rng.random() < 0.5 else reversed(pair)
    first, second = (f"the {_named(item)}" for item in ordered)
    text = f"Which {what}, {first} or {second}?"
    return QuestionAnswer(kind, text, f"the {_named(pair[1])}", named=(first, second))


def _choice(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    """Five options in the question, one of them right."""
    item = one_of(scene.objects, rng)
    asked = (
        (f"What color is the {item.shape}?", tuple(COLORS), item.color),
        (f"What shape is the {item.color} object?", SHAPES, item.shape),
        (f"Which way does the {_named(item)} move?", tuple(DIRECTIONS), item.direction),
    )
    text, options, right = one_of(asked, rng)
    if options == tuple(COLORS):  # other colours of that shape would be right too
        same = {other.color for other in scene.objects if other.shape == item.shape}
        options = tuple(color for color in options if color not in same or color == right)
    wrong = [option for option in options if option != right]
    chosen = [right, *(str(option) for option in rng.permutation(wrong)[: _CHOICES - 1])]
    listed = [str(option) for option in rng.permutation(chosen)]
    return QuestionAnswer("choice", f"{text} Choose: {', '.join(listed)}.", right, tuple(listed))


KINDS: dict[str, Asker] = {
    "color": _color,
    "shape": _shape,
    "texture": _texture,
    "direction": _direction,
    "count": _count,
    "exist": _exist,
    "order": _order,
    "stay": _stay,
    "change": _change,
    "compare": _compare,
    "duration": _duration,
    "choice": _choice,
}

BY_WEIGHT: dict[str, Asker] = {"binding": binding}
"""Trained on where a recipe has a weight for them; no part of what the suite `synthetic` asks."""

TRAINED_KINDS = KINDS | BY_WEIGHT
