"""What a user may set, as pydantic models.

Unknown keys are refused, so a typo never passes silently.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from vqedge.errors import ConfigError
from vqedge.validation import first_fault


class Config(BaseModel):
    """Base of all configuration: immutable, strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any value."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class EncoderConfig(Config):
    """The frozen vision backbone and the frames it sees."""

    source: Literal["dinov2-s14-focus"] = "dinov2-s14-focus"
    block: Annotated[int, Field(ge=1, le=12)] = 9
    final_norm: bool = True
    size: PositiveInt = 224
    frames: PositiveInt = 8

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.size // 14

    @property
    def patches(self) -> int:
        """Patches in a clip: the visual tokens before quantisation."""
        return self.frames * self.grid**2


class QuantizerConfig(Config):
    """How patches become codes."""

    kind: Literal["kmeans"] = "kmeans"
    codes: Annotated[int, Field(ge=1, le=256)] = 32
    iterations: Annotated[int, Field(ge=1, le=64)] = 8


class AttentionConfig(Config):
    """VQ-Attention over the codes and the token hash."""

    width: PositiveInt = 384
    heads: PositiveInt = 6
    depth: PositiveInt = 2


class LlmConfig(Config):
    """The language model and its adapter."""

    source: Literal["smollm2-135m-instruct"] = "smollm2-135m-instruct"
    width: PositiveInt = 576
    lora_rank: PositiveInt = 16
    lora_alpha: PositiveInt = 32


class ModelConfig(Config):
    """Everything that fixes a checkpoint's shapes. Stored as `config.json` in the checkpoint."""

    encoder: EncoderConfig = EncoderConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    attention: AttentionConfig = AttentionConfig()
    llm: LlmConfig = LlmConfig()


class DataConfig(Config):
    """The generated clips to train on."""

    seed: int = 1
    clips: PositiveInt = 4000
    questions_per_clip: PositiveInt = 8
    time_reversal: bool = True
    """Show every clip backwards too, with its directions turned."""


class OptimConfig(Config):
    """The optimiser and its schedule."""

    steps: PositiveInt = 1000
    clips_per_step: PositiveInt = 16
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    bridge_learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    warmup_steps: PositiveInt = 30
    naming_steps: Annotated[int, Field(ge=0)] = 300
    """Steps of the bridge alone, learning to name its codes, before the language model joins."""
    naming_clips_per_step: PositiveInt = 48
    naming_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class TrainConfig(Config):
    """A training run: one YAML file."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    output: Path = Path("runs/tiny")
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    save_every: PositiveInt = 50
    validation_clips: PositiveInt = 64
    validation_seed: int = 2


def train_config_from_yaml(path: Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a training file and apply `key.sub=value` overrides.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds an unknown key or a bad value.
    """
    try:
        values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: want keys and values; see recipes/tiny.yaml for an example")
        for override in overrides or []:
            _apply_override(values, override)
        return TrainConfig.model_validate(values)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; see recipes/tiny.yaml for an example") from None
    except (yaml.YAMLError, ValidationError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"{override!r}: an override reads key.sub=value, as optim.steps=500")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{override!r}: {parent!r} is a value, it holds no keys")
    values[last] = yaml.safe_load(text)


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_fault(error)
    return " ".join(str(error).split())
