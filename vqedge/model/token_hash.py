"""The token hash: where and when every code occurs, whatever its number.

VQToken (Eq. 5) keeps an index map M [T, h, w]. Reading its ids as numbers makes the result change
when the codes are renumbered; occupancy features are permutation-equivariant instead.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FEATURES_PER_FRAME = 5  # presence, mass, centroid x, centroid y, spread
MOTION_FEATURES = 3  # velocity in x and y, rate of growth
_SHORTEST_SPAN = 1e-3  # squared time; a code of one frame has no slope
MASS_SCALE = 4.0  # sqrt(mass) of a small object is about 0.1 to 0.3; brought near one


class TokenHash(NamedTuple):
    """Where and when each code occurs."""

    features: Tensor  # float32 [B, K, T * 5 + 3]
    mask: Tensor  # bool [B, K], True where the code occurs at all


def token_hash(indices: Tensor, frames: int, codes: int) -> TokenHash:
    """Occupancy features of every code in every frame.

    Args:
        indices: integer `[B, T * grid * grid]`, values in `0..codes - 1`; any other is no code.
        frames: T.
        codes: K.

    Returns:
        per code and frame: presence (0 or 1), sqrt of the share of the frame, centroid x and y in
        [-1, 1], and standard deviation around it; all zero in frames without the code. Then per
        code: the slopes of a straight line through the centroids and through the mass, over the
        frames it occurs in; zero for a code of a single frame.
    """
    batch, patches = indices.shape
    grid = int((patches // frames) ** 0.5)
    slot = torch.arange(codes, device=indices.device)
    occupancy = (indices.reshape(batch, frames, -1, 1) == slot).to(torch.float32)
    x, y = _grid_coordinates(grid, indices.device)
    count = occupancy.sum(dim=2)
    present = (count > 0).to(torch.float32)
    share = 1.0 / count.clamp(min=1.0)
    center_x = (occupancy * x).sum(dim=2) * share
    center_y = (occupancy * y).sum(dim=2) * share
    squares = (occupancy * (x * x + y * y)).sum(dim=2) * share
    spread = (squares - center_x.square() - center_y.square()).clamp(min=0.0).sqrt()
    mass = (count / (grid * grid)).sqrt() * MASS_SCALE
    table = torch.stack([present, mass, center_x, center_y, spread], dim=-1)  # [B, T, K, 5]
    shortest = min(_SHORTEST_SPAN, 1.0 / frames**2)  # two frames one after another have 2 / T^2
    motion = _slopes(torch.stack([center_x, center_y, mass], dim=-1), present, shortest)
    features = torch.cat([table.permute(0, 2, 1, 3).flatten(2), motion], dim=2)
    return TokenHash(features, count.sum(dim=1) > 0)


def clip_hash(index_map: Tensor, codes: int) -> TokenHash:
    """`token_hash` of one clip, from its index map: integer `[T, grid, grid]`."""
    return token_hash(index_map.reshape(1, -1), len(index_map), codes)


def hash_width(frames: int) -> int:
    """Features of a code in a clip of `frames` frames."""
    return frames * FEATURES_PER_FRAME + MOTION_FEATURES


def _slopes(values: Tensor, present: Tensor, shortest: float) -> Tensor:
    """Least-squares slopes over time, from -1 to 1, of values `[B, T, K, F]` where present.

    A span below `shortest`, squared, is that of one frame.

    Returns:
        `[B, K, F]`, in units a clip's half.
    """
    frames = values.shape[1]
    weight = present[..., None]
    time = (torch.arange(frames, device=values.device, dtype=torch.float32) + 0.5) * 2.0 / frames
    share = 1.0 / weight.sum(dim=1, keepdim=True).clamp(min=1.0)
    offset = weight * (time[:, None, None] - (weight * time[:, None, None]).sum(1, True) * share)
    across = (offset * values).sum(dim=1)
    return across / offset.square().sum(dim=1).clamp(min=shortest)


def _grid_coordinates(grid: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Patch centres in [-1, 1], row-major, each `[grid * grid, 1]`."""
    axis = (torch.arange(grid, device=device, dtype=torch.float32) + 0.5) * (2.0 / grid) - 1.0
    x = axis.repeat(grid)[:, None]
    y = axis[:, None].expand(grid, grid).reshape(-1, 1)
    return x, y
