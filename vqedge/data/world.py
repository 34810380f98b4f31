"""The generated world: a few coloured shapes that move across a plain background.

A clip is a pure function of `(seed, index)`: a `Scene` (what happens) is sampled here, frames are
drawn by `vqedge.data.render`, questions are asked by `vqedge.data.questions`. NumPy only, so that
the demo and the device tests make their own clips without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 170, 70),
    "blue": (45, 85, 220),
    "yellow": (240, 210, 50),
    "purple": (140, 60, 180),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star")
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
MAX_OBJECTS = 3
_PLACEMENT_TRIES = 200


@dataclass(frozen=True)
class MovingObject:
    """One shape on a straight path.

    Lengths are fractions of the frame's side, times of the clip.
    """

    color: str
    shape: str
    direction: str
    radius: float
    start_xy: tuple[float, float]
    travel: float
    appears_at: float

    def xy(self, time: float) -> tuple[float, float]:
        """Centre at `time` in [0, 1], as fractions of the frame."""
        dx, dy = DIRECTIONS[self.direction]
        return self.start_xy[0] + dx * self.travel * time, self.start_xy[
            1
        ] + dy * self.travel * time


@dataclass(frozen=True)
class Scene:
    """What one clip shows: its objects (in order of appearance) and its background."""

    objects: tuple[MovingObject, ...]
    background_rgb: tuple[int, int, int]
    noise_seed: int


def scene_from_seed(seed: int, index: int) -> Scene:
    """Sample the scene of clip `index` of the world `seed`; the same pair gives the same scene."""
    rng = np.random.default_rng([seed, index])
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    colors = rng.permutation(list(COLORS))[:count]
    starts = _appearance_times(rng, count)
    for _ in range(_PLACEMENT_TRIES):
        objects = tuple(
            _random_object(rng, str(color), start)
            for color, start in zip(colors, starts, strict=True)
        )
        if not _objects_touch(objects):
            break
    gray = int(rng.integers(20, 110))
    tint = rng.integers(-12, 13, size=3)
    background = tuple(int(np.clip(gray + offset, 0, 255)) for offset in tint)
    return Scene(objects, background, noise_seed=int(rng.integers(2**31)))  # type: ignore[arg-type]


def reversed_scene(scene: Scene) -> Scene:
    """What the clip shows when it is played backwards.

    Objects that appeared late now vanish early, so nothing appears after the start any more.
    """
    objects = tuple(
        replace(item, direction=OPPOSITE[item.direction], start_xy=item.xy(1.0), appears_at=0.0)
        for item in scene.objects
    )
    return replace(scene, objects=objects)


def _appearance_times(rng: np.random.Generator, count: int) -> list[float]:
    """All at once in half of the clips; otherwise one after another, clearly apart."""
    if count == 1 or rng.random() < 0.5:
        return [0.0] * count
    gaps = 0.30 + 0.08 * rng.random(count - 1)
    return [0.0, *np.cumsum(gaps).tolist()]


def _random_object(rng: np.random.Generator, color: str, appears_at: float) -> MovingObject:
    radius = float(rng.uniform(0.08, 0.13))
    travel = float(rng.uniform(0.35, 0.6))
    direction = str(rng.choice(list(DIRECTIONS)))
    dx, dy = DIRECTIONS[direction]
    start = (_start_on_axis(rng, dx, travel, radius), _start_on_axis(rng, dy, travel, radius))
    shape = str(rng.choice(SHAPES))
    return MovingObject(color, shape, direction, radius, start, travel, appears_at)


def _start_on_axis(rng: np.random.Generator, sign: float, travel: float, radius: float) -> float:
    """A start that keeps the whole path inside the frame on this axis."""
    low, high = radius, 1.0 - radius
    if sign > 0:
        high -= travel
    if sign < 0:
        low += travel
    return float(rng.uniform(low, high))


def _objects_touch(objects: tuple[MovingObject, ...]) -> bool:
    times = np.linspace(0.0, 1.0, 8)
    for i, a in enumerate(objects):
        for b in objects[i + 1 :]:
            for time in times:
                ax, ay = a.xy(float(time))
                bx, by = b.xy(float(time))
                if np.hypot(ax - bx, ay - by) < a.radius + b.radius:
                    return True
    return False
