"""NearestCodebook in float64 PyTorch, on any device: what GPU results are held against."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vqedge.nearest_codebook import COSINE_EPS

_SLICE_SCORES = 1 << 26  # float64 scores at a time: half a gigabyte


@dataclass(frozen=True)
class Choice:
    """Ids and margins; `margin` is what decides whether another id counts as wrong."""

    indices: Tensor
    margin: Tensor


@dataclass(frozen=True)
class Agreement:
    """How a result compares with the reference."""

    flipped: int  # ids that differ
    wrong: int  # of these, with a reference margin above the tolerance
    worst_margin: float  # largest difference of margins

    @property
    def ok(self) -> bool:
        return self.wrong == 0


def float64_choice(x: Tensor, codebook: Tensor, metric: str) -> Choice:
    """Ids to the lowest of the best, margins; rows with a NaN score give 0 and 0."""
    step = max(1, _SLICE_SCORES // len(codebook))
    parts = [_choice(part, codebook, metric) for part in x.split(step)] if len(x) else []
    if not parts:
        return Choice(x.new_empty(0, dtype=torch.int64), x.new_empty(0, dtype=torch.float64))
    return Choice(*(torch.cat(column) for column in zip(*parts, strict=True)))


def agreement(indices: Tensor, margin: Tensor, reference: Choice, tolerance: float) -> Agreement:
    """Compare a result with the reference, ids and margins."""
    flips = indices.long() != reference.indices
    sure = reference.margin > tolerance
    both = torch.isfinite(reference.margin) & torch.isfinite(margin)
    apart = (margin.double() - reference.margin).abs()[both]
    worst = float(apart.max()) if len(apart) else 0.0
    return Agreement(int(flips.sum()), int((flips & sure).sum()), worst)


def _choice(x: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    scores = _scores(x.double(), codebook.double(), metric)
    broken = scores.isnan().any(dim=1)
    scores = scores.masked_fill(broken[:, None], 0.0)
    best = scores.amax(dim=1, keepdim=True)
    slots = torch.arange(scores.shape[1], device=x.device)
    indices = torch.where(scores == best, slots, scores.shape[1]).amin(dim=1)
    others = scores.scatter(1, indices[:, None], float("-inf")).amax(dim=1)
    return indices, (best[:, 0] - others).masked_fill(broken, 0.0)


def _scores(rows: Tensor, codes: Tensor, metric: str) -> Tensor:
    if metric == "cosine":
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(COSINE_EPS)
        codes = codes / codes.norm(dim=1, keepdim=True).clamp_min(COSINE_EPS)
    product = rows @ codes.T
    return 2.0 * product - (codes * codes).sum(dim=1) if metric == "l2" else product
