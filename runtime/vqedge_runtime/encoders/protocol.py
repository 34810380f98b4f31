"""What an encoder does for a session, and what all of them share. NumPy only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vqedge.bundle import Manifest
from vqedge.errors import BackendUnavailable, BundleError
from vqedge.nearest_codebook import OP_NAME
from vqedge_runtime.tokens import Codes

Frames = npt.NDArray[np.uint8]
Text = npt.NDArray[np.float32]
"""A question, `[d_llm]`, of a bundle whose tokens follow it."""


class Encoder(Protocol):
    """Turns frames into codes."""

    @property
    def name(self) -> str:
        """What runs where, as "onnxruntime CPU fp32"."""

    def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
        """Encode uint8 RGB `[T, size, size, 3]` with at most `budget` codes, or `ADAPTIVE`.

        `text` is the question, of a bundle whose tokens follow it.
        """

    def close(self) -> None:
        """Free everything; twice is fine."""


@dataclass(frozen=True)
class Missing:
    """Why a backend cannot run here, and what would change that; "" where nothing does."""

    why: str
    fix: str


def made_question(manifest: Manifest) -> Text | None:
    """What stands for a question where encoders are timed or compared; None where none is read."""
    if not manifest.quantizer.per_question:
        return None
    return np.random.default_rng(0).normal(0.0, 0.1, manifest.llm.width).astype(np.float32)


def inputs_for(frames_thwc: Frames, budget: int, text: Text | None) -> dict[str, npt.NDArray[Any]]:
    """The inputs of an encoder's graph by their names."""
    named: dict[str, npt.NDArray[Any]] = {"frames": frames_thwc}
    named["budget"] = np.array(budget, np.int64)
    return named if text is None else named | {"text": text}


def utf8_path(path: Path) -> str:
    """A file's name for a library that makes UTF-8 of it, whatever the locale's encoding is.

    Raises:
        BundleError: the name is not UTF-8.
    """
    try:
        return os.fsencode(path).decode("utf-8")
    except UnicodeDecodeError:
        raise BundleError(
            f"{path}: its name is not UTF-8, as ONNX Runtime takes it; rename the folder"
        ) from None


def refusal(path: Path, reader: str, reason: str) -> BundleError | BackendUnavailable:
    """Why a library does not take an encoder's file: mostly the file's fault."""
    if OP_NAME in reason:
        return BackendUnavailable(
            f"{path}: exported with --plugin-node, which only TensorRT runs; "
            "use --backend tensorrt, or export again without it"
        )
    return BundleError(f"{path}: {reader} cannot load it ({reason}); export again")
