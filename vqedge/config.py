"""What a user may set, as pydantic models.

Unknown keys are refused, so a typo never passes silently.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

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
    """How patches become codes.

    `grid` and `random` are what quantising is compared with: equal blocks of the frames, and random
    patches instead of means.
    """

    kind: Literal["kmeans", "codebook", "grid", "random"] = "kmeans"
    codes: Annotated[int, Field(ge=1, le=256)] = 64
    """Rows of the result: the largest budget."""
    default_budget: Annotated[int, Field(ge=1, le=256)] = 32
    iterations: Annotated[int, Field(ge=1, le=64)] = 8
    adaptive_error: Annotated[float, Field(gt=0, lt=1)] = 0.15
    """The adaptive budget is the smallest whose mean cosine distance is at most this."""
    levels: Annotated[int, Field(ge=1, le=8)] = 4
    """Of a learned codebook: a code is the sum of one entry of each level."""
    entries: Annotated[int, Field(ge=2, le=65536)] = 1024
    """Of each level of a learned codebook."""

    @model_validator(mode="after")
    def _default_within_codes(self) -> Self:
        if self.default_budget > self.codes:
            raise ValueError(f"default_budget {self.default_budget} exceeds codes {self.codes}")
        return self


class AttentionConfig(Config):
    """VQ-Attention over the codes and the token hash."""

    width: PositiveInt = 384
    heads: PositiveInt = 6
    depth: Annotated[int, Field(ge=0)] = 2
    """Layers; 0 leaves the attention out."""
    hash: Literal["occupancy", "none"] = "occupancy"
    """What is told of where and when a code occurs."""
    blind: bool = False
    """Rows say nothing: what the questions alone give away."""


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


class WorldConfig(Config):
    """Generated clips of moving shapes."""

    kind: Literal["world"] = "world"
    seed: int = 1
    clips: PositiveInt = 4000
    weight: Annotated[float, Field(gt=0)] = 1.0
    caption_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How often one of a clip's questions asks for a description."""


class PhotosConfig(Config):
    """Clips composed of labelled photos; `index` is described in `vqedge.data.photos`."""

    kind: Literal["photos"]
    index: Path
    split: str = "train"
    seed: int = 1
    clips: PositiveInt = 2000
    weight: Annotated[float, Field(gt=0)] = 1.0
    caption_share: Annotated[float, Field(ge=0, le=1)] = 0.0


class JsonlConfig(Config):
    """Videos and questions of one's own; `path` is described in `docs/train-your-own.md`."""

    kind: Literal["jsonl"]
    path: Path
    weight: Annotated[float, Field(gt=0)] = 1.0


SourceConfig = Annotated[WorldConfig | PhotosConfig | JsonlConfig, Field(discriminator="kind")]


class DataConfig(Config):
    """What to train on: sources, mixed by weight."""

    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1)] = (WorldConfig(),)
    questions_per_clip: PositiveInt = 8
    time_reversal: bool = True
    """Show clips backwards too, where their questions can be turned."""
    budgets: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (8, 16, 32, 64)
    """Clips are quantised at each of these, and every step draws one of them."""
    keep_features: bool = False
    """Keep the patch features on disk, 1.6 MB a clip, for runs with other quantizers."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Processes that draw and decode clips while others are encoded."""


class OptimConfig(Config):
    """The optimiser and its schedule."""

    steps: PositiveInt = 1000
    clips_per_step: PositiveInt = 16
    accumulate: PositiveInt = 1
    """Parts that a step's clips are computed in, one after another, to save memory."""
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    bridge_learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    warmup_steps: PositiveInt = 30
    naming_steps: Annotated[int, Field(ge=0)] = 300
    """Steps of the bridge alone, learning to name its codes, before the language model joins."""
    naming_clips_per_step: PositiveInt = 48
    naming_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    naming_weight_decay: Annotated[float, Field(ge=0)] = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    commitment_weight: Annotated[float, Field(ge=0)] = 0.25
    """Of a learned codebook's own loss, beside that of the language model."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0


class TrainConfig(Config):
    """A training run: one YAML file."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    init: Path | None = None
    """Checkpoint to start from, instead of naming codes first."""
    output: Path = Path("runs/tiny")
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    save_every: PositiveInt = 50
    keep: Annotated[int, Field(ge=0)] = 2
    """Numbered checkpoints kept beside the newest."""
    validation: tuple[SourceConfig, ...] = (WorldConfig(seed=2, clips=64),)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if max(self.data.budgets) > self.model.quantizer.codes:
            raise ValueError("data.budgets: none may exceed model.quantizer.codes")
        if self.model.quantizer.default_budget not in self.data.budgets:
            raise ValueError("data.budgets: want model.quantizer.default_budget among them")
        if self.optim.clips_per_step % self.optim.accumulate:
            raise ValueError("optim.accumulate must divide optim.clips_per_step")
        return self


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
