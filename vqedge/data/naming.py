"""What each code of a generated clip shows, in words: dense labels for the bridge.

A question gives one answer for a whole clip; the scene says much more: which object a patch lies
on. A code whose patches lie mostly on one object is named by that object's colour, shape, direction
and place in the order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vqedge.data.world import COLORS, DIRECTIONS, SHAPES, MovingObject, Scene

ORDER = ("first", "second", "third")
GROUPS: tuple[tuple[str, ...], ...] = (tuple(COLORS), SHAPES, tuple(DIRECTIONS), ORDER)
UNNAMED = -1
_INSIDE = 0.9  # a patch shows an object if its centre is within this share of the object's radius
_MAJORITY = 0.5


def code_names(
    scene: Scene, indices: npt.NDArray[np.integer], frames: int, codes: int
) -> npt.NDArray[np.int64]:
    """Name every code of a clip.

    Args:
        scene: what the clip shows.
        indices: the index map, integer `[T * grid * grid]`.
        frames: T.
        codes: K.

    Returns:
        int64 `[K, 4]`: the word of each group in `GROUPS`, `UNNAMED` for codes of the background
        and for the order where all objects appear together.
    """
    shown = _object_of_patch(scene, frames, int((len(indices) // frames) ** 0.5)).reshape(-1)
    votes = np.zeros((codes, len(scene.objects) + 1), np.int64)
    np.add.at(votes, (indices, shown), 1)
    winner = votes[:, 1:].argmax(axis=1)
    named = votes[:, 1:].max(axis=1) > _MAJORITY * np.maximum(votes.sum(axis=1), 1)
    words = np.array([_words(scene, item) for item in scene.objects])
    return np.where(named[:, None], words[winner], UNNAMED)


def _object_of_patch(scene: Scene, frames: int, grid: int) -> npt.NDArray[np.int64]:
    """Number of the object each patch shows, from 1, or 0 for the background. `[T, grid, grid]`."""
    centers = (np.arange(grid) + 0.5) / grid
    shown = np.zeros((frames, grid, grid), np.int64)
    for frame in range(frames):
        time = (frame + 0.5) / frames
        for number, item in enumerate(scene.objects, start=1):
            x, y = item.xy(time)
            near = np.hypot(centers[None, :] - x, centers[:, None] - y) < item.radius * _INSIDE
            shown[frame][near & (time >= item.appears_at)] = number
    return shown


def _words(scene: Scene, item: MovingObject) -> tuple[int, ...]:
    """Position of the object's words in their groups."""
    in_order = len(scene.objects) > 1 and scene.objects[1].appears_at > 0.0
    return (
        GROUPS[0].index(item.color),
        GROUPS[1].index(item.shape),
        GROUPS[2].index(item.direction),
        scene.objects.index(item) if in_order else UNNAMED,
    )
