"""A model of a few thousand weights, for tests that train or ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vqedge.config import AttentionConfig, EncoderConfig, LlmConfig, ModelConfig, QuantizerConfig
from vqedge.model.encoder import ClipQuantizer
from vqedge.model.llm import PromptTokenizer
from vqedge.model.vit import ViT

VOCABULARY, END = 64, 1
FRAMES, GRID, CODES, CODE_WIDTH = 3, 8, 5, 384
CONFIG = ModelConfig(
    encoder=EncoderConfig(frames=FRAMES, size=GRID * 14),
    quantizer=QuantizerConfig(codes=CODES, default_budget=CODES),
    attention=AttentionConfig(width=16, heads=2, depth=1),
    llm=LlmConfig(width=32, lora_rank=2, lora_alpha=4),
)


def tiny_llm() -> Any:
    """Random weights, always the same; the random state of the caller stays as it is."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=CONFIG.llm.width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False).eval()


def random_backbone(config: ModelConfig, _folder: Path = Path()) -> ClipQuantizer:
    """Random weights, always the same, of which k-means makes several codes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        vit = ViT(config.encoder.block, config.encoder.size)
        for parameter in vit.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
    return ClipQuantizer(config, vit.requires_grad_(False)).eval()


def tiny_tokenizer() -> PromptTokenizer:
    """One token a letter, by its code modulo the vocabulary; 1 ends the turn."""
    return PromptTokenizer(Letters(), before_video=[2, 3, 4], after_question=[5, 6], end=END)


class Letters:
    """Ids of a text, and of ids the numbers."""

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [7 + ord(letter) % (VOCABULARY - 7) for letter in text]}

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def random_maps(clips: int, seed: int = 0, used: int = CODES) -> torch.Tensor:
    """Index maps `[clips, T * grid * grid]` that hold codes below `used` only."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(used, (clips, FRAMES * GRID**2), generator=generator)


def random_codes(clips: int, seed: int = 0) -> torch.Tensor:
    """Codes `[clips, K, D]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(clips, CODES, CODE_WIDTH, generator=generator)
