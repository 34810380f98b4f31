"""Per-clip quantizer: deterministic cosine k-means over all patches of a clip (VQToken, Eq. 3-4).

What the paper leaves open is fixed so that two runtimes agree on the ids: a farthest-first start
(KKZ) instead of random seeds, a fixed number of iterations, centroids of the raw features, and
labels in order of first occurrence. Every assignment is one NearestCodebook. Shapes are static: a
budget below `codes` switches the last codes off and the mask says so. The adaptive budget is read
off the farthest-first start, every prefix of which is a codebook.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.budget import ADAPTIVE
from vqedge.model.nearest_codebook import nearest_codebook

_NORM_EPS = 1e-6
_FAR = 8.0  # every element of a switched-off code: far from all unit vectors, never the nearest
_TOGETHER = 16  # clips: more would take memory and save few launches


class Quantized(NamedTuple):
    """A clip in codes, or several, stacked. N patches, K rows, D features."""

    codes: Tensor  # float [K, D], centroids of raw features; zero where unused
    indices: Tensor  # int32 [N], in 0..K-1, by first occurrence
    mask: Tensor  # bool [K], True where the code occurs
    margin: Tensor  # float32 [N], of the last assignment


class Assignment(NamedTuple):
    """One round of k-means."""

    indices: Tensor  # int32 [N], in 0..K-1, by order of the start
    margin: Tensor  # float32 [N], how safe each choice is


class KMeansQuantizer(nn.Module):
    """Cosine k-means with a static number of code rows.

    Args:
        codes: rows K of the result, the largest budget.
        iterations: assign-and-update rounds before the last assignment.
        adaptive_error: mean cosine distance that the adaptive budget has to reach.
        unit_means: codes are means of features of length one; the start is of the raw ones.
    """

    def __init__(
        self, codes: int, iterations: int, adaptive_error: float, unit_means: bool = False
    ) -> None:
        super().__init__()
        self.slot: Tensor
        self.unit_means = unit_means
        self.codes, self.iterations, self.adaptive_error = codes, iterations, adaptive_error
        self.register_buffer("slot", torch.arange(codes), persistent=False)

    def forward(self, features: Tensor, budget: Tensor, text: Tensor | None = None) -> Quantized:
        """Quantise one clip.

        Args:
            features: float `[N, D]`.
            budget: int64 scalar in `1..codes`, or `ADAPTIVE`.
            text: a question, which codes do not follow.
        """
        *_, last = self.rounds(features, budget)
        return self.summarised(features, *last)

    def rounds(self, features: Tensor, budget: Tensor) -> Iterator[Assignment]:
        """Every assignment of `forward`, the last one last; budgets as there."""
        start, errors = farthest_first(features, self.codes)
        return self.rounds_from(features, start, self.settled(budget, errors))

    def settled(self, budget: Tensor, errors: Tensor) -> Tensor:
        """The budget as a number of codes: the adaptive one from the errors of every prefix."""
        enough = 1 + (errors[:-1] > self.adaptive_error).sum()
        return torch.where(budget == ADAPTIVE, enough, budget)

    def rounds_from(self, features: Tensor, start: Tensor, budget: Tensor) -> Iterator[Assignment]:
        """Rounds of k-means from the first `budget` rows of `start [K, D]`."""
        looks = unit(features)
        active = (self.slot < budget)[:, None]
        centroids = start
        for _ in range(self.iterations):
            found = Assignment(*nearest_in_use(looks, centroids, active))
            yield found
            centroids = _centroids(self.members(features), self._one_hot(found.indices), centroids)
        yield Assignment(*nearest_in_use(looks, centroids, active))

    def summarised(self, features: Tensor, indices: Tensor, margin: Tensor) -> Quantized:
        """Codes of an assignment: means of the features, in order of first occurrence."""
        one_hot = self._one_hot(indices)
        codes = _centroids(self.members(features), one_hot, features.new_zeros(()))
        order, rank, mask = renumbered(one_hot, self.slot)
        return Quantized(codes[order], rank[indices.long()].to(torch.int32), mask, margin)

    def at_budgets(self, features: Tensor, budgets: Sequence[int]) -> list[Quantized]:
        """Quantise one clip at several budgets; each result has as many rows as its budget."""
        start, _errors = farthest_first(features, max(budgets, default=1))
        results = []
        for budget in budgets:
            part = KMeansQuantizer(budget, self.iterations, self.adaptive_error, self.unit_means)
            part = part.to(features.device)
            *_, last = part.rounds_from(features, start[:budget], torch.tensor(budget))
            results.append(part.summarised(features, *last))
        return results

    def at_budgets_of(self, clips: Tensor, budgets: Sequence[int]) -> list[Quantized]:
        """`at_budgets` of clips, float `[B, N, D]`; its results, stacked.

        A GPU takes several at once: each is a thousand small steps, which it waits for. Another
        product may round otherwise there; on the CPU bits are those of each clip alone.
        """
        if clips.device.type == "cpu":
            return stacked(self.at_budgets(clip.float(), budgets) for clip in clips)
        parts = [self.together(part.float(), budgets) for part in torch.split(clips, _TOGETHER)]
        return [
            Quantized(*map(torch.cat, zip(*found, strict=True)))
            for found in zip(*parts, strict=True)
        ]

    def together(self, clips: Tensor, budgets: Sequence[int]) -> list[Quantized]:
        """`at_budgets_of` in steps of all clips at once, float32 `[B, N, D]`."""
        return torch.vmap(partial(self.at_budgets, budgets=budgets))(clips)

    def members(self, features: Tensor) -> Tensor:
        """What codes are the means of, of features `[..., D]`."""
        return unit(features) if self.unit_means else features

    def _one_hot(self, indices: Tensor) -> Tensor:
        return (indices[:, None] == self.slot).to(torch.float32)


def stacked(clips: Iterable[Sequence[Quantized]]) -> list[Quantized]:
    """Clips at several budgets, each: the same by budget, with clips stacked."""
    return [
        Quantized(*map(torch.stack, zip(*found, strict=True))) for found in zip(*clips, strict=True)
    ]


def unit(rows: Tensor) -> Tensor:
    """Rows `[..., D]` scaled to length one."""
    last = rows.ndim - 1  # not -1: stored graphs count axes from the front
    return F.normalize(rows, dim=last, eps=_NORM_EPS)


def nearest_in_use(looks: Tensor, codes: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest code of every row by cosine; those not in use are moved out of reach.

    Args:
        looks: float `[N, D]`, of length one.
        codes: float `[K, D]`, of any length.
        used: bool `[K, 1]`.

    Returns:
        as `nearest_codebook`.
    """
    return nearest_codebook(looks, torch.where(used, unit(codes), _FAR), "l2")


