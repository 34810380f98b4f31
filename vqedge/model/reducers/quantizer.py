"""Any reducer as the encoder's quantizer: its tokens become codes, its assignment the index map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vqedge.model.quantizer import Quantized, nearest_in_use, renumbered, stacked, unit
from vqedge.model.reducers.common import flat, one_hot
from vqedge.model.reducers.protocol import DROPPED, Reduced, Reducer


class ReducerQuantizer(nn.Module):
    """A reducer behind the interface of `KMeansQuantizer`.

    The index map has no word for "dropped": a patch that the reducer dropped gets the id of the
    token most like it, which says where in the clip there is more of the same.

    Args:
        reducer: an `nn.Module` that is a `Reducer`.
        codes: rows K of the result, the largest budget.
        frames: T of the clip.
        unit_means: the reducer reads features of length one, so that its means are means of those.
    """

    def __init__(self, reducer: Reducer, codes: int, frames: int, unit_means: bool = False) -> None:
        super().__init__()
        self.slot: Tensor
        self.unit_means = unit_means
        self.reducer, self.codes, self.frames = reducer, codes, frames
        self.register_buffer("slot", torch.arange(codes), persistent=False)

    def forward(self, patches: Tensor, budget: Tensor, text: Tensor | None = None) -> Quantized:
        """Quantise one clip.

        Args:
            patches: float `[N, D]`; `[N, D + 1]`, the CLS token's attention last, for a reducer
                that reads it.
            budget: int64 scalar in `1..codes`.
            text: float `[C]`, a question, for a reducer that follows one.
        """
        features = patches.reshape(self.frames, -1, patches.shape[1])
        attention = None
        if self.reducer.reads_attention:
            features, attention = features[..., :-1], features[..., -1]
        features = unit(features) if self.unit_means else features
        found = self.reducer.reduce(features, budget, attention, text=text)
        return self.mapped(found, flat(features))

    def mapped(self, found: Reduced, rows: Tensor) -> Quantized:
        """Codes in order of first occurrence, and a map without gaps; `rows` are the patches."""
        assign, margin = found.assign.reshape(-1), found.margin.reshape(-1)
        if self.reducer.drops:
            used = (found.sizes > 0)[:, None]
            nearest, gap = nearest_in_use(unit(rows), found.tokens, used)
            dropped = assign == DROPPED
            assign = torch.where(dropped, nearest.long(), assign)
            margin = torch.where(dropped, gap, margin)
        order, rank, mask = renumbered(one_hot(assign, self.codes), self.slot)
        tokens = found.tokens[order] * mask[:, None]
        return Quantized(tokens, rank[assign].to(torch.int32), mask, margin)

    def at_budgets(
        self, patches: Tensor, budgets: Sequence[int], text: Tensor | None = None
    ) -> list[Quantized]:
        """Quantise one clip at several budgets; each result has as many rows as its budget."""
        results = []
        for budget in budgets:
            found = self(patches, torch.tensor(budget, device=patches.device), text)
            results.append(
                Quantized(found.codes[:budget], found.indices, found.mask[:budget], found.margin)
            )
        return results

    def at_budgets_of(self, clips: Tensor, budgets: Sequence[int]) -> list[Quantized]:
        """`at_budgets` of clips, float `[B, N, D]`, one after another; its results, stacked."""
        return stacked(self.at_budgets(clip.float(), budgets) for clip in clips)
