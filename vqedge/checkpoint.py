"""The checkpoint folder: which files it holds, and its configuration. Needs no torch.

`vqedge.model.checkpoint` handles the tensors with torch, `vqedge_export.assemble` with NumPy.
"""

from __future__ import annotations

import hashlib
import json
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
_NEEDED = (CONFIG, MODEL, LORA)


def model_config_of(folder: Path) -> ModelConfig:
    """Read a checkpoint's configuration and see that its files are there.

    Raises:
        CheckpointError: folder or file is missing, or the configuration does not fit this version.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: no such folder; give one from `vqedge train` or `vqedge import`"
        )
    for name in _NEEDED:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}: no {name}; is this a folder from `vqedge train`?")
    data = (folder / CONFIG).read_bytes()
    try:
        config = ModelConfig.model_validate_json(data)
        json.loads(data, object_pairs_hook=without_repeats)  # pydantic takes the last of two
    except ValidationError as error:
        raise CheckpointError(f"{folder / CONFIG}: {first_fault(error)}") from error
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG}: {error}; copy it again") from error
    return config


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
