"""From frames to the rows the language model reads: ViT, quantizer, token hash, VQ-Attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vqedge.config import ModelConfig
from vqedge.model.quantizer import KMeansQuantizer, Quantized
from vqedge.model.token_hash import token_hash
from vqedge.model.vit import ViT
from vqedge.model.vq_attention import VQAttention


class EncodedClip(NamedTuple):
    """The encoder's outputs, in the order of the exported graph."""

    tokens: Tensor  # float32 [K, d_llm], zero where unused
    index_map: Tensor  # int32 [T, grid, grid]
    mask: Tensor  # bool [K], True where the row is used
    margin: Tensor  # float32 [T, grid, grid]


class ClipQuantizer(nn.Module):
    """The frozen half: frames to codes. What the feature cache stores."""

    def __init__(self, config: ModelConfig, vit: ViT) -> None:
        super().__init__()
        self.config = config
        self.vit = vit
        self.quantizer = KMeansQuantizer(config.quantizer.codes, config.quantizer.iterations)

    def forward(self, frames: Tensor, budget: Tensor) -> Quantized:
        """Quantise uint8 frames `[T, size, size, 3]`."""
        return self.quantizer(self.vit(frames).flatten(0, 1), budget)

    @torch.inference_mode()
    def quantize(self, frames: Tensor) -> Quantized:
        """`forward` at the full budget, without gradients."""
        return self(frames, torch.tensor(self.config.quantizer.codes))


class Bridge(nn.Module):
    """The trained half: codes and index map to rows of the language model's width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.attention = VQAttention(config)

    def forward(self, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of a batch of quantised clips.

        Args:
            codes: float `[B, K, D]`.
            indices: integer `[B, T * grid * grid]`.

        Returns:
            tokens float `[B, K, d_llm]`, zero where unused, and mask bool `[B, K]`.
        """
        hashed = token_hash(indices, self.config.encoder.frames, codes.shape[1])
        return self.attention(codes, hashed.features, hashed.mask), hashed.mask


class VideoEncoder(nn.Module):
    """The whole encoder of one clip, as it is exported."""

    def __init__(self, quantizer: ClipQuantizer, bridge: Bridge) -> None:
        super().__init__()
        self.quantizer, self.bridge = quantizer, bridge

    def forward(self, frames: Tensor, budget: Tensor) -> EncodedClip:
        """Encode uint8 frames `[T, size, size, 3]` with at most `budget` codes."""
        config = self.quantizer.config.encoder
        quantized = self.quantizer(frames, budget)
        tokens, mask = self.bridge(quantized.codes[None], quantized.indices[None])
        shape = (config.frames, config.grid, config.grid)
        return EncodedClip(
            tokens[0], quantized.indices.reshape(shape), mask[0], quantized.margin.reshape(shape)
        )
