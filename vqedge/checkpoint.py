"""The checkpoint folder: which files it holds, and its configuration. Needs no torch.

`vqedge.model.checkpoint` handles the tensors with torch, `vqedge_export.assemble` with NumPy.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import ValidationError

from vqedge.config import ModelConfig
from vqedge.errors import CheckpointError
from vqedge.files import file_sha256
from vqedge.json_text import without_repeats
from vqedge.validation import first_fault

CONFIG = "config.json"
MODEL = "model.safetensors"
LORA = "lora.safetensors"
METRICS = "metrics.json"
GRAPH = "encoder.graph.onnx"
PARITY = "parity.json"
ENCODER_WEIGHTS = "encoder.safetensors"  # these three in a checkpoint on imported weights only
LLM_WEIGHTS = "llm.gguf"
ORIGIN = "origin.json"
SAVE = "save"  # in the metadata of both files of weights: of which save they are
_NEEDED = (CONFIG, MODEL, LORA)


def model_config_of(folder: Path, *, whole: bool = True) -> ModelConfig:
    """Read a checkpoint's configuration and see that its files are there.

    Args:
        folder: the checkpoint.
        whole: see that the weights are of one save, too; a run that goes on mends them.

    Raises:
        CheckpointError: folder or file is missing, the configuration does not fit this version, or
            the weights are of two saves.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; give one from `vqedge train` or `vqedge import`"
        )
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: no {name}; is this a folder from `vqedge train`?")
    if whole:
        _refuse_two_saves(folder)
    data = (folder / CONFIG).read_bytes()
    try:
        config = ModelConfig.model_validate_json(data)
        json.loads(data, object_pairs_hook=without_repeats)  # pydantic takes the last of two
    except ValidationError as error:
        raise CheckpointError(f"{folder / CONFIG}: {first_fault(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}; copy it again") from error
    return config


def _refuse_two_saves(folder: Path) -> None:
    from safetensors import SafetensorError

    with suppress(SafetensorError, OSError):  # who reads their tensors says so
        if _save_of(folder / MODEL) != _save_of(folder / LORA):
            raise CheckpointError(
                f"{folder}: {MODEL} and {LORA} are of two saves, as after a kill within one; "
                "`vqedge train --resume` mends it, or take a step-NNNNNN folder in it"
            )


def _save_of(path: Path) -> str | None:
    """The save that a file is of; None if it does not say, as its fellow then does not either."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        info: dict[str, str] = file.metadata() or {}
    return info.get(SAVE)


def steps_of(folder: Path) -> int | None:
    """How many steps a checkpoint was trained for, with those of what it started from."""
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return int(metrics["step"]) + int(metrics.get("steps_before", 0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None


def checkpoint_sha256(folder: Path) -> str:
    """One digest over the files that make the model, as 64 hex digits.

    Raises:
        OSError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for name in _NEEDED:
        digest.update(f"{name} {file_sha256(folder / name)}\n".encode())
    return digest.hexdigest()


def require_same_save(folder: Path, sha256: str) -> None:
    """See that a checkpoint is still what it was.

    Args:
        folder: the checkpoint.
        sha256: what `checkpoint_sha256` gave before anything was read of its weights.

    Raises:
        CheckpointError: it was saved anew.
        OSError: a file of it cannot be read.
    """
    if checkpoint_sha256(folder) != sha256:
        raise CheckpointError(
            f"{folder}: was saved anew meanwhile; run again, or take a step-NNNNNN folder in it"
        )


@contextmanager
def one_save(folder: Path) -> Iterator[None]:
    """What is read of a checkpoint meanwhile is of one save.

    Raises:
        CheckpointError: it is incomplete, or was saved anew.
        OSError: a file of it cannot be read.
    """
    model_config_of(folder)
    sha256 = checkpoint_sha256(folder)
    yield
    require_same_save(folder, sha256)
