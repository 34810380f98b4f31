"""Vision transformers of the DINOv2, CLIP and SigLIP families, written to export cleanly.

Parameter names are the names in the exported graph. Linear weights are `[in, out]` and applied as
`x @ weight`, so that the exported initialisers are the source's arrays, not transposed copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.base.backbones import BACKBONES
from vqedge.base.tensors import Arrays
from vqedge.config import DINOV2_S14, BackboneShape, EncoderConfig
from vqedge.errors import CheckpointError, ConfigError

_NORM_EPS = 1e-6


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

    def __init__(self, shape: BackboneShape) -> None:
        super().__init__()
        self.heads, width = shape.heads, shape.width
        self.query, self.key, self.value, self.output = (Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Same leading shape as `x`."""
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def of_first(self, x: Tensor) -> Tensor:
        """What the first token attends to, mean over heads: `[T, N]` of `[T, N, D]`."""
        query = self.query(x[:, :1]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key = self.key(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        scores = query @ key.transpose(2, 3) * query.shape[-1] ** -0.5
        return scores.softmax(dim=-1).mean(dim=1)[:, 0]


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int, activation: str = "gelu") -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(inputs, hidden), Linear(hidden, outputs)
        self.activation = _ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        """Same leading shape as `x`."""
        return self.fc2(self.activation(self.fc1(x)))


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
}


