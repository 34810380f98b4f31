"""Small clips for reducers: random ones, and ones that stand still so that everything ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vqedge.model.reducers.protocol import Reduced
from vqedge.model.reducers.registry import Sizes, make_reducer

Array = np.ndarray[Any, Any]
FRAMES, GRID, WIDTH, CODES = 4, 6, 16, 12
SIZES = Sizes(CODES, FRAMES, GRID, WIDTH, text_width=10, budget=CODES)
PATCHES = GRID * GRID


def clip_of(seed: int, frames: int = FRAMES, grid: int = GRID, width: int = WIDTH) -> Tensor:
    """Features `[T, n, D]`: a few kinds of patches with noise, as a ViT gives them."""
    generator = torch.Generator().manual_seed(seed)
    kinds = torch.randn(5, width, generator=generator)
    kind = torch.randint(5, (frames, grid * grid), generator=generator)
    noise = torch.randn(frames, grid * grid, width, generator=generator)
    return kinds[kind] + 0.4 * noise


def still_clip(seed: int) -> Tensor:
    """The same frame again and again."""
    return clip_of(seed)[:1].expand(FRAMES, -1, -1).contiguous()


def attention_of(seed: int) -> Tensor:
    """What a CLS token might attend to, `[T, n]`; every frame sums to less than 1."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.rand(FRAMES, PATCHES, generator=generator).pow(4).mul(3).softmax(dim=1) * 0.9


def reduced(name: str, clip: Tensor, budget: int, attention: Tensor | None = None) -> Reduced:
    """A clip through a reducer of the registry."""
    side = int(clip.shape[1] ** 0.5)
    sizes = SIZES._replace(frames=len(clip), grid=side, width=clip.shape[2])
    reducer = make_reducer(name, sizes)
    found: Reduced = reducer.reduce(clip, torch.tensor(budget), attention)
    return found


def cosines(a: Array, b: Array) -> Array:
    """Of all pairs, float64."""
    a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
    return np.asarray(a @ b.T)


def first(values: Array, count: int) -> list[int]:
    """Where the largest are, ties to the lowest index."""
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]


def shares(budget: int, frames: int, most: int) -> list[tuple[range, range]]:
    """Frames and rows of every segment, by dividing in turn."""
    count = min(budget, most)
    cut = [[f for f in range(frames) if f * count // frames == s] for s in range(count)]
    rows = [range(s * budget // count, (s + 1) * budget // count) for s in range(count)]
    return [(range(f[0], f[-1] + 1), r) for f, r in zip(cut, rows, strict=True)]
