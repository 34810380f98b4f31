"""Small models to export, for tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from vqedge.config import AttentionConfig, EncoderConfig, LlmConfig, ModelConfig, QuantizerConfig

Array = np.ndarray[Any, Any]
BothArrays = tuple[dict[str, Array], dict[str, Array]]
LEVELS = 3


def config_of(kind: str) -> ModelConfig:
    """A small model with a quantizer of this kind; `words`: a codebook whose rows are words."""
    words = kind == "words"
    quantizer = {"codes": 64, "iterations": 2, "adaptive_error": 0.2, "kind": kind}
    quantizer |= {"levels": LEVELS, "entries": 40}
    quantizer |= {"kind": "codebook", "codebook_width": 24} if words else {}
    hashed = {"depth": 0, "hash": "tokens"} if words else {"depth": 1}
    return ModelConfig(
        encoder=EncoderConfig(block=1, frames=2),
        quantizer=QuantizerConfig.model_validate(quantizer),
        attention=AttentionConfig.model_validate({"width": 48, "heads": 2} | hashed),
        llm=LlmConfig(width=64),
    )