class Block(nn.Module):
    """Pre-norm transformer block, with layer scale where the family has it."""

    def __init__(self, shape: BackboneShape) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(shape.width, eps=shape.eps) for _ in range(2))
        self.attention = Attention(shape)
        self.mlp = Mlp(shape.width, shape.hidden, shape.width, shape.activation)
        self.scaled = shape.layer_scale
        if self.scaled:
            self.scale1, self.scale2 = (nn.Parameter(torch.ones(shape.width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Same leading shape as `x`."""
        if not self.scaled:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.mlp(self.norm2(x))


class ViT(nn.Module):
    """A vision transformer up to and including block `block`, counted from 1.

    Args:
        block: how many blocks to run. The blocks after it are not built.
        size: side of the square input in pixels. What no whole patch covers is left out, as SigLIP
            does; with a class token it has to be a multiple of the patch.
        final_norm: apply the backbone's last LayerNorm to the result.
        shape: of the backbone.
        projected: width behind a projector of two layers; None for none.
    """

    def __init__(
        self,
        block: int,
        size: int = 224,
        final_norm: bool = True,
        shape: BackboneShape = DINOV2_S14,
        projected: int | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= block <= shape.blocks or (shape.class_token and size % shape.patch):
            raise ConfigError(
                f"encoder: block {block} of 1..{shape.blocks}, "
                f"size {size} (multiple of {shape.patch})"
            )
        self.mean: Tensor
        self.std: Tensor
        width, norm = shape.width, partial(nn.LayerNorm, shape.width, eps=shape.eps)
        self.grid = size // shape.patch
        self.patch = nn.Conv2d(3, width, shape.patch, stride=shape.patch, bias=shape.patch_bias)
        self.first = int(shape.class_token)
        if self.first:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, self.grid**2 + self.first, width))
        self.first_norm = norm() if shape.first_norm else None
        self.blocks = nn.ModuleList(Block(shape) for _ in range(block))
        self.norm = norm() if final_norm else nn.Identity()
        self.projector = Mlp(width, projected, projected) if projected else None
        for name, values in (("mean", shape.mean), ("std", shape.std)):
            pixels = torch.tensor(values).view(1, 3, 1, 1) * 255
            self.register_buffer(name, pixels, persistent=False)

    def forward(self, frames: Tensor, attended: bool = False) -> Tensor:
        """Patch features of uint8 RGB frames.

        Args:
            frames: uint8 `[T, size, size, 3]`.
            attended: add, as a last column, what the CLS token attends to in the last block that
                runs: the mean over heads. With what it pays to itself a frame's sum is 1. Without
                a class token `attention_from_features` stands in.

        Returns:
            float `[T, grid * grid, D]`, with a column more if attended, row-major over the grid,
            without the class token.

        """
        pixels = self._pixels(frames)
        if attended and not self.first:
            rows = self._projected(self.features(pixels))
            return torch.cat([rows, attention_from_features(rows)[..., None]], dim=2)
        if attended:
            x, attention = self._attended(pixels)
            return torch.cat([self._projected(x), attention[..., None]], dim=2)
        return self._projected(self.features(pixels)[:, self.first :])

    def before_last(self, frames: Tensor, count: int) -> Tensor:
        """All tokens before the last `count` blocks, a class token first.

        Args:
            frames: uint8 `[T, size, size, 3]`.
            count: blocks that do not run, nor does the norm.

        Returns:
            float `[T, N, D]`.
        """
        return self._before_last(self._pixels(frames), count)

    def features(self, pixels: Tensor) -> Tensor:
        """All tokens `[T, N, D]` of normalised pixels `[T, 3, size, size]`, a class token first."""
        return self.norm(self._before_last(pixels, 0))

    def _before_last(self, pixels: Tensor, count: int) -> Tensor:
        x = self._embedded(pixels)
        for block in self.blocks[: len(self.blocks) - count]:
            x = block(x)
        return x

    def _pixels(self, frames: Tensor) -> Tensor:
        """uint8 frames `[T, size, size, 3]` as the weights expect them, `[T, 3, size, size]`."""
        return (frames.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std

    def _embedded(self, pixels: Tensor) -> Tensor:
        """Tokens before the first block."""
        x = self.patch(pixels).flatten(2).transpose(1, 2)
        if self.first:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = x + self.position
        return x if self.first_norm is None else self.first_norm(x)

    def _attended(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Patches after the last block, and what the class token attends to in it."""
        last = self.blocks[-1]
        assert isinstance(last, Block)
        x = self._before_last(pixels, 1)
        attention = last.attention.of_first(last.norm1(x))
        return self.norm(last(x))[:, 1:], attention[:, 1:]

    def _projected(self, x: Tensor) -> Tensor:
        return x if self.projector is None else self.projector(x)


def attention_from_features(features: Tensor) -> Tensor:
    """A stand-in for CLS attention where there is none, `[T, N]` of `[T, N, D]`, a frame's sum 1.

    Softmax, over a frame, of how unlike a patch is to its frame's mean: what stands out.
    """
    mean = features.mean(dim=1, keepdim=True)
    looks, usual = (F.normalize(rows, dim=-1, eps=_NORM_EPS) for rows in (features, mean))
    return (1.0 - (looks * usual).sum(dim=-1)).softmax(dim=1)


def exact_float32() -> None:
    """Have CUDA multiply float32 as it is.

    PyTorch lets convolutions, as that of the patches, round it to TF32, and NVIDIA's containers
    matrix products, too: what was trained would not be what other devices compute.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False


def vit_from_source(path: Path, encoder: EncoderConfig) -> ViT:
    """Build the ViT and fill it strictly from its weights' file, frozen and in eval mode.

    Raises:
        CheckpointError: the file's tensors are not those of the configuration.
    """
    model = ViT(
        encoder.block, encoder.size, encoder.final_norm, encoder.backbone, encoder.projected
    )
    arrays = BACKBONES[encoder.source].arrays(path)
    wanted = model.state_dict().keys() - {"position"}
    lacking = sorted(wanted - arrays.keys())
    if lacking:
        raise CheckpointError(f"{path}: no tensor {lacking[0]!r}; fetch or import it again")
    state = {name: _tensor(arrays[name]) for name in wanted}
    state["position"] = position_table(arrays, model.grid)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from error
    return model.requires_grad_(False).eval()


def position_table(arrays: Arrays, side: int) -> Tensor:
    """Position embeddings for `side x side` patches, float32 `[1, N, D]`, the class token first.

    Stored ones of another grid are interpolated, bicubic as all three families do.
    """
    flat = _tensor(arrays["position_grid"])
    stored = math.isqrt(flat.shape[1])
    if stored != side:
        image = flat.reshape(1, stored, stored, -1).permute(0, 3, 1, 2)
        image = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
        flat = image.permute(0, 2, 3, 1).reshape(1, side * side, -1)
    if "position_cls" not in arrays:
        return flat
    return torch.cat([_tensor(arrays["position_cls"]).reshape(1, 1, -1), flat], dim=1)


def _tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.floating]]) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
