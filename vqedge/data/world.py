"""The generated world: coloured, textured shapes that move, grow, come and go before a background.

A clip is a pure function of `(seed, index)`: a `Scene` (what happens) is sampled here, frames are
drawn by `vqedge.data.render`, questions are asked by `vqedge.data.questions`. NumPy only, so that
the demo and the device tests make their own clips without torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

WORLD_VERSION = 3  # raise when a (seed, index) pair comes to show something else

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (240, 130, 30),
    "yellow": (240, 215, 50),
    "green": (40, 170, 70),
    "blue": (45, 85, 220),
    "purple": (130, 55, 175),
    "pink": (245, 150, 190),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
TEXTURES = ("plain", "striped", "spotted")
STILL = "nowhere"
_DIAGONAL = 0.5**0.5
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up and left": (-_DIAGONAL, -_DIAGONAL),
    "up and right": (_DIAGONAL, -_DIAGONAL),
    "down and left": (-_DIAGONAL, _DIAGONAL),
    "down and right": (_DIAGONAL, _DIAGONAL),
    STILL: (0.0, 0.0),
}
_MIRROR = {"left": "right", "right": "left", "up": "down", "down": "up", "and": "and"}
OPPOSITE = {way: " ".join(_MIRROR.get(word, word) for word in way.split(" ")) for way in DIRECTIONS}
MAX_OBJECTS = 4

_PLACEMENT_TRIES = 60
_SMALL, _LARGE = (0.085, 0.105), (0.14, 0.165)  # radii, as fractions of the frame's side
_GROWTH = 1.7
_SLOW, _FAST = (0.16, 0.28), (0.50, 0.75)  # frames' sides per clip
_SHORTEST_PATH = 0.22  # of a moving object: three patches, so that its direction can be seen
_TOUCH_TIMES = 17  # looked at, of the time that two objects share
_OCCLUSION_SHARE, _OCCLUSION_DEPTH = 0.25, 0.6
_SHAKE_SHARE, _CODEC_SHARE = 0.3, 0.4
_APART = 0.15  # of the clip, between two appearances whose order is asked
_SHORTEST_VISIT = 0.25  # of the clip, of an object that comes and goes: two of eight frames


@dataclass(frozen=True)
class MovingObject:
    """One shape on a straight path.

    Lengths are fractions of the frame's side, times of the clip.

    Attributes:
        travel: length of the path from appearing to vanishing.
        vanishes_at: 1.0 if it stays to the end.
        growth: radius at vanishing over radius at appearing.
    """

    color: str
    shape: str
    direction: str
    radius: float
    start_xy: tuple[float, float]
    travel: float
    appears_at: float = 0.0
    vanishes_at: float = 1.0
    texture: str = "plain"
    growth: float = 1.0

    def shows_at(self, time: float) -> bool:
        """Is it there at `time` in [0, 1]?"""
        return self.appears_at <= time < self.vanishes_at or time == self.vanishes_at == 1.0

    def xy(self, time: float) -> tuple[float, float]:
        """Centre at `time`, as fractions of the frame."""
        dx, dy = DIRECTIONS[self.direction]
        way = self.travel * self._progress(time)
        return self.start_xy[0] + dx * way, self.start_xy[1] + dy * way

    def radius_at(self, time: float) -> float:
        """Radius at `time`."""
        return self.radius * (1.0 + (self.growth - 1.0) * self._progress(time))

    @property
    def lasts(self) -> float:
        """Share of the clip that it is there."""
        return self.vanishes_at - self.appears_at

    @property
    def speed(self) -> float:
        """Frames' sides per clip."""
        return self.travel / self.lasts if self.direction != STILL else 0.0

    def _progress(self, time: float) -> float:
        return (time - self.appears_at) / self.lasts


@dataclass(frozen=True)
class Scene:
    """What one clip shows.

    Attributes:
        objects: in order of appearance, later ones in front.
        background_rgb: colour in the middle of the frame.
        noise_seed: of grain, shake and texture.
        slope: grey levels that the background rises to the right and downwards.
        mottle: grey levels of soft spots on the background.
        shake: how far the camera jumps, as a fraction of the frame's side.
        crf: H.264 quality the frames go through (higher is worse), None for untouched frames.
    """

    objects: tuple[MovingObject, ...]
    background_rgb: tuple[int, int, int]
    noise_seed: int
    slope: tuple[float, float] = (0.0, 0.0)
    mottle: float = 0.0
    shake: float = 0.0
    crf: int | None = None

    @cached_property
    def staggered(self) -> bool:
        """Do all objects appear one after another, so far apart that eight frames tell?"""
        starts = [item.appears_at for item in self.objects]
        return len(starts) > 1 and min(b - a for a, b in pairwise(starts)) >= _APART


def scene_from_seed(seed: int, index: int) -> Scene:
    """Sample the scene of clip `index` of the world `seed`; the same pair gives the same scene."""
    rng = np.random.default_rng([seed, index])
    count = int(rng.integers(1, MAX_OBJECTS + 1))
    colors = [str(color) for color in rng.permutation(list(COLORS))[:count]]
    lives = _lives(rng, count)
    occluding = count > 1 and rng.random() < _OCCLUSION_SHARE
    objects = _placed(rng, colors, lives, _OCCLUSION_DEPTH if occluding else 1.0)
    gray, tint = int(rng.integers(20, 110)), rng.integers(-12, 13, size=3)
    red, green, blue = (int(np.clip(gray + offset, 0, 255)) for offset in tint)
    return Scene(
        objects,
        background_rgb=(red, green, blue),
        noise_seed=int(rng.integers(2**31)),
        slope=(float(rng.uniform(-25, 25)), float(rng.uniform(-25, 25))),
        mottle=float(rng.uniform(0, 10)),
        shake=float(rng.uniform(0.005, 0.02)) if rng.random() < _SHAKE_SHARE else 0.0,
        crf=int(rng.integers(26, 38)) if rng.random() < _CODEC_SHARE else None,
    )


