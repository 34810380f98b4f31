"""Vision transformer of the DINOv2 family (arXiv 2304.07193), written to export cleanly.

Parameter names are the names in the exported graph. Linear weights are `[in, out]` and applied as
`x @ weight`, so that the exported initialisers are the source's arrays, not transposed copies.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.base.vit import BLOCKS, vit_arrays_from_onnx
from vqedge.errors import ConfigError

PATCH = 14
WIDTH = 384
HEADS = 6
_EPS = 1e-6
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class Linear(nn.Module):
    """`x @ weight + bias` with `weight [in, out]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Same leading shape as `x`."""
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Multi-head self-attention over `[T, N, D]`."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Same leading shape as `x`."""
        query, key, value = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(WIDTH, 4 * WIDTH), Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Same leading shape as `x`."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block with layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(WIDTH, eps=_EPS) for _ in range(2))
        self.attention, self.mlp = Attention(), Mlp()
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(WIDTH)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Same leading shape as `x`."""
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class ViT(nn.Module):
    """DINOv2-S/14 up to and including block `block` (1 to 12).

    Args:
        block: how many blocks to run. The blocks after it are not built.
        size: side of the square input in pixels, a multiple of 14.
        final_norm: apply the backbone's last LayerNorm to the result.
    """

    def __init__(self, block: int, size: int = 224, final_norm: bool = True) -> None:
        super().__init__()
        if not 1 <= block <= BLOCKS or size % PATCH:
            raise ConfigError(
                f"encoder: block {block} of 1..{BLOCKS}, size {size} (multiple of {PATCH})"
            )
        self.mean: Tensor
        self.std: Tensor
        self.grid = size // PATCH
        self.patch = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.position = nn.Parameter(torch.zeros(1, self.grid**2 + 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(block))
        self.norm = nn.LayerNorm(WIDTH, eps=_EPS) if final_norm else nn.Identity()
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """Patch features of uint8 RGB frames.

        Args:
            frames: uint8 `[T, size, size, 3]`.

        Returns:
            float `[T, grid * grid, 384]`, row-major over the grid, without the CLS token.
        """
        pixels = (frames.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        return self.features(pixels)[:, 1:]

    def features(self, pixels: Tensor) -> Tensor:
        """All tokens `[T, 1 + grid * grid, 384]` of normalised pixels `[T, 3, size, size]`."""
        patches = self.patch(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        x = x + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def vit_from_source(path: Path, block: int, size: int = 224, final_norm: bool = True) -> ViT:
    """Build the ViT and fill it strictly from the fetched ONNX file, frozen and in eval mode."""
    model = ViT(block, size, final_norm)
    arrays = vit_arrays_from_onnx(path)
    position = _interpolated_position(
        arrays.pop("position_cls"), arrays.pop("position_grid"), model.grid
    )
    state = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    wanted = set(model.state_dict())
    state = {name: value for name, value in state.items() if name in wanted}
    model.load_state_dict(state | {"position": position}, strict=True)
    return model.requires_grad_(False).eval()


def _interpolated_position(
    cls: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    grid: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
    side: int,
) -> Tensor:
    """Position embeddings for `side x side` patches, bicubic as in the source graph."""
    stored = int(grid.shape[1] ** 0.5)
    image = torch.from_numpy(grid.copy()).reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    flat = image.permute(0, 2, 3, 1).reshape(1, side * side, -1)
    return torch.cat([torch.from_numpy(cls.copy()).reshape(1, 1, -1), flat], dim=1)
