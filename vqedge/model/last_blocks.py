"""The last blocks of the backbone, trained with the bridge through the means that codes are.

Which patches share a code is found without gradients, as in deployment; the code is the mean of its
patches, and through it the language model's loss reaches the blocks. The blocks before them are
frozen, so that what they give is kept on disk and a step begins there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.config import EncoderConfig
from vqedge.model.batch import QuantizedBatch
from vqedge.model.quantizer import KMeansQuantizer
from vqedge.model.trained_reducer import Questions, TrainedReducer
from vqedge.model.vit import ViT
from vqedge.recipe import OptimConfig

BACKBONE_PREFIX = "quantizer.vit."


class LastBlocks(TrainedReducer):
    """The trained blocks, the final norm, and k-means.

    Args:
        encoder: with `trained_blocks`.
        vit: its backbone, whose last blocks and norm are trained.
        quantizer: of the model.
    """

    prefix = BACKBONE_PREFIX

    def __init__(self, encoder: EncoderConfig, vit: ViT, quantizer: KMeansQuantizer) -> None:
        super().__init__()
        self.frames, self.first = encoder.frames, vit.first
        self.tail = last_blocks(vit, encoder.trained_blocks).requires_grad_(True)
        self.quantizer = quantizer

    def kept(self) -> nn.Module:
        """Blocks and norm."""
        return self.tail

    def forward(
        self, features: Tensor, budget: int, questions: Questions | None = None
    ) -> QuantizedBatch:
        """Codes of clips, from what the trunk gave for them; k-means is in float32."""
        clips, width = len(features), features.shape[-1]
        tokens = self.tail(features.float().reshape(clips * self.frames, -1, width))
        patches = tokens[:, self.first :].reshape(clips, -1, width)
        with torch.autocast(features.device.type, enabled=False):
            return self._reduced(patches.float(), budget)

    def learning_rate(self, optim: OptimConfig) -> float:
        """That of the encoder."""
        return optim.encoder_learning_rate

    def _reduced(self, patches: Tensor, budget: int) -> QuantizedBatch:
        with torch.no_grad():
            indices = self.quantizer.at_budgets_of(patches, [budget])[0].indices.long()
        one_hot = F.one_hot(indices, budget).to(patches.dtype)
        count = one_hot.sum(dim=1)[..., None].clamp(min=1)
        return QuantizedBatch(one_hot.mT @ self.quantizer.members(patches) / count, indices)


class _Blocks(nn.Module):
    """Blocks under the numbers that they have in the whole backbone, and its last norm."""

    def __init__(self, blocks: dict[str, nn.Module], norm: nn.Module) -> None:
        super().__init__()
        self.blocks, self.norm = nn.ModuleDict(blocks), norm

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks.values():
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed


def last_blocks(vit: ViT, count: int) -> nn.Module:
    """The last blocks of a backbone and its norm, named as in it; they are its own, not copies."""
    first = len(vit.blocks) - count
    return _Blocks({str(n): vit.blocks[n] for n in range(first, len(vit.blocks))}, vit.norm)
