"""The vision backbones that a checkpoint may be built on: a row each, named by `encoder.source`.

The first comes as a package of the Python index. The others are families: their shape is read from
a Hugging Face configuration at import, their weights then lie in the checkpoint, under our names,
linear ones as `[in, out]`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqedge.base.focus_onnx import vit_arrays_from_onnx
from vqedge.base.tensors import Arrays, TensorFile
from vqedge.config import Activation, BackboneShape, BackboneSource

_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
}
_HALF, _IMAGENET_MEAN, _IMAGENET_STD = (0.5,) * 3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Family:
    """How Hugging Face names and shapes a kind of vision transformer.

    Attributes:
        model_types: of a configuration, that of the vision tower first.
        prefix: of the tower's tensors.
        defaults: values that a configuration may leave out, as transformers fills them in.
        fixed: of our shape, the same for the whole family.
        outer: our name to theirs, beside the blocks; linear layers without `.weight`.
        block: the same within a block, below `blocks`.
        blocks: prefix of the blocks, with `{}` for the number.
        position: their table of positions.
        batched: their tables have a first axis of length one.
        harmless: prefixes of tensors of the tower that no patch feature depends on.
        beside: the same of tensors outside the tower.
    """

    model_types: tuple[str, ...]
    prefix: str
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]
    outer: Mapping[str, str]
    block: Mapping[str, str]
    blocks: str
    position: str
    harmless: tuple[str, ...]
    beside: tuple[str, ...]
    batched: bool = False

    def shape(self, config: Mapping[str, Any]) -> BackboneShape:
        """Our shape of a tower's configuration.

        Raises:
            ValueError: it asks for something that this transformer does not do.
        """
        values = {**self.defaults, **config}
        activation = values["hidden_act"]
        if values.get("use_swiglu_ffn"):
            raise ValueError("a SwiGLU MLP (use_swiglu_ffn) that vqedge does not have")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"an MLP with {activation} that vqedge does not have")
        width = int(values["hidden_size"])
        hidden = values.get("intermediate_size") or int(width * values["mlp_ratio"])
        return BackboneShape(
            width=width,
            heads=values["num_attention_heads"],
            hidden=int(hidden),
            blocks=values["num_hidden_layers"],
            patch=values["patch_size"],
            eps=values["layer_norm_eps"],
            activation=_ACTIVATIONS[activation],
            **self.fixed,
        )

    def size(self, config: Mapping[str, Any]) -> int:
        """Side of the images that a tower's positions were trained for."""
        return int({**self.defaults, **config}["image_size"])


@dataclass(frozen=True)
class Backbone:
    """A row: where its weights come from, and how to import them.

    Attributes:
        arrays: tensors of a weights' file, under our names, positions as `position_grid`
            `[1, G*G, D]` and `position_cls` `[1, 1, D]` if there is a class token.
        family: None for weights that are fetched.
    """

    arrays: Callable[[Path], Arrays]
    family: Family | None = None


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


_CLIP_BLOCK = {
    **_both("norm1", "layer_norm1"),
    **_both("norm2", "layer_norm2"),
    **_both("attention.query", "self_attn.q_proj"),
    **_both("attention.key", "self_attn.k_proj"),
    **_both("attention.value", "self_attn.v_proj"),
    **_both("attention.output", "self_attn.out_proj"),
    **_both("mlp.fc1", "mlp.fc1"),
    **_both("mlp.fc2", "mlp.fc2"),
}
_DINOV2_BLOCK = {
    **_both("norm1", "norm1"),
    **_both("norm2", "norm2"),
    **_both("attention.query", "attention.attention.query"),
    **_both("attention.key", "attention.attention.key"),
    **_both("attention.value", "attention.attention.value"),
    **_both("attention.output", "attention.output.dense"),
    **_both("mlp.fc1", "mlp.fc1"),
    **_both("mlp.fc2", "mlp.fc2"),
    "scale1": "layer_scale1.lambda1",
    "scale2": "layer_scale2.lambda1",
}
_SIGLIP = Family(
    model_types=("siglip_vision_model", "siglip"),
    prefix="vision_model.",
    defaults={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 16,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    fixed={"class_token": False, "mean": _HALF, "std": _HALF},
    outer={
        **_both("patch", "embeddings.patch_embedding"),
        **_both("norm", "post_layernorm"),
    },
    block=_CLIP_BLOCK,
    blocks="encoder.layers.{}.",
    position="embeddings.position_embedding.weight",
    harmless=("head.", "embeddings.position_ids"),
    beside=("text_model.", "logit_scale", "logit_bias", "classifier."),
)
_CLIP = Family(
    model_types=("clip_vision_model", "clip"),
    prefix="vision_model.",
    defaults={
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 32,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    },
    fixed={"patch_bias": False, "first_norm": True, "mean": _CLIP_MEAN, "std": _CLIP_STD},
    outer={
        "patch.weight": "embeddings.patch_embedding.weight",
        "cls_token": "embeddings.class_embedding",
        **_both("first_norm", "pre_layrnorm"),
        **_both("norm", "post_layernorm"),
    },
    block=_CLIP_BLOCK,
    blocks="encoder.layers.{}.",
    position="embeddings.position_embedding.weight",
    harmless=("embeddings.position_ids",),
    beside=("text_model.", "logit_scale", "visual_projection.", "text_projection.", "classifier."),
)
_DINOV2 = Family(
    model_types=("dinov2",),
    prefix="",
    defaults={
        "hidden_size": 768,
        "mlp_ratio": 4,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    },
    fixed={"layer_scale": True, "mean": _IMAGENET_MEAN, "std": _IMAGENET_STD},
    outer={
        **_both("patch", "embeddings.patch_embeddings.projection"),
        "cls_token": "embeddings.cls_token",
        **_both("norm", "layernorm"),
    },
    block=_DINOV2_BLOCK,
    blocks="encoder.layer.{}.",
    position="embeddings.position_embeddings",
    harmless=("embeddings.mask_token",),
    beside=("classifier.",),
    batched=True,
)

BACKBONES: dict[BackboneSource, Backbone] = {
    "dinov2-s14-focus": Backbone(vit_arrays_from_onnx),
    "siglip": Backbone(TensorFile, _SIGLIP),
    "clip": Backbone(TensorFile, _CLIP),
    "dinov2": Backbone(TensorFile, _DINOV2),
}


def source_of(model_type: str) -> BackboneSource | None:
    """The row of a Hugging Face `model_type`; None if there is none."""
    for name, row in BACKBONES.items():
        if row.family and model_type in row.family.model_types:
            return name
    return None
