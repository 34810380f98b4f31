"""Windows that look for what the question asks, in the manner of QueCC (arXiv 2411.03312).

Tokens follow the question, so they cannot be kept for the next one. A question is the mean of the
language model's input embeddings of its words, not its last hidden state, and one layer of the ViT
is read, not four.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vqedge.errors import ConfigError
from vqedge.model.reducers.blocks import BlockReducer, square
from vqedge.model.reducers.protocol import Reduced


class QueryWindows(nn.Module):
    """A query for every window of s x s patches, made of the window and the question.

    Args:
        frames: T of the clip.
        grid: patches per side of a frame, a multiple of the stride.
        stride: s.
        width: D of the features.
        text_width: of a question's embedding.
        heads: of the attention inside of a window.
        rows: of the result, no fewer than there are windows; as many by default.

    Raises:
        ValueError: the stride does not divide the grid.
    """

    reads_attention = False
    drops = False

    def __init__(
        self,
        frames: int,
        grid: int,
        stride: int,
        width: int,
        text_width: int,
        heads: int = 8,
        rows: int | None = None,
    ) -> None:
        super().__init__()
        if grid % stride:
            raise ValueError(f"a stride of {stride} does not divide a grid of {grid}")
        self.frames, self.grid, self.stride, self.heads = frames, grid, stride, heads
        self.codes = frames * (grid // stride) ** 2
        unused = (rows or self.codes) - self.codes
        self.unused: Tensor
        self.register_buffer("unused", torch.zeros(unused, width), persistent=False)
        self.text = nn.Sequential(nn.Linear(text_width, width), nn.LayerNorm(width))
        self.query, self.key, self.value = (_mlp(width) for _ in range(3))
        self.shrink = nn.Conv2d(width, width, stride, stride, groups=width)
        self.output = nn.Linear(width, width)
        self.place = BlockReducer(self.codes, frames, grid, cut=square)

    def reduce(
        self,
        features: Tensor,
        budget: Tensor,
        cls_attn: Tensor | None = None,
        keys: Tensor | None = None,
        text: Tensor | None = None,
    ) -> Reduced:
        """See `Reducer.reduce`; the stride fixes the tokens, and the budget is not read.

        Raises:
            ValueError: no question was given.
        """
        if text is None:
            raise ValueError("tokens that follow a question need its embedding: give text")
        asked = self.query(features + self.text(text))
        query = self.shrink(self._image(asked)).flatten(2).transpose(1, 2).flatten(0, 1)[:, None]
        key, value = (self._windows(part(features)) for part in (self.key, self.value))
        tokens = self.output(_attended(query, key, value, self.heads)[:, 0])
        assign = self.place.block_of_patch(torch.full_like(budget, self.codes))
        sizes = torch.full_like(tokens[:, 0], float(self.stride**2))
        margin = torch.zeros_like(features[..., 0])
        if len(self.unused):
            tokens = torch.cat([tokens, self.unused])
            sizes = torch.cat([sizes, self.unused[:, 0]])
        return Reduced(tokens, assign, sizes, margin)

    def _image(self, rows: Tensor) -> Tensor:
        """`[T, n, D]` as `[T, D, grid, grid]`."""
        return rows.transpose(1, 2).reshape(self.frames, -1, self.grid, self.grid)

    def _windows(self, rows: Tensor) -> Tensor:
        """`[T, n, D]` as `[K, s * s, D]`, windows in the order of tokens."""
        side = self.grid // self.stride
        cut = rows.reshape(self.frames, side, self.stride, side, self.stride, -1)
        return cut.transpose(2, 3).reshape(self.codes, self.stride**2, -1)


def stride_within(budget: int, frames: int, grid: int) -> int:
    """The smallest stride whose windows are no more than a budget.

    Raises:
        ConfigError: not even one window a frame fits.
    """
    for stride in range(1, grid + 1):
        if grid % stride == 0 and frames * (grid // stride) ** 2 <= budget:
            return stride
    raise ConfigError(
        f"quantizer.default_budget {budget}: reducer:query-window has a window in every frame at "
        f"least; want {frames} or more"
    )


def _mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.LayerNorm(width)
    )


def _attended(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention of `[K, q, D]` to `[K, m, D]`."""
    shape = (len(query), -1, heads, query.shape[2] // heads)
    query, key, value = (part.reshape(shape).transpose(1, 2) for part in (query, key, value))
    scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5
    return (scores.softmax(dim=3) @ value).transpose(1, 2).flatten(2)
