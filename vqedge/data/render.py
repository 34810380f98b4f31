"""Draw a `Scene` as frames, and write frames as a real mp4 file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from vqedge.data.world import COLORS, MovingObject, Scene

_Plane = npt.NDArray[np.float32]

_NOISE_LEVEL = 4.0  # standard deviation of the background's grain, in grey levels
_MOTTLE_CELLS = 8  # soft spots per side
# With several threads, or with the macroblock tree on AVX-512, x264's bytes differ now and then.
_REPEATABLE = "threads=1:lookahead-threads=1:mbtree=0"
_ACCENT = 0.5  # stripes and spots are this much of the object's colour


def frames_from_scene(scene: Scene, frames: int, size: int = 224) -> npt.NDArray[np.uint8]:
    """Draw the scene at `frames` instants, the centres of equal parts of the clip.

    Returns:
        uint8 RGB, shape `[frames, size, size, 3]`.
    """
    background = _background(scene, size)
    drawn = np.stack([_frame(scene, background, (i + 0.5) / frames) for i in range(frames)])
    return drawn if scene.crf is None else through_codec(drawn, scene.crf)


def write_mp4(
    file: Path | BinaryIO, frames_thwc: npt.NDArray[np.uint8], fps: int = 8, crf: int = 20
) -> None:
    """Encode uint8 RGB frames `[T, H, W, 3]` (even H and W) as H.264 in mp4."""
    import av

    target = str(file) if isinstance(file, Path) else file
    options = {"crf": str(crf), "x264-params": _REPEATABLE}
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames_thwc.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames_thwc:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def through_codec(frames_thwc: npt.NDArray[np.uint8], crf: int) -> npt.NDArray[np.uint8]:
    """What is left of the frames after H.264 at this quality; shape as before."""
    import av

    buffer = io.BytesIO()
    write_mp4(buffer, frames_thwc, crf=crf)
    buffer.seek(0)
    with av.open(buffer, "r") as container:
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(decoded)


def _background(scene: Scene, size: int) -> _Plane:
    """The still part of the picture, float32 `[size, size, 3]`."""
    rng = np.random.default_rng([scene.noise_seed])
    ramp: _Plane = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5).astype(np.float32)
    right, down = (np.float32(slope) for slope in scene.slope)
    level: _Plane = ramp[None, :] * right + ramp[:, None] * down
    spots = rng.standard_normal((_MOTTLE_CELLS, _MOTTLE_CELLS)).astype(np.float32)
    weights = _interpolation(size, _MOTTLE_CELLS)
    level += np.float32(scene.mottle) * (weights @ spots @ weights.T)
    color: _Plane = np.asarray(scene.background_rgb, np.float32) + level[..., None]
    return color


def _interpolation(size: int, cells: int) -> _Plane:
    """Linear interpolation from `cells` points to `size` pixels, `[size, cells]`."""
    place = np.linspace(0, cells - 1, size, dtype=np.float32)[:, None]
    return np.maximum(1.0 - np.abs(place - np.arange(cells, dtype=np.float32)), 0.0)


def _frame(scene: Scene, background: _Plane, time: float) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng([scene.noise_seed, round(time * 1e6)])
    size = len(background)
    shift = np.clip(rng.normal(0.0, 1.0, 2), -2, 2) * scene.shake
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * _NOISE_LEVEL
    canvas: _Plane = background + grain
    for item in scene.objects:
        if item.shows_at(time):
            _draw(canvas, item, time, shift)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _draw(canvas: _Plane, item: MovingObject, time: float, shift: npt.NDArray[np.float64]) -> None:
    """Blend the object into the canvas, touching only the pixels around it."""
    size = len(canvas)
    x, y = (np.array(item.xy(time)) + shift) * size
    radius = item.radius_at(time) * size
    top, bottom = (int(np.clip(v, 0, size)) for v in (y - radius - 1, y + radius + 2))
    left, right = (int(np.clip(v, 0, size)) for v in (x - radius - 1, x + radius + 2))
    rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32) + 0.5
    u, v = (
        (columns - np.float32(x)) / np.float32(radius),
        (rows - np.float32(y)) / np.float32(radius),
    )
    alpha = np.clip(0.5 - _SIGNED_DISTANCES[item.shape](u, v) * radius, 0.0, 1.0)
    shade = 1.0 - (1.0 - _ACCENT) * _TEXTURES[item.texture](u, v)
    color = np.asarray(COLORS[item.color], np.float32) * shade[..., None]
    patch = canvas[top:bottom, left:right]
    patch += alpha[..., None] * (color - patch)


def _circle(x: _Plane, y: _Plane) -> _Plane:
    distance: _Plane = np.hypot(x, y) - np.float32(1.0)
    return distance


def _square(x: _Plane, y: _Plane) -> _Plane:
    distance: _Plane = np.maximum(np.abs(x), np.abs(y)) - np.float32(0.7)
    return distance


def _triangle(x: _Plane, y: _Plane) -> _Plane:
    flanks = 0.866 * np.abs(x) - 0.5 * y - np.float32(0.45)
    edge: _Plane = np.maximum(y - np.float32(0.45), flanks)
    return edge


def _star(x: _Plane, y: _Plane) -> _Plane:
    """Five points: the outline's radius as a function of the angle."""
    inner, half = 0.42, np.pi / 5
    sector = np.arctan2(x, -y) % (2 * half)
    tip = np.minimum(sector, 2 * half - sector)
    slope = np.sin(tip) * (1 - inner * np.cos(half)) + inner * np.sin(half) * np.cos(tip)
    edge = inner * np.sin(half) / slope
    distance: _Plane = (np.hypot(x, y) - edge).astype(np.float32) * np.float32(0.7)
    return distance


def _cross(x: _Plane, y: _Plane) -> _Plane:
    """Two bars, like a plus sign."""
    long, short = np.maximum(np.abs(x), np.abs(y)), np.minimum(np.abs(x), np.abs(y))
    bars: _Plane = np.maximum(long - np.float32(0.95), short - np.float32(0.3))
    return bars


def _ring(x: _Plane, y: _Plane) -> _Plane:
    distance: _Plane = np.abs(np.hypot(x, y) - np.float32(0.775)) - np.float32(0.225)
    return distance


# Distance to the outline of a shape inside the unit circle; negative inside the shape.
_SIGNED_DISTANCES: dict[str, Callable[[_Plane, _Plane], _Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}


def _plain(x: _Plane, _y: _Plane) -> _Plane:
    return np.zeros_like(x)


def _striped(x: _Plane, y: _Plane) -> _Plane:
    """Diagonal stripes."""
    wave: _Plane = np.sin((x + y) * np.float32(2.5 * np.pi))
    return (wave > 0.3).astype(np.float32)


def _spotted(x: _Plane, y: _Plane) -> _Plane:
    """Round dots on a grid of half a radius."""
    near: _Plane = np.hypot((x * 2.2) % 1.0 - 0.5, (y * 2.2) % 1.0 - 0.5)
    return (near < 0.25).astype(np.float32)


# Share of the dark accent at a point of the unit circle.
_TEXTURES: dict[str, Callable[[_Plane, _Plane], _Plane]] = {
    "plain": _plain,
    "striped": _striped,
    "spotted": _spotted,
}
