"""What a user may set, as pydantic models.

Unknown keys are refused, so a typo never passes silently.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    model_validator,
)

from vqedge.errors import ConfigError
from vqedge.prompt import SYSTEM
from vqedge.reducers import checked_kind
from vqedge.validation import first_fault

MAX_BLOCKS = 128

# Absent from the files, and the fingerprints, of models that do without.
unless_none: Any = Field(None, exclude_if=lambda value: value is None)
unless_false: Any = Field(False, exclude_if=lambda value: not value)
unless_zero: Any = Field(0, ge=0, exclude_if=lambda value: not value)


class Config(BaseModel):
    """Base of all configuration: immutable, strict about names."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any value."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


Activation = Literal["gelu", "gelu_tanh", "quick_gelu"]


class BackboneShape(Config):
    """A vision transformer, as far as the families differ."""

    width: PositiveInt
    heads: PositiveInt
    hidden: PositiveInt
    """Width inside the MLP."""
    blocks: Annotated[int, Field(ge=1, le=MAX_BLOCKS)]
    patch: PositiveInt
    eps: Annotated[float, Field(gt=0)]
    activation: Activation = "gelu"
    class_token: bool = True
    patch_bias: bool = True
    first_norm: bool = False
    """A LayerNorm before the first block."""
    layer_scale: bool = False
    mean: tuple[float, float, float]
    """Of the pixels that the weights expect, in 0..1."""
    std: tuple[float, float, float]

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads {self.heads} do not divide width {self.width}")
        return self


DINOV2_S14 = BackboneShape(
    width=384,
    heads=6,
    hidden=1536,
    blocks=12,
    patch=14,
    eps=1e-6,
    layer_scale=True,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)


BackboneSource = Literal["dinov2-s14-focus", "siglip", "clip", "dinov2"]


class EncoderConfig(Config):
    """The vision backbone and the frames it sees."""

    source: BackboneSource = "dinov2-s14-focus"
    """A row of `vqedge.base.backbones.BACKBONES`."""
    block: Annotated[int, Field(ge=1, le=MAX_BLOCKS)] = 9
    final_norm: bool = True
    trained_blocks: int = unless_zero
    """The last ones of `block`, trained with the bridge; the others are frozen."""
    size: PositiveInt = 224
    frames: PositiveInt = 8
    shape: BackboneShape | None = unless_none
    """Of a backbone whose weights lie in the checkpoint."""
    projected: PositiveInt | None = unless_none
    """Width of the features behind a projector of two layers; None where there is no projector."""
    weights_sha256: str | None = unless_none
    """Of the checkpoint's `encoder.safetensors`."""

    @model_validator(mode="after")
    def _fits_backbone(self) -> Self:
        if (self.shape is None) != (self.source == "dinov2-s14-focus"):
            raise ValueError(f"shape: goes with the other sources than {self.source!r}")
        if self.block > self.backbone.blocks:
            raise ValueError(f"block {self.block}: {self.source} has {self.backbone.blocks}")
        if self.trained_blocks and (self.trained_blocks >= self.block or self.projected):
            raise ValueError("trained_blocks: fewer than `block`, and no projector behind them")
        return self

    @property
    def trunk(self) -> EncoderConfig:
        """What is frozen: the blocks before those that are trained."""
        frozen = {"block": self.block - self.trained_blocks, "final_norm": False}
        return self.model_copy(update=frozen | {"trained_blocks": 0})

    @property
    def backbone(self) -> BackboneShape:
        """The shape of the vision transformer."""
        return self.shape or DINOV2_S14

    @property
    def width(self) -> int:
        """Of a patch's features, as the quantizer reads them."""
        return self.projected or self.backbone.width

    @property
    def grid(self) -> int:
        """Patches per side."""
        return self.size // self.backbone.patch

    @property
    def patches(self) -> int:
        """Patches in a clip: the visual tokens before quantisation."""
        return self.frames * self.grid**2


class QuantizerConfig(Config):
    """How patches become codes.

    `kmeans`, `codebook`, or a reducer of another paper as `reducer:NAME` (docs/reducers.md); `grid`
    and `random` are short for uniform pooling and random pruning.
    """

    kind: Annotated[str, AfterValidator(checked_kind)] = "kmeans"
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
    codebook_width: Annotated[int, Field(ge=1)] | None = unless_none
    """Codes are compared with a learned codebook by so few features, a learned projection of them:
    what no answer needs is left behind before entries are spent on it."""
    unit_means: bool = unless_false
    """A code is the mean of features of length one, as in the official code, not of raw ones."""

    @model_validator(mode="after")
    def _default_within_codes(self) -> Self:
        if self.default_budget > self.codes:
            raise ValueError(f"default_budget {self.default_budget} exceeds codes {self.codes}")
        return self


