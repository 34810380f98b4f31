"""What a reducer is: many patches in, few tokens out, and which token stands for which patch."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

DROPPED = -1  # in `assign`: no token was made from this patch


class Reduced(NamedTuple):
    """A clip in few tokens. T frames of n patches, K rows, D features.

    The first three are what every reducer gives; `margin` says how safe each choice was.
    """

    tokens: Tensor  # float32 [K, D], zero where unused
    assign: Tensor  # int64 [T, n], in 0..K-1, or DROPPED
    sizes: Tensor  # float32 [K], patches that a row stands for; 0 where unused
    margin: Tensor  # float32 [T, n], best minus second-best score; 0 where nothing was compared


class Reducer(Protocol):
    """A method of reduction with a static number of rows."""

    reads_attention: bool
    """It asks for `cls_attn`; without it, it takes a substitute computed from the features."""

    drops: bool
    """It may leave patches without a token."""

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """Reduce one clip.

        Args:
            features: float `[T, n, D]`.
            budget: int64 scalar in `1..codes`: the most tokens.
            cls_attn: float `[T, n]`, what the CLS token pays attention to.
            keys: float `[T, n, C]`, what `PruMerge` compares patches by, in place of the features;
                no other reducer reads them.
            text: float `[C]`, a question; only reducers that follow one read it.
        """


def unfold(found: Reduced) -> Tensor:
    """Every patch as its token, float `[T, n, D]`, as dense prediction wants it; dropped ones 0."""
    kept = (found.assign != DROPPED)[..., None]
    return found.tokens[found.assign.clamp(min=0)] * kept
