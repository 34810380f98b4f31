"""Grouping by learned queries, in the manner of VisToG (arXiv 2411.17773).

Every patch joins the query that it answers best, and a token is its query and the mean of its
group. The paper runs its queries through the ViT beside the patches; here they meet the patches
after it, at the one grouping layer. Its formulas were not at hand: they are those of group
attention with a straight-through choice.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.model.nearest_codebook import nearest_codebook
from vqedge.model.reducers.common import flat, one_hot
from vqedge.model.reducers.protocol import Reduced

_TEMPERATURE = 1.0  # of the softmax in training
_SHUT = 1e4  # what a query beyond the budget is behind by


class GroupQueries(nn.Module):
    """Learned queries that patches choose among.

    In training mode the choice is drawn with Gumbel noise from torch's random numbers, and its
    gradient is that of the softmax. In eval mode it is one NearestCodebook by dot product.

    Args:
        codes: queries, rows K of the result. A smaller budget uses the first ones.
        width: D of the features.
    """

    reads_attention = False
    drops = False

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.codes = codes
        self.queries = nn.Parameter(torch.randn(codes, width) * width**-0.5)
        self.query, self.key = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.value, self.output = (nn.Linear(width, width, bias=False) for _ in range(2))

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """See `Reducer.reduce`."""
        rows = flat(features)
        asked, said = self.query(self.queries), self.key(rows)
        shut = (torch.arange(self.codes, device=rows.device) >= budget) * -_SHUT
        index, margin = nearest_codebook(
            torch.cat([said, torch.ones_like(said[:, :1])], dim=1).detach(),
            torch.cat([asked, shut[:, None].to(asked.dtype)], dim=1).detach(),
            "dot",
        )
        members = one_hot(index.long(), self.codes)
        if self.training:
            members = self._drawn(said @ asked.T + shut)
            index = members.argmax(dim=1)
        sizes = one_hot(index.long(), self.codes).sum(dim=0)
        means = members.T @ self.value(rows) / members.sum(dim=0).clamp(min=1.0)[:, None]
        tokens = (self.queries + self.output(means)) * (sizes > 0)[:, None]
        shape = features.shape[:2]
        return Reduced(tokens, index.long().reshape(shape), sizes, margin.reshape(shape))

    def _drawn(self, logits: Tensor) -> Tensor:
        """A group for every patch, float `[N, K]`: hard, with the gradient of the soft choice."""
        scaled = logits * self.queries.shape[1] ** -0.5
        drawn: Tensor = F.gumbel_softmax(scaled, tau=_TEMPERATURE, hard=True)
        return drawn
