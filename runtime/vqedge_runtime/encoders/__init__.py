"""Encoders: frames to tokens. One object per backend behind a small Protocol, picked by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vqedge.bundle import open_bundle
from vqedge.errors import BackendUnavailable
from vqedge_runtime.tokens import TokenSet

Frames = npt.NDArray[np.uint8]


class Encoder(Protocol):
    """Turns frames into tokens."""

    @property
    def name(self) -> str:
        """What runs where, as "onnxruntime CPU fp32"."""

    def encode(self, frames_thwc: Frames, budget: int) -> TokenSet:
        """Encode uint8 RGB `[T, size, size, 3]` with at most `budget` codes, or `ADAPTIVE`."""

    def close(self) -> None:
        """Free everything; twice is fine."""


def _onnxruntime(path: Path, threads: int | None) -> Encoder:
    from vqedge_runtime.encoders.ort import OrtEncoder

    return OrtEncoder(path, threads)


def _tensorrt(path: Path, threads: int | None) -> Encoder:
    from vqedge_runtime.encoders.tensorrt import open_engine

    return open_engine("tensorrt", open_bundle(path.parent, verify=False))


def _tensorrt_rtx(path: Path, threads: int | None) -> Encoder:
    from vqedge_runtime.encoders.tensorrt import open_engine

    return open_engine("tensorrt-rtx", open_bundle(path.parent, verify=False))


ENCODERS: dict[str, Callable[[Path, int | None], Encoder]] = {
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "tensorrt-rtx": _tensorrt_rtx,
}


def open_encoder(name: str, path: Path, threads: int | None = None) -> Encoder:
    """Open an encoder backend by name.

    Raises:
        BackendUnavailable: no such backend, or its library is not installed.
        BundleError: the file cannot be run.
    """
    if name not in ENCODERS:
        raise BackendUnavailable(f"no encoder backend {name!r}; there is: {', '.join(ENCODERS)}")
    return ENCODERS[name](path, threads)
