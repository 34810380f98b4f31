"""Small models to export, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqedge.config import AttentionConfig, EncoderConfig, LlmConfig, ModelConfig, QuantizerConfig

Array = np.ndarray[Any, Any]
BothArrays = tuple[dict[str, Array], dict[str, Array]]
LEVELS = 3


def config_of(kind: str) -> ModelConfig:
    """A small model with a quantizer of this kind."""
    quantizer = {"kind": kind, "codes": 64, "iterations": 2, "adaptive_error": 0.2}
    return ModelConfig(
        encoder=EncoderConfig(block=1, frames=2),
        quantizer=QuantizerConfig.model_validate(quantizer | {"levels": LEVELS, "entries": 40}),
        attention=AttentionConfig(width=48, heads=2, depth=1),
        llm=LlmConfig(width=64),
    )