def reversed_scene(scene: Scene) -> Scene:
    """What the clip shows when it is played backwards."""
    turned = (
        replace(
            item,
            direction=OPPOSITE[item.direction],
            start_xy=item.xy(item.vanishes_at),
            radius=item.radius * item.growth,
            growth=1.0 / item.growth,
            appears_at=1.0 - item.vanishes_at,
            vanishes_at=1.0 - item.appears_at,
        )
        for item in scene.objects
    )
    return replace(scene, objects=tuple(sorted(turned, key=lambda item: item.appears_at)))


def _lives(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """When each object appears and vanishes, in order of appearance.

    Four parts in ten of the clips: all there all the time; three: one after another, each for as
    long as chance has it, so that only the order of the frames tells who came first; three: some
    come late, some go early, and of several at least one stays and one goes.
    """
    draw = rng.random()
    if draw < 0.4:
        return [(0.0, 1.0)] * count
    if draw < 0.7 and count > 1:
        gaps = 0.20 + (0.62 / (count - 1) - 0.20) * rng.random(count - 1)
        starts = np.concatenate([[0.0], gaps.cumsum()])
        ends = starts + rng.uniform(_SHORTEST_VISIT, 1.0 - starts[-1], count)
        return [(float(a), float(b)) for a, b in zip(starts, ends, strict=True)]
    comes_late = rng.random(count) < 0.5
    goes_early = rng.random(count) < 0.5
    if count > 1 and goes_early.all() | ~goes_early.any():
        goes_early[int(rng.integers(count))] ^= True
    starts = np.where(comes_late, rng.uniform(0.20, 0.40, count), 0.0)
    ends = np.where(goes_early, rng.uniform(0.62, 0.82, count), 1.0)
    return sorted((float(a), float(b)) for a, b in zip(starts, ends, strict=True))


def _placed(
    rng: np.random.Generator,
    colors: list[str],
    lives: list[tuple[float, float]],
    clearance: float,
) -> tuple[MovingObject, ...]:
    """Objects whose centres keep `clearance` times the sum of their radii apart, one by one."""
    placed: list[MovingObject] = []
    for color, life in zip(colors, lives, strict=True):
        tries = (_random_object(rng, color, life) for _ in range(_PLACEMENT_TRIES))
        best, best_gap = next(tries), -np.inf
        for candidate in tries:
            gap = min((_gap(candidate, other) for other in placed), default=np.inf)
            if gap > best_gap:
                best, best_gap = candidate, gap
            if best_gap >= clearance:
                break
        placed.append(best)
    return tuple(placed)


def _gap(a: MovingObject, b: MovingObject) -> float:
    """Smallest distance of the centres while both are there, over the sum of the radii."""
    first, last = max(a.appears_at, b.appears_at), min(a.vanishes_at, b.vanishes_at)
    if first >= last:
        return float("inf")
    times = np.linspace(first, last, _TOUCH_TIMES)
    apart = np.hypot(*(_centers(a, times) - _centers(b, times)))
    reach = max(a.radius, a.radius * a.growth) + max(b.radius, b.radius * b.growth)
    return float(apart.min() / reach)


def _centers(item: MovingObject, times: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.array(item.xy(times))  # type: ignore[arg-type]


def _random_object(rng: np.random.Generator, color: str, life: tuple[float, float]) -> MovingObject:
    direction = str(rng.choice(list(DIRECTIONS)))
    change = rng.random()
    growth = _GROWTH if change < 0.15 else 1.0 / _GROWTH if change < 0.30 else 1.0
    small = growth > 1.0 or (growth == 1.0 and rng.random() < 0.5)
    radius = float(rng.uniform(*(_SMALL if small else _LARGE)))
    widest = radius * max(growth, 1.0)
    speed = float(rng.uniform(*(_SLOW if rng.random() < 0.5 else _FAST)))
    travel = min(max(speed * (life[1] - life[0]), _SHORTEST_PATH), 1.0 - 2.0 * widest)
    travel = 0.0 if direction == STILL else travel
    start = tuple(
        _start_on_axis(rng, part * travel, radius, radius * growth, life)
        for part in DIRECTIONS[direction]
    )
    shape, texture = str(rng.choice(SHAPES)), str(rng.choice(TEXTURES))
    return MovingObject(
        color, shape, direction, radius, (start[0], start[1]), travel, *life, texture, growth
    )


def _start_on_axis(
    rng: np.random.Generator,
    way: float,
    first_radius: float,
    last_radius: float,
    life: tuple[float, float],
) -> float:
    """A start that keeps the path inside the frame on this axis.

    An object that comes late or goes early does so, half of the time, over the edge: the path is
    moved until its first or last centre lies on it.
    """
    low = max(first_radius, last_radius - way)
    high = min(1.0 - first_radius, 1.0 - last_radius - way)
    late, early = life[0] > 0.0, life[1] < 1.0
    if abs(way) >= _SHORTEST_PATH * _DIAGONAL and (late or early) and rng.random() < 0.5:
        edge = float(way > 0) if early else float(way < 0)
        return edge - way if early else edge
    return float(rng.uniform(low, max(low, high)))
