"""VQ-Attention: codes, told where and when they occur, become rows for the language model.

The paper (Eq. 6-7) attends with queries and keys from the codebook B and values from MLP(hash),
giving exactly K rows. Here B and MLP(hash) are summed before a small pre-norm transformer over the
K rows, so that content and position meet in every layer and nothing is lost at a single attention.
Unused rows are masked as keys and zero in the result.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.config import ModelConfig
from vqedge.model.hash_dropout import HashDropout
from vqedge.model.token_hash import MOTION_FEATURES, hash_width

ROW_NORM = 6.0  # at first: about the sum of four word embeddings of the language model
_EPS = 1e-6
_MASKED = (
    -1e4
)  # added to the scores of unused keys; finite, so that float16 and all-masked rows are safe


class Attention(nn.Module):
    """Masked multi-head self-attention over `[B, K, width]`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        """Same shape as `x`; `key_bias` is added to the scores of each key."""
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + key_bias
        return self.output((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, key_bias: Tensor) -> Tensor:
        """Same shape as `x`; `key_bias` is added to the scores of each key."""
        x = x + self.attention(self.norm1(x), key_bias)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VQAttention(nn.Module):
    """Codes `[B, K, D]` and hash features to tokens `[B, K, d_llm]`.

    Args:
        config: of the model.
        code_width: D.
    """

    def __init__(self, config: ModelConfig, code_width: int) -> None:
        super().__init__()
        self.config = config.attention
        width, features = config.attention.width, hash_width(config.encoder.frames)
        self.code_norm = nn.LayerNorm(code_width)
        self.code = nn.Linear(code_width, width)
        self.dropout = HashDropout()
        if config.attention.hash == "places":
            features -= MOTION_FEATURES
        if config.attention.reads_hash:
            self.hash1, self.hash2 = nn.Linear(features, width), nn.Linear(width, width)
        heads = config.attention.heads
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(config.attention.depth))
        self.norm = nn.LayerNorm(width)
        self.projector = nn.Linear(width, config.llm.width)
        self.scale = nn.Parameter(torch.tensor(ROW_NORM))

    def forward(self, codes: Tensor, features: Tensor, mask: Tensor) -> Tensor:
        """Tokens for the language model.

        Args:
            codes: float `[B, K, D]`.
            features: token hash float `[B, K, T * 5 + 3]`.
            mask: bool `[B, K]`, True where the row is used.

        Returns:
            float `[B, K, d_llm]`; rows that are not used are zero.
        """
        x = self.code(self.code_norm(codes))
        if self.config.hash == "places":
            features = features[..., :-MOTION_FEATURES]
        if self.config.reads_hash:
            x = x + self.dropout.heeded(self.hash2(F.gelu(self.hash1(features))))
        used = mask.to(x.dtype)
        key_bias = ((1.0 - used) * _MASKED)[:, None, None, :]
        for block in self.blocks:
            x = block(x, key_bias)
        rows = F.normalize(self.projector(self.norm(x)), dim=-1, eps=_EPS)
        rows = rows * self.scale * used[..., None]
        return rows * 0.0 if self.config.blind else rows
