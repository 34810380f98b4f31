"""Torch tensors into safetensors files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import torch as safetensors_of_torch
from torch import Tensor

from vqedge.files import usual_mode


def save_file(
    tensors: Mapping[str, Tensor], path: Path, info: Mapping[str, str] | None = None
) -> None:
    """As the function of safetensors, but whom the user's umask lets read files reads this one.

    Args:
        tensors: contiguous, by name.
        path: where to; replaced if it is there.
        info: what the file says of itself.

    Raises:
        OSError: the file cannot be made.
        SafetensorError: it cannot be written to.
    """
    with usual_mode(path):
        safetensors_of_torch.save_file(dict(tensors), path, dict(info) if info else None)
