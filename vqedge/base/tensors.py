"""Tensors of a safetensors file, read with NumPy, one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  gives NumPy the bfloat16 that safetensors asks it for
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from vqedge.errors import CheckpointError

Array = npt.NDArray[np.floating]
Arrays = Mapping[str, Array]


def not_finite(path: Path, name: str) -> CheckpointError:
    """The refusal of a tensor of a checkpoint's file that no answer comes of."""
    return CheckpointError(f"{path}: {name} holds NaN or infinity; train or copy it again")


class TensorFile(Mapping[str, Array]):
    """The tensors of a file by name. Each is read when it is asked for, and not kept.

    Args:
        path: a safetensors file.

    Raises:
        CheckpointError: it is not one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            opened: Any = safe_open  # which has no types
            self._file: Any = opened(path, framework="np")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
        self._names: tuple[str, ...] = tuple(self._file.keys())

    def __getitem__(self, name: str) -> Array:
        """Read one tensor, in the type it is stored in."""
        if name not in self._names:
            raise KeyError(name)
        array: Array = self._file.get_tensor(name)
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor; its data is not read."""
        return tuple(self._file.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Type of a tensor, as safetensors spells it: F32, F16, BF16."""
        return str(self._file.get_slice(name).get_dtype())
