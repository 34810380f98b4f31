"""What every patch of a clip shows, in words: dense targets for the bridge.

A question gives one answer for a whole clip; a clip that was composed says much more: what every
patch lies on.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vqedge.data.clips import UNNAMED, Labels, Vocabulary
from vqedge.data.world import COLORS, DIRECTIONS, MAX_OBJECTS, SHAPES, TEXTURES, MovingObject, Scene

ORDER = ("first", "second", "third", "fourth")[:MAX_OBJECTS]
SCENE_WORDS: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "texture": TEXTURES,
    "direction": tuple(DIRECTIONS),
    "order": ORDER,
    "size": ("small", "large"),
    "speed": ("slow", "fast"),
    "change": ("grows", "shrinks", "same"),
}
_INSIDE = 0.9  # a patch shows an object if its centre is within this share of the object's radius
_LARGE_FROM, _FAST_FROM = 0.12, 0.4  # radius and speed, see vqedge.data.world


def word_table(labels: Labels, vocabulary: Vocabulary) -> npt.NDArray[np.int64]:
    """The words of every thing as positions in their groups, int64 `[things, groups]`.

    `UNNAMED` for groups that say nothing of a thing, and for words that are not among them.
    """
    places = [
        words.index(thing[group]) if thing.get(group) in words else UNNAMED
        for thing in labels.words
        for group, words in vocabulary.items()
    ]
    return np.array(places, np.int64).reshape(len(labels.words), len(vocabulary))


def labels_from_scene(scene: Scene, frames: int, grid: int) -> Labels:
    """What every patch of a generated clip shows; the object in front where two overlap."""
    centers = (np.arange(grid) + 0.5) / grid
    shown = np.zeros((frames, grid, grid), np.int64)
    for frame in range(frames):
        time = (frame + 0.5) / frames
        for number, item in enumerate(scene.objects, start=1):
            if not item.shows_at(time):
                continue
            x, y = item.xy(time)
            reach = item.radius_at(time) * _INSIDE
            near = np.hypot(centers[None, :] - x, centers[:, None] - y) < reach
            shown[frame][near] = number
    return Labels(shown, tuple(_words(scene, item) for item in scene.objects))


def _words(scene: Scene, item: MovingObject) -> dict[str, str]:
    words = {
        "color": item.color,
        "shape": item.shape,
        "texture": item.texture,
        "direction": item.direction,
        "size": "large" if item.radius > _LARGE_FROM else "small",
        "change": "same" if item.growth == 1.0 else "grows" if item.growth > 1.0 else "shrinks",
    }
    if item.speed:
        words["speed"] = "fast" if item.speed > _FAST_FROM else "slow"
    if scene.staggered:
        words["order"] = ORDER[scene.objects.index(item)]
    return words
