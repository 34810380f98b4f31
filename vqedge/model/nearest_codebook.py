"""NearestCodebook as a PyTorch op: `torch.ops.vqedge.nearest_codebook(x, codebook, metric)`.

A registered op, not a function of aten calls, so that an export keeps it as one node.
Contract: `vqedge.nearest_codebook`.
"""

from __future__ import annotations

from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from vqedge.nearest_codebook import COSINE_EPS, Metric


@torch.library.custom_op("vqedge::nearest_codebook", mutates_args=())
def nearest_codebook(x: Tensor, codebook: Tensor, metric: str = "l2") -> tuple[Tensor, Tensor]:
    """Assign every row of `x [N, D]` to its nearest row of `codebook [K, D]`.

    Returns:
        indices int32 `[N]`, ties of scores to the lowest, and margin float32 `[N]`. Codes that are
        equal bit for bit need not tie: the product may round them differently (contract).

    Raises:
        ValueError: the metric is unknown.
    """
    return _nearest(x, codebook, metric)


@nearest_codebook.register_fake
def _(x: Tensor, codebook: Tensor, metric: str = "l2") -> tuple[Tensor, Tensor]:
    rows = x.shape[0]
    return x.new_empty(rows, dtype=torch.int32), x.new_empty(rows, dtype=torch.float32)


@nearest_codebook.register_vmap
def _(
    _info: Any, in_dims: tuple[int | None, ...], x: Tensor, codebook: Tensor, metric: str = "l2"
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    """Several `x`, several codebooks, or as many of both."""
    x, codebook = (
        part if dim is None else part.movedim(dim, 0)
        for part, dim in zip((x, codebook), in_dims[:2], strict=True)
    )
    return _nearest(x, codebook, metric), (0, 0)


def _nearest(x: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The op; both may have dimensions in front, `[..., N, D]` and `[..., K, D]`."""
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {get_args(Metric)}, got {metric!r}")
    rows, codes = x.float(), codebook.float()
    if metric == "cosine":
        rows, codes = (
            F.normalize(rows, dim=-1, eps=COSINE_EPS),
            F.normalize(codes, dim=-1, eps=COSINE_EPS),
        )
    scores = rows @ codes.mT
    if metric == "l2":
        scores = 2.0 * scores - (codes * codes).sum(dim=-1)[..., None, :]
    broken = scores.isnan().any(dim=-1)
    scores = scores.masked_fill(broken[..., None], 0.0)
    indices = scores.argmax(dim=-1, keepdim=True)
    best = scores.gather(-1, indices)[..., 0]
    others = scores.scatter(-1, indices, float("-inf")).amax(dim=-1)
    margin = (best - others).masked_fill(broken, 0.0)
    return indices[..., 0].to(torch.int32), margin