class AttentionConfig(Config):
    """VQ-Attention over the codes and the token hash."""

    kind: Annotated[
        Literal["paper", "official", "none"], Field(exclude_if=lambda kind: kind == "paper")
    ] = "paper"
    """`official`: that of the published weights; `none`: the codes are the rows. Both add one."""
    width: PositiveInt = 384
    heads: PositiveInt = 6
    depth: Annotated[int, Field(ge=0)] = 2
    """Layers; 0 leaves the attention out."""
    hash: Literal["occupancy", "none", "tokens"] = "occupancy"
    """What is told of where and when a code occurs; `tokens`: in words of a vocabulary, as are the
    codes, so that every row is looked up in a table (docs/video-words.md)."""
    blind: bool = False
    """Rows say nothing: what the questions alone give away."""


class LlmConfig(Config):
    """The language model and its adapter."""

    source: Literal["smollm2-135m-instruct", "checkpoint"] = "smollm2-135m-instruct"
    """`checkpoint`: the checkpoint's own `llm.gguf`."""
    weights_sha256: str | None = unless_none
    system: Annotated[str, Field(exclude_if=lambda text: text == SYSTEM)] = SYSTEM
    """The system message the model was trained with."""
    width: PositiveInt = 576
    lora_rank: PositiveInt = 16
    lora_alpha: PositiveInt = 32


class ModelConfig(Config):
    """Everything that fixes a checkpoint's shapes. Stored as `config.json` in the checkpoint."""

    encoder: EncoderConfig = EncoderConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    attention: AttentionConfig = AttentionConfig()
    llm: LlmConfig = LlmConfig()

    @model_validator(mode="after")
    def _blocks_fit(self) -> Self:
        if self.encoder.trained_blocks and self.quantizer.kind != "kmeans":
            raise ValueError("encoder.trained_blocks: goes with quantizer.kind kmeans")
        return self

    @model_validator(mode="after")
    def _words_fit(self) -> Self:
        if self.attention.hash == "tokens":
            if self.quantizer.kind != "codebook":
                raise ValueError("attention.hash: 'tokens' needs quantizer.kind codebook")
            if self.attention.depth or self.attention.blind:
                raise ValueError("attention.hash: 'tokens' goes with depth 0, and not with blind")
        return self


class WorldConfig(Config):
    """Generated clips of moving shapes."""

    kind: Literal["world"] = "world"
    seed: int = 1
    clips: PositiveInt = 4000
    weight: Annotated[float, Field(gt=0)] = 1.0
    caption_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """How often one of a clip's questions asks for a description."""
    kind_weights: dict[str, PositiveInt] = {}
    """How often kinds of questions are asked beside the others; 1 for those not named."""


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
    """Keep the patch features on disk, 1.6 MB a clip, for runs with other quantizers; those of a
    reducer with weights are always kept."""
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
    encoder_learning_rate: Annotated[float, Field(gt=0)] = 3e-5
    """Of `model.encoder.trained_blocks`."""
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
    compile: bool | None = None
    """Compile the language model's blocks, after which a step takes half as long; by default where
    a compiler is at hand and the steps are enough to be worth the minute."""


class TrainConfig(Config):
    """A training run: one YAML file."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    init: Path | None = None
    """Checkpoint to start from, instead of naming codes first; `model` is then its model."""
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
        if self.model.encoder.trained_blocks and self.init is None:
            raise ValueError("model.encoder.trained_blocks: want init, a model with frozen blocks")
        if self.model.attention.kind != "paper":
            raise ValueError("model.attention.kind: only 'paper' is trained here")
        return self

    @property
    def base(self) -> Path:
        """Folder of imported base weights: the checkpoint that the run starts from."""
        return self.init or self.output


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
        if values.get("init") and "model" not in values:
            values["model"] = _model_of(Path(values["init"]))
        return TrainConfig.model_validate(values)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; see recipes/tiny.yaml for an example") from None
    except (yaml.YAMLError, ValidationError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error


def _model_of(checkpoint: Path) -> dict[str, Any]:
    """The model that a run goes on with, unless it says another."""
    from vqedge.checkpoint import model_config_of  # which needs the classes above

    return model_config_of(checkpoint).model_dump(mode="json")


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"{override!r}: an override reads key.sub=value, as optim.steps=500")
    *parents, last = key.split(".")
    place: Any = values
    for parent in parents:
        if isinstance(place, dict):
            place = place.setdefault(parent, {})
        else:
            place = place[_number(parent, place, override)]
        if not isinstance(place, dict | list):
            raise ConfigError(f"{override!r}: {parent!r} is a value, it holds no keys")
    where = last if isinstance(place, dict) else _number(last, place, override)
    place[where] = yaml.safe_load(text)


def _number(key: str, items: list[Any], override: str) -> int:
    """Place in a list, counted from 0."""
    if not (key.isdecimal() and int(key) < len(items)):
        raise ConfigError(f"{override!r}: {key!r} is not one of {len(items)}, counted from 0")
    return int(key)


def _one_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_fault(error)
    return " ".join(str(error).split())
