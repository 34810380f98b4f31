"""Torch tensors into safetensors files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import torch as safetensors_of_torch
from torch import Tensor

from vqedge.files import usual_mode


def save_file(
    tensors: Mapping[str, Tensor], path: Path, info: Mapping[str, str] | None = None
) -> None:
    """As the function of safetensors, with the permissions that the user's umask gives.

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


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """One digest over names, types, shapes and bytes, as 64 hex digits.

    Args:
        tensors: on the CPU, by name.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
