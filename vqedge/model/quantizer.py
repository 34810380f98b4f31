"""Per-clip quantizer: deterministic cosine k-means over all patches of a clip (VQToken, Eq. 3-4).

What the paper leaves open is fixed so that two runtimes agree on the ids: a farthest-first start
(KKZ) instead of random seeds, a fixed number of iterations, centroids of the raw features, and
labels in order of first occurrence. Every assignment is one NearestCodebook. Shapes are static: a
budget below `codes` switches the last codes off and the mask says so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.model.nearest_codebook import nearest_codebook

_NORM_EPS = 1e-6
_FAR = 8.0  # every element of a switched-off code: far from all unit vectors, never the nearest


class Quantized(NamedTuple):
    """A clip in codes. N patches, K rows, D features."""

    codes: Tensor  # float [K, D], centroids of raw features; zero where unused
    indices: Tensor  # int32 [N], in 0..K-1, by first occurrence
    mask: Tensor  # bool [K], True where the code occurs
    margin: Tensor  # float32 [N], of the last assignment


class KMeansQuantizer(nn.Module):
    """Cosine k-means with a static number of code rows.

    Args:
        codes: rows K of the result, the largest budget.
        iterations: assign-and-update rounds before the last assignment.
    """

    def __init__(self, codes: int, iterations: int) -> None:
        super().__init__()
        self.slot: Tensor
        self.codes, self.iterations = codes, iterations
        self.register_buffer("slot", torch.arange(codes), persistent=False)

    def forward(self, features: Tensor, budget: Tensor) -> Quantized:
        """Quantise one clip.

        Args:
            features: float `[N, D]`.
            budget: int64 scalar in `1..codes`.
        """
        unit = F.normalize(features, dim=1, eps=_NORM_EPS)
        active = (self.slot < budget)[:, None]
        centroids = _farthest_first(features, unit, self.codes)
        for _ in range(self.iterations):
            indices, _margin = nearest_codebook(unit, self._searchable(centroids, active), "l2")
            centroids = _centroids(features, self._one_hot(indices), centroids)
        indices, margin = nearest_codebook(unit, self._searchable(centroids, active), "l2")
        one_hot = self._one_hot(indices)
        codes = _centroids(features, one_hot, torch.zeros_like(centroids))
        order = _first_occurrence_order(one_hot)
        rank = torch.zeros_like(order).scatter(0, order, self.slot)
        mask = (one_hot.sum(dim=0) > 0)[order]
        return Quantized(codes[order], rank[indices.long()].to(torch.int32), mask, margin)

    def _searchable(self, centroids: Tensor, active: Tensor) -> Tensor:
        """Unit centroids, switched-off rows moved out of reach."""
        unit = F.normalize(centroids, dim=1, eps=_NORM_EPS)
        return torch.where(active, unit, torch.full_like(unit, _FAR))

    def _one_hot(self, indices: Tensor) -> Tensor:
        return (indices[:, None] == self.slot).to(torch.float32)


def _farthest_first(features: Tensor, unit: Tensor, codes: int) -> Tensor:
    """KKZ start: the row of largest norm, then always the row farthest from those chosen. `[K, D]`.

    A prefix of the result is the start for a smaller budget.
    """
    chosen = features.square().sum(dim=1).argmax(dim=0, keepdim=True)
    rows = [features[chosen]]
    nearest = unit @ unit[chosen][0]
    for _ in range(codes - 1):
        chosen = nearest.argmin(dim=0, keepdim=True)
        rows.append(features[chosen])
        nearest = torch.maximum(nearest, unit @ unit[chosen][0])
    return torch.cat(rows)


def _centroids(features: Tensor, one_hot: Tensor, empty: Tensor) -> Tensor:
    """Mean of the members of each code `[K, D]`, or its row of `empty` without members."""
    count = one_hot.sum(dim=0)[:, None]
    mean = one_hot.T @ features / count.clamp(min=1.0)
    return torch.where(count > 0, mean, empty)


def _first_occurrence_order(one_hot: Tensor) -> Tensor:
    """Codes sorted by the patch they first occur at, unused ones last. int64 `[K]`."""
    patches, codes = one_hot.shape
    position = torch.arange(patches, device=one_hot.device, dtype=torch.float32)[:, None]
    first = torch.where(one_hot > 0, position, float(patches)).amin(dim=0)
    unique = first + torch.arange(codes, device=one_hot.device) / (2.0 * codes)
    return unique.topk(codes, largest=False, sorted=True).indices
