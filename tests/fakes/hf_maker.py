"""Hugging Face folders with random weights: VQToken, plain LLaVA-OneVision, vision towers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

QWEN2_CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WIDTH, GRID, IMAGE, PATCH = 64, 4, 30, 7  # 30 pixels: two more than whole patches cover
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
LANGUAGE = {
    "hidden_size": WIDTH,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rope_theta": 1e6,
}
LLAVA = {
    "architectures": ["LlavaQwenForCausalLM"],
    "model_type": "llava_qwen",
    "mm_projector_type": "mlp2x_gelu",
    "mm_patch_merge_type": "spatial_unpad",
    "mm_vision_select_feature": "patch",
    "mm_vision_tower": "google/tiny-siglip",
}
_WORDS = "What color is the circle? The square moves left, then right. It's 1234 o'clock.\n\nYes. "


def noise(rng: np.random.Generator, shape: Sequence[int], std: float) -> Tensor:
    """Nearly normally distributed, and of the same bits on every kind of CPU."""
    numbers = rng.integers(-999, 1000, (4, *shape)).sum(0)
    return torch.from_numpy(numbers * (std / 1154)).float()


def random_like(module: nn.Module, seed: int, std: float = 0.15) -> nn.Module:
    """Every parameter drawn anew, norms around one; the caller's random state stays."""
    rng = np.random.default_rng(seed)
    for name, parameter in module.named_parameters():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data.copy_(centre + noise(rng, parameter.shape, std))
    return module.requires_grad_(False).eval()


def tiny_tokenizer(path: Path) -> int:
    """Write a byte-level BPE `tokenizer.json` that cuts as Qwen2 does; how many ids it has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_CUTS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_WORDS] * 4, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(path / "tokenizer.json"))
    return int(tokenizer.get_vocab_size())


def tiny_qwen2(vocabulary: int, tied: bool = True) -> Any:
    config = Qwen2Config(
        vocab_size=vocabulary, tie_word_embeddings=tied, attn_implementation="sdpa", **LANGUAGE
    )
    return random_like(Qwen2ForCausalLM(config), seed=1)


def tiny_siglip() -> Any:
    return random_like(SiglipVisionModel(SiglipVisionConfig(**VISION)), seed=2)


def tiny_tower(kind: str) -> Any:
    """A vision tower of a row of the registry."""
    if kind == "siglip":
        return tiny_siglip()
    sizes = VISION | {"image_size": 28}
    if kind == "clip":
        return random_like(CLIPVisionModel(CLIPVisionConfig(**sizes)), seed=3)
    del sizes["intermediate_size"]
    return random_like(Dinov2Model(Dinov2Config(**sizes)), seed=4)


class PublishedAttention(nn.Module):
    """The published module's parameters, by their names."""

    def __init__(self, patches: int = GRID**2, width: int = WIDTH) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(width, 8)
        self.transformer_decoder = nn.TransformerDecoder(layer, 1)
        self.to_q_proj = nn.Linear(patches, width)


def order_by_distance(codes: Tensor) -> list[int]:
    """The one most like all, then each the farthest from those before it: what numbers follow."""
    unit = torch.nn.functional.normalize(codes.double(), dim=1)
    order = [int((codes.double() @ codes.double().sum(dim=0)).argmax())]
    while len(order) < len(codes):
        nearest = (unit @ unit[order].T).amax(dim=1)
        order.append(
            min(set(range(len(codes))) - set(order), key=lambda code: float(nearest[code]))
        )
    return order


def projector(inputs: int = 32, width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, width))


def llava_state(vocabulary: int, tied: bool = True) -> dict[str, Tensor]:
    """A state dict with the published names."""
    parts: dict[str, nn.Module] = {
        "": tiny_qwen2(vocabulary, tied),
        "model.vision_tower.vision_tower.": tiny_siglip(),
        "model.mm_projector.": random_like(projector(), seed=5),
        "model.cross_attention.": random_like(PublishedAttention(), seed=6),
    }
    state = {
        prefix + name: value.clone()
        for prefix, module in parts.items()
        for name, value in module.state_dict().items()
    }
    last = f"vision_model.encoder.layers.{VISION['num_hidden_layers'] - 1}."
    state = {n: v for n, v in state.items() if last not in n and ".head." not in n}
    if tied:
        del state["lm_head.weight"]
    return state | {"model.image_newline": noise(np.random.default_rng(7), [WIDTH], std=1.0)}


def write_llava(
    folder: Path, *, attention: bool = True, tied: bool = True, dtype: torch.dtype = torch.bfloat16
) -> Path:
    """A folder as the hub serves it: two shards, an index, a tokenizer, a card."""
    folder.mkdir(parents=True)
    vocabulary = tiny_tokenizer(folder) + 5  # rows without a token
    state = {name: value.to(dtype) for name, value in llava_state(vocabulary, tied).items()}
    if not attention:
        state = {n: v for n, v in state.items() if not n.startswith("model.cross_attention.")}
    config = LLAVA | LANGUAGE | {"vocab_size": vocabulary, "tie_word_embeddings": tied}
    config["vision_config"] = VISION | {"model_type": "siglip_vision_model"}
    write_json(folder / "config.json", config)
    write_shards(folder, state)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# a model\n")
    return folder


def write_tower(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    tower = tiny_tower(kind)
    write_json(folder / "config.json", tower.config.to_dict())
    save_file(tower.state_dict(), folder / "model.safetensors")
    return folder


def write_shards(folder: Path, state: dict[str, Tensor]) -> None:
    names = sorted(state)
    halves = {"model-00001-of-00002": names[::2], "model-00002-of-00002": names[1::2]}
    for shard, held in halves.items():
        save_file(
            {name: state[name].contiguous() for name in held}, folder / f"{shard}.safetensors"
        )
    index = {name: f"{shard}.safetensors" for shard, held in halves.items() for name in held}
    write_json(folder / "model.safetensors.index.json", {"weight_map": index})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, default=str))
