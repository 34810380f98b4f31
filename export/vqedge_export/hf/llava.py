"""LLaVA-OneVision, with and without VQToken: which of its tensors go where.

`model.vision_tower` (SigLIP without its last block) and `model.mm_projector` go to
`encoder.safetensors`; `model.cross_attention` and `model.image_newline` go to `model.safetensors`
where the mode reads them; all others are Qwen2 and go to `llm.gguf`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from vqedge.choices import chosen
from vqedge.config import AttentionConfig, EncoderConfig, LlmConfig, ModelConfig, QuantizerConfig
from vqedge.errors import CheckpointError, ConfigError
from vqedge.model.official import HIDDEN
from vqedge.sampling import DEFAULT_RULE, FrameRule
from vqedge_export.hf.folder import HfFolder
from vqedge_export.hf.language import OUTPUT, Language, language_of, require_tied
from vqedge_export.hf.parts import Part, Shape, require_fit, transposed
from vqedge_export.hf.vision import encoder_config, family_of, tower_of_llava, unread, vision_parts

MODEL_TYPES = ("llava_qwen", "llava")
SYSTEM = "You are a helpful assistant."
PUBLISHED_RULE = FrameRule("ends", "stretch-bicubic")  # what the weights were trained on
OFFICIAL, PAPER, CODES = "official", "paper", "codes"
MODES = (OFFICIAL, PAPER, CODES)
ATTENTION = "model.cross_attention."
_NEWLINE = "model.image_newline"
_HEADS, _DEPTH = 8, 1  # of the published attention
_ROUNDS = 25  # of k-means from a deterministic start; the published code stops at 50 or earlier
_CODES, _BUDGET = 64, 32
_BUFFERS = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")
_TOWERS = ("model.vision_tower.vision_tower.", "model.vision_tower.")


@dataclass(frozen=True)
class Plan:
    """What an import will write.

    Attributes:
        config: of the checkpoint, without the sha256 of its weights.
        encoder: tensors of `encoder.safetensors`.
        bridge: tensors of `model.safetensors`; none of a bridge that is yet to be trained.
        language: None for the language model that is fetched.
        ignored: tensors of the source that are not needed.
    """

    config: ModelConfig
    encoder: list[Part]
    bridge: list[Part]
    language: Language | None
    ignored: tuple[str, ...]


def plan_from_llava(folder: HfFolder, mode: str | None, frames: int) -> Plan:
    """Plan the import of a LLaVA-OneVision folder; every tensor is accounted for.

    Args:
        folder: the source.
        mode: one of `MODES`; None for what its tensors allow.
        frames: of a clip.

    Raises:
        CheckpointError: it is built in a way that vqedge does not follow, or tensors do not fit.
        ConfigError: the mode needs tensors that it does not have.
        UsageError: it is none of `MODES`.
    """
    _require_layout(folder)
    mode = _mode(folder, mode)
    source, tower = tower_of_llava(folder)
    language = language_of(folder)
    width = language.config.hidden_size
    rule = DEFAULT_RULE if mode == PAPER else PUBLISHED_RULE
    more = rule._asdict() | {"final_norm": False, "projected": width, "frames": frames}
    encoder = encoder_config(folder, source, tower, -1, **more)
    prefix = _tower_prefix(folder) + family_of(source).prefix
    vision = vision_parts(encoder, family_of(source).size(tower) // encoder.backbone.patch, prefix)
    vision += _projector_parts(encoder.backbone.width, width)
    bridge = _bridge_parts(mode, encoder.grid**2, width)
    harmless = _harmless(mode, language, unread(encoder, prefix))
    spare = require_fit(folder, [*vision, *bridge, *language.parts], harmless)
    require_tied(folder, language)
    return Plan(_config(mode, encoder, language), vision, bridge, language, tuple(spare))


def _mode(folder: HfFolder, mode: str | None) -> str:
    trained = any(name.startswith(ATTENTION) for name in folder.tensors)
    if mode is None:
        return OFFICIAL if trained else CODES
    if chosen("--mode", mode, MODES) == OFFICIAL and not trained:
        raise ConfigError(
            f"--mode official: {folder.path} has no {ATTENTION}*, it is plain LLaVA-OneVision; "
            "use --mode codes, or --mode paper to train an attention"
        )
    return mode


def _require_layout(folder: HfFolder) -> None:
    """Refuse what the published checkpoint does not do, instead of computing something else."""
    config = folder.config
    wanted = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_patch_merge_type": ("spatial_unpad",),
        "mm_newline_position": ("one_token", None),
        "mm_vision_select_feature": ("patch", None),
    }
    for name, known in wanted.items():
        if config.get(name) not in known:
            raise CheckpointError(
                f"{folder.path}/config.json: {name} is {config.get(name)!r}, want {known[0]!r} as "
                "LLaVA-OneVision has it"
            )


def _tower_prefix(folder: HfFolder) -> str:
    return next(
        (p for p in _TOWERS if any(name.startswith(p) for name in folder.tensors)), _TOWERS[0]
    )


def _config(mode: str, encoder: EncoderConfig, language: Language) -> ModelConfig:
    width = language.config.hidden_size
    quantizer = QuantizerConfig(codes=_CODES, default_budget=_BUDGET)
    attention = AttentionConfig()
    if mode != PAPER:
        quantizer = QuantizerConfig(
            codes=_CODES, default_budget=_BUDGET, iterations=_ROUNDS, unit_means=mode == OFFICIAL
        )
        kind: Literal["official", "none"] = "official" if mode == OFFICIAL else "none"
        attention = AttentionConfig(kind=kind, width=width, heads=_HEADS, depth=_DEPTH)
    llm = LlmConfig(source="checkpoint", width=width, system=SYSTEM)
    return ModelConfig(encoder=encoder, quantizer=quantizer, attention=attention, llm=llm)


def _projector_parts(inputs: int, outputs: int) -> list[Part]:
    parts = []
    for layer, (name, width) in enumerate((("fc1", inputs), ("fc2", outputs))):
        source = f"model.mm_projector.{2 * layer}"
        weight = Part(f"projector.{name}.weight", f"{source}.weight", (outputs, width), transposed)
        parts += [weight, Part(f"projector.{name}.bias", f"{source}.bias", (outputs,))]
    return parts


def _bridge_parts(mode: str, patches: int, width: int) -> list[Part]:
    if mode == PAPER:
        return []
    shapes = _attention_shapes(patches, width) if mode == OFFICIAL else {}
    parts = [
        Part(f"bridge.cross_attention.{name}", ATTENTION + name, shape)
        for name, shape in shapes.items()
    ]
    return [*parts, Part("bridge.image_newline", _NEWLINE, (width,))]


def _attention_shapes(patches: int, width: int) -> dict[str, Shape]:
    layer: dict[str, Shape] = {
        "linear1.weight": (HIDDEN, width),
        "linear1.bias": (HIDDEN,),
        "linear2.weight": (width, HIDDEN),
        "linear2.bias": (width,),
    }
    for name in ("norm1", "norm2", "norm3"):
        layer |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for name in ("self_attn", "multihead_attn"):
        layer |= {
            f"{name}.in_proj_weight": (3 * width, width),
            f"{name}.in_proj_bias": (3 * width,),
        }
        layer |= {f"{name}.out_proj.weight": (width, width), f"{name}.out_proj.bias": (width,)}
    below = "transformer_decoder.layers.0."
    shapes: dict[str, Shape] = {"to_q_proj.weight": (width, patches), "to_q_proj.bias": (width,)}
    return shapes | {below + name: shape for name, shape in layer.items()}


def _harmless(mode: str, language: Language, of_tower: list[str]) -> Callable[[str], bool]:
    """Tells tensors that may be there although nothing is made of them."""
    prefixes = of_tower + ([OUTPUT] if language.tied else [])
    prefixes += [] if mode == OFFICIAL else [ATTENTION]
    prefixes += [_NEWLINE] if mode == PAPER else []
    beginnings = tuple(prefixes)
    return lambda name: name.startswith(beginnings) or bool(_BUFFERS.fullmatch(name))
