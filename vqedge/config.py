"""What fixes a model, as pydantic models: what a checkpoint's `config.json` holds."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    model_validator,
)
from typing_extensions import Self

from vqedge.clip_limits import MAX_SIZE, require_clip_fits
from vqedge.prompt import SYSTEM
from vqedge.reducers import checked_kind
from vqedge.sampling import FrameRule, Resize, Sampling

MAX_BLOCKS = 128

# Absent from the files, and the fingerprints, of models that do without.
unless_none: Any = Field(None, exclude_if=lambda value: value is None)
unless_false: Any = Field(False, exclude_if=lambda value: not value)
unless_zero: Any = Field(0, ge=0, exclude_if=lambda value: not value)


class Config(BaseModel):
    """Base of all configuration: immutable; unknown names and infinite numbers are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any value."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _require_whole_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"heads {heads} do not divide width {width}")


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
    def _has_whole_heads(self) -> Self:
        _require_whole_heads(self.width, self.heads)
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
    size: Annotated[int, Field(ge=1, le=MAX_SIZE)] = 224
    frames: PositiveInt = 8
    sampling: Annotated[Sampling, Field(exclude_if=lambda rule: rule == "spans")] = "spans"
    resize: Annotated[Resize, Field(exclude_if=lambda rule: rule == "stretch")] = "stretch"
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

    @model_validator(mode="after")
    def _fits_a_bundle(self) -> Self:
        require_clip_fits(self.frames, self.size, self.grid)
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
        """Width of a patch's features, as the quantizer reads them."""
        return self.projected or self.backbone.width

    @property
    def rule(self) -> FrameRule:
        """How a video becomes frames."""
        return FrameRule(self.sampling, self.resize)

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

    `kmeans`, `codebook`, or a reducer of another paper as `reducer:NAME` (docs/reducers.md).
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
    """A code is the mean of features of length one, as in the official code, not of raw ones; a
    reducer reads them at that length."""

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
    hash: Literal["occupancy", "places", "none", "tokens"] = "occupancy"
    """What is told of where and when a code occurs; `places`: all but how fast it moves and grows;
    `tokens`: in words of a vocabulary, as are the codes, so that every row is looked up in a table
    (docs/video-words.md)."""
    blind: bool = False
    """Rows say nothing: what the questions alone give away."""

    @property
    def reads_hash(self) -> bool:
        """Does VQ-Attention read features of the token hash?"""
        return self.hash in ("occupancy", "places")

    @model_validator(mode="after")
    def _has_whole_heads(self) -> Self:
        _require_whole_heads(self.width, self.heads)
        return self


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
