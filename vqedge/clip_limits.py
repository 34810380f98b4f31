"""How large a clip may be, wherever one is described: in a recipe, a checkpoint, a bundle."""

from __future__ import annotations

MAX_SIZE = 4096  # pixels per side
MAX_BYTES = 768 << 20  # of all frames
MAX_PATCHES = 1 << 16  # as many as a segment of a `.vqt` may have


def require_clip_fits(frames: int, size: int, grid: int) -> None:
    """See that a clip has no more bytes and patches than any may have.

    Args:
        frames: T.
        size: pixels per side.
        grid: patches per side.

    Raises:
        ValueError: it has more.
    """
    if frames * size * size * 3 > MAX_BYTES or frames * grid * grid > MAX_PATCHES:
        raise ValueError(f"{frames} frames, size {size}, grid {grid} are too many")
