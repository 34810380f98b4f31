"""What *exist* can be scored without knowing which colour belongs to which shape."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vqedge.data.generated import SceneClip
from vqedge.data.suites import Item
from vqedge.data.world import COLORS, SHAPES


def unbound_share(items: Iterable[Item]) -> float:
    """Of the questions *exist*, those right for who knows the colours and shapes that are there.

    Where a colour or shape is missing that says no; else the more frequent answer is given.

    Args:
        items: of the generated world; other kinds are left out.
    """
    told, guessed = 0, Counter[str]()
    for item in items:
        if item.kind == "exist" and isinstance(item.clip, SceneClip):
            words = {*item.question.rstrip("?").split()}
            there = {
                word for thing in item.clip.scene.objects for word in (thing.color, thing.shape)
            }
            if words & {*COLORS, *SHAPES} <= there:
                guessed[item.answer] += 1
            else:
                told += 1
    return (told + max(guessed.values(), default=0)) / (told + guessed.total())
