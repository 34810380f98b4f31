"""Draw a `Scene` as frames, and write frames as a real mp4 file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqedge.data.world import COLORS, MovingObject, Scene

_Plane = npt.NDArray[np.float32]

_NOISE_LEVEL = 4.0  # standard deviation of the background's grain, in grey levels


def frames_from_scene(scene: Scene, frames: int, size: int = 224) -> npt.NDArray[np.uint8]:
    """Draw the scene at `frames` instants, the centres of equal parts of the clip.

    Returns:
        uint8 RGB, shape `[frames, size, size, 3]`.
    """
    return np.stack([_frame(scene, (i + 0.5) / frames, size) for i in range(frames)])


def write_mp4(path: Path, frames_thwc: npt.NDArray[np.uint8], fps: int = 8) -> None:
    """Encode uint8 RGB frames `[T, H, W, 3]` (even H and W) as H.264 in mp4."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": "20"})
        stream.height, stream.width = frames_thwc.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames_thwc:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _frame(scene: Scene, time: float, size: int) -> npt.NDArray[np.uint8]:
    rng = np.random.default_rng([scene.noise_seed, round(time * 1e6)])
    grain = rng.standard_normal((size, size, 1), dtype=np.float32) * _NOISE_LEVEL
    canvas = np.asarray(scene.background_rgb, np.float32) + grain
    for item in scene.objects:
        if time >= item.appears_at:
            _draw(canvas, item, time, size)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _draw(canvas: npt.NDArray[np.float32], item: MovingObject, time: float, size: int) -> None:
    """Blend the object into the canvas, touching only the pixels around it."""
    x, y = (value * size for value in item.xy(time))
    radius = item.radius * size
    top, bottom = max(int(y - radius) - 1, 0), min(int(y + radius) + 2, size)
    left, right = max(int(x - radius) - 1, 0), min(int(x + radius) + 2, size)
    rows, columns = np.mgrid[top:bottom, left:right].astype(np.float32) + 0.5
    distance = _SIGNED_DISTANCES[item.shape]((columns - x) / radius, (rows - y) / radius) * radius
    alpha = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
    patch = canvas[top:bottom, left:right]
    patch += alpha * (np.asarray(COLORS[item.color], np.float32) - patch)


def _circle(x: _Plane, y: _Plane) -> _Plane:
    radius: _Plane = np.hypot(x, y)
    return radius - np.float32(1.0)


def _square(x: _Plane, y: _Plane) -> _Plane:
    side: _Plane = np.maximum(np.abs(x), np.abs(y))
    return side - np.float32(0.8)


def _triangle(x: _Plane, y: _Plane) -> _Plane:
    flanks = 0.866 * np.abs(x) - 0.5 * y - np.float32(0.45)
    edge: _Plane = np.maximum(y - np.float32(0.6), flanks)
    return edge


def _star(x: _Plane, y: _Plane) -> _Plane:
    """Five points: the outline's radius as a function of the angle."""
    inner, half = 0.42, np.pi / 5
    sector = np.arctan2(x, -y) % (2 * half)
    tip = np.minimum(sector, 2 * half - sector)
    slope = np.sin(tip) * (1 - inner * np.cos(half)) + inner * np.sin(half) * np.cos(tip)
    edge = inner * np.sin(half) / slope
    distance: _Plane = (np.hypot(x, y) - edge).astype(np.float32)
    return distance * np.float32(0.7)


# Distance to the outline of a shape about the size of the unit circle; negative inside.
_SIGNED_DISTANCES: dict[str, Callable[[_Plane, _Plane], _Plane]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
}
