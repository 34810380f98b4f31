"""Write the demo clip: `python -m vqedge.data.demo build/demo.mp4`.

A red circle that moves to the left, and others.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vqedge.data.render import frames_from_scene, write_mp4
from vqedge.data.world import MovingObject, Scene

DEMO_SCENE = Scene(
    objects=(
        MovingObject("red", "circle", "left", 0.12, (0.80, 0.30), 0.50, 0.0),
        MovingObject("blue", "square", "right", 0.11, (0.20, 0.72), 0.50, 0.0),
    ),
    background_rgb=(64, 66, 70),
    noise_seed=7,
)
_FPS, _SECONDS = 16, 3


def write_demo(path: Path) -> None:
    """Draw three seconds of the demo scene as H.264."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mp4(path, frames_from_scene(DEMO_SCENE, _FPS * _SECONDS), fps=_FPS)


if __name__ == "__main__":
    write_demo(Path(sys.argv[1]))