def farthest_first(features: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """KKZ start: the row of largest norm, then always the row farthest from those chosen.

    Returns:
        rows `[K, D]` and, for every prefix of them, the mean cosine distance of all features to
        the nearest row `[K]`.
    """
    looks = unit(features)
    chosen = features.square().sum(dim=1).argmax(dim=0, keepdim=True)
    rows = [features[chosen]]
    columns = looks.T.contiguous()  # row times matrix: runtimes are slow at matrix times column
    nearest = looks[chosen][0] @ columns
    errors = [1.0 - nearest.mean()]
    for _ in range(codes - 1):
        chosen = nearest.argmin(dim=0, keepdim=True)
        rows.append(features[chosen])
        nearest = torch.maximum(nearest, looks[chosen][0] @ columns)
        errors.append(1.0 - nearest.mean())
    return torch.cat(rows), torch.stack(errors)


def _centroids(features: Tensor, one_hot: Tensor, empty: Tensor) -> Tensor:
    """Mean of the members of each code `[K, D]`, or its row of `empty` if it has none."""
    count = one_hot.sum(dim=0)[:, None]
    mean = one_hot.T @ features / count.clamp(min=1.0)
    return torch.where(count > 0, mean, empty)


def renumbered(one_hot: Tensor, slot: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes by first occurrence, unused ones last.

    Args:
        one_hot: float32 `[N, K]`, the code of every patch.
        slot: int64 `[K]`, 0 to K - 1.

    Returns:
        the code at every place, int64 `[K]`; the place of every code, int64 `[K]`; which places
        hold a code that occurs, bool `[K]`.
    """
    order = _first_occurrence_order(one_hot)
    rank = torch.zeros_like(order).scatter(0, order, slot)
    return order, rank, (one_hot.sum(dim=0) > 0)[order]


def _first_occurrence_order(one_hot: Tensor) -> Tensor:
    """Codes sorted by the patch they first occur at, unused ones last. int64 `[K]`."""
    patches, codes = one_hot.shape
    position = torch.arange(patches, device=one_hot.device, dtype=torch.float32)[:, None]
    first = torch.where(one_hot > 0, position, float(patches)).amin(dim=0)
    unique = first + torch.arange(codes, device=one_hot.device) / (2.0 * codes)
    return unique.topk(codes, largest=False, sorted=True).indices
