"""The attention of the published VQToken weights, and the plain codes of a model without it.

The published code differs from the paper, which `vqedge.model.vq_attention` follows: a query is the
index map of a *frame*, its ids read as numbers; keys and values are the codes; a post-norm decoder
layer mixes them. Queries and codes are repeated in turn to the larger of both numbers, which is how
many rows come out, and one learned row ends the video. What the weights need is kept. They were
trained on the numbers of random starts, which say nothing about a place, so codes are numbered anew
here: by first occurrence the first patches would have the lowest numbers in every video. Shapes are
static: rows that the number of codes in use does not reach are masked in both attentions.

Parameter names are those of the published state dict, below `model.cross_attention`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.config import ModelConfig
from vqedge.model.rows import Rows

HIDDEN = 2048
_MASKED = -1e4
_UNUSED, _TAKEN = 3.0, 4.0  # above every cosine


class PackedAttention(nn.Module):
    """Multi-head attention with query, key and value weights in one matrix."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, rows: Tensor, memory: Tensor, key_bias: Tensor) -> Tensor:
        """Rows `[R, width]` attend to memory `[M, width]`; `key_bias [M]` is added to scores."""
        parts = zip(
            (rows, memory, memory),
            self.in_proj_weight.chunk(3),
            self.in_proj_bias.chunk(3),
            strict=True,
        )
        query, key, value = (
            F.linear(x, weight, bias).reshape(len(x), self.heads, -1).transpose(0, 1)
            for x, weight, bias in parts
        )
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + key_bias
        return self.out_proj((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the codes, two linear layers; each is normalised after."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = PackedAttention(width, heads)
        self.multihead_attn = PackedAttention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))

    def forward(self, rows: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
        """Same shape as `rows`; `bias` keeps what is not in use out of both attentions."""
        rows = self.norm1(rows + self.self_attn(rows, rows, bias))
        rows = self.norm2(rows + self.multihead_attn(rows, memory, bias))
        return self.norm3(rows + self.linear2(F.relu(self.linear1(rows))))


class _Decoder(nn.Module):
    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads) for _ in range(depth))


class OfficialAttention(nn.Module):
    """Index maps of all frames and codes to rows, as the published weights expect."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, attention = config.encoder.width, config.attention
        self.to_q_proj = nn.Linear(config.encoder.grid**2, width)
        self.transformer_decoder = _Decoder(width, attention.heads, attention.depth)

    def forward(self, codes: Tensor, index_map: Tensor, used: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of one clip.

        Args:
            codes: float `[K, D]`, those in use first.
            index_map: integer `[T, grid, grid]`.
            used: int64 scalar, how many codes are in use.

        Returns:
            rows float `[max(T, K), D]`, and how many of them count: int64 scalar, `max(T, used)`.
        """
        frames, most = len(index_map), max(len(index_map), len(codes))
        place = torch.arange(most, device=codes.device)
        count = used.clamp(min=frames)
        queries = self.to_q_proj(index_map.flatten(1).to(codes.dtype))
        rows, memory = queries[place % frames], codes[place % used]
        bias = (place >= count).to(codes.dtype) * _MASKED
        for layer in self.transformer_decoder.layers:
            rows = layer(rows, memory, bias)
        return rows, count


def order_by_distance(codes: Tensor, mask: Tensor) -> Tensor:
    """The code most like all together, then always the one farthest from those before it.

    Args:
        codes: float `[K, D]`.
        mask: bool `[K]`, those in use. The others come last.

    Returns:
        int64 `[K]`, the same codes in whatever order they are given.
    """
    unit, slot = F.normalize(codes, dim=1), torch.arange(len(codes), device=codes.device)
    similar = unit @ unit.T
    likeness = codes @ torch.where(mask[:, None], codes, 0.0).sum(dim=0)
    chosen = torch.where(mask, likeness, -torch.inf).argmax(dim=0, keepdim=True)
    nearest, order = torch.where(mask, -1.0, _UNUSED), [chosen]
    for _ in range(len(codes) - 1):
        nearest = torch.maximum(nearest, similar[chosen][0])
        nearest = torch.where(slot == chosen, _TAKEN, nearest)
        chosen = nearest.argmin(dim=0, keepdim=True)
        order.append(chosen)
    return torch.cat(order)


class OfficialBridge(nn.Module):
    """Codes and index map to rows that end with the learned newline.

    With `attention.kind` "none" the rows are the codes: what a model that was trained on projected
    patches, and on no attention over codes, can read.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.codebook = None
        official = config.attention.kind == "official"
        self.cross_attention = OfficialAttention(config) if official else None
        self.image_newline = nn.Parameter(torch.zeros(config.encoder.width))

    def ids(self, codes: Tensor, index_map: Tensor) -> None:
        """There is no learned codebook."""

    def rows(self, stored: Tensor, index_map: Tensor) -> Rows:
        """Rows of one clip from codes float16 `[K, D]` and index map `[T, grid, grid]`."""
        codes = stored.float()
        slot = torch.arange(len(codes), device=codes.device)
        mask = (index_map.reshape(-1, 1) == slot).any(dim=0)
        used = mask.sum()
        rows, count = codes, used
        if self.cross_attention is not None:
            order = order_by_distance(codes, mask)
            number = torch.zeros_like(order).scatter(0, order, slot)
            rows, count = self.cross_attention(codes[order], number[index_map.long()], used)
        place = torch.arange(len(rows) + 1, device=codes.device)
        ended = torch.cat([rows, self.image_newline[None]])
        chosen = ended[torch.where(place < count, place, len(rows))]
        row_mask = place <= count
        return Rows(chosen * row_mask[:, None].to(chosen.dtype), mask, row_mask)
