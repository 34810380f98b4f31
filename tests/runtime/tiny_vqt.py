"""Small `.vqt` files, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqedge_runtime.tokens import Codes
from vqedge_runtime.vqt import Header, Origin, Segment, vqt_bytes

LEARNED: dict[str, Any] = {
    "kind": "codebook",
    "levels": 2,
    "width": 16,
    "codebook_sha256": "cc" * 32,
}


def header(**changes: Any) -> Header:
    """A header of two frames of 2 x 2 patches and at most four codes of three numbers."""
    values: dict[str, Any] = {
        "kind": "kmeans",
        "levels": 0,
        "width": 3,
        "frames": 2,
        "grid_height": 2,
        "grid_width": 2,
        "codes": 4,
        "encoder_sha256": "ee" * 32,
        "bridge_sha256": "bb" * 32,
        "budget": 4,
        "origin": Origin(1000, "aa" * 32),
    }
    return Header(**(values | changes))


def segment(start_us: int = 0, learned: bool = False) -> Segment:
    """Half a second with three codes."""
    index_map = np.array([[[0, 0], [1, 0]], [[0, 2], [1, 1]]], np.int32)
    ids = np.array([[1, 2], [3, 4], [15, 0]], np.int32)
    codes = np.array([[1, 2, 3], [-0.5, 0, 65504], [6e-8, 4, 5]], np.float16)
    times = (start_us + 125_000, start_us + 375_000)
    return Segment(start_us, 500_000, times, Codes(index_map, ids if learned else codes))


def tiny_file(learned: bool = False, segments: int = 1, bits: int = 0) -> bytes:
    """A whole file."""
    head = header(**(LEARNED if learned else {}), bits=bits)
    return vqt_bytes(head, [segment(n * 500_000, learned) for n in range(segments)])
