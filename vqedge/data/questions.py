"""Questions about a `Scene`, each with the one right answer.

Pure functions of the scene and a generator.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vqedge.data.world import COLORS, SHAPES, MovingObject, Scene


@dataclass(frozen=True)
class QuestionAnswer:
    """One question with its expected answer; `kind` groups results."""

    kind: str
    question: str
    answer: str


Asker = Callable[[Scene, np.random.Generator], QuestionAnswer | None]


def questions_from_scene(
    scene: Scene, rng: np.random.Generator, count: int
) -> list[QuestionAnswer]:
    """Ask `count` questions, every kind that applies as often as the others."""
    kinds: list[str] = []
    found: list[QuestionAnswer] = []
    while len(found) < count:
        if not kinds:
            kinds = [str(kind) for kind in rng.permutation(list(KINDS))]
        question = KINDS[kinds.pop()](scene, rng)
        if question is not None:
            found.append(question)
    return found


def one_question_per_kind(scene: Scene, rng: np.random.Generator) -> list[QuestionAnswer]:
    """One question of every kind that applies to the scene, in a fixed order."""
    asked = (ask(scene, rng) for ask in KINDS.values())
    return [question for question in asked if question is not None]


def _pick(rng: np.random.Generator, texts: tuple[str, ...]) -> str:
    return texts[int(rng.integers(len(texts)))]


def _any_object(scene: Scene, rng: np.random.Generator) -> MovingObject:
    return scene.objects[int(rng.integers(len(scene.objects)))]


def _unique_shapes(scene: Scene) -> list[MovingObject]:
    shapes = [item.shape for item in scene.objects]
    return [item for item in scene.objects if shapes.count(item.shape) == 1]


def _color(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    candidates = _unique_shapes(scene)
    if not candidates:
        return None
    item = candidates[int(rng.integers(len(candidates)))]
    text = _pick(rng, ("What color is the {}?", "What is the color of the {}?"))
    return QuestionAnswer("color", text.format(item.shape), item.color)


def _shape(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    item = _any_object(scene, rng)
    text = _pick(rng, ("What shape is the {} object?", "What is the {} object?"))
    return QuestionAnswer("shape", text.format(item.color), item.shape)


def _direction(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    item = _any_object(scene, rng)
    text = _pick(rng, ("Which way does the {} {} move?", "In which direction does the {} {} move?"))
    return QuestionAnswer("direction", text.format(item.color, item.shape), item.direction)


def _count(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    text = _pick(rng, ("How many objects are there?", "How many objects are there in the video?"))
    return QuestionAnswer("count", text, str(len(scene.objects)))


def _exist(scene: Scene, rng: np.random.Generator) -> QuestionAnswer:
    """Balanced: in half of the questions the named object is not there."""
    shown = {(item.color, item.shape) for item in scene.objects}
    if rng.random() < 0.5:
        item = _any_object(scene, rng)
        color, shape, answer = item.color, item.shape, "yes"
    else:
        absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in shown]
        color, shape = absent[int(rng.integers(len(absent)))]
        answer = "no"
    text = _pick(rng, ("Is there a {} {}?", "Is there a {} {} in the video?"))
    return QuestionAnswer("exist", text.format(color, shape), answer)


def _order(scene: Scene, rng: np.random.Generator) -> QuestionAnswer | None:
    """Only where the objects appear one after another."""
    if len(scene.objects) < 2 or scene.objects[1].appears_at == 0.0:
        return None
    first, last = scene.objects[0], scene.objects[-1]
    if rng.random() < 0.5:
        return QuestionAnswer("order", "What color is the object that appears first?", first.color)
    return QuestionAnswer("order", "What color is the object that appears last?", last.color)


KINDS: dict[str, Asker] = {
    "color": _color,
    "shape": _shape,
    "direction": _direction,
    "count": _count,
    "exist": _exist,
    "order": _order,
}
