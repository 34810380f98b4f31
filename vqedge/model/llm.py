"""The language model in PyTorch: the dequantised base GGUF plus LoRA."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import torch
from peft import LoraConfig, get_peft_model
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from vqedge.config import LlmConfig
from vqedge.model.gguf_reading import parsed_once
from vqedge.prompt import SYSTEM, prompt_parts, question_text

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_RULES = "tokenizer.ggml.pre"  # by which llama.cpp cuts words, by name


@dataclass(frozen=True)
class PromptTokenizer:
    """Prompt pieces as token ids, cut exactly as the device cuts them."""

    tokenizer: Any
    before_video: list[int]
    after_question: list[int]
    end: int

    def words(self, question: str) -> list[int]:
        """Ids of a question alone, the line break before it included."""
        ids = self.tokenizer(
            question_text(question), add_special_tokens=False, split_special_tokens=True
        )
        return [*ids["input_ids"]]

    def question(self, question: str) -> list[int]:
        """Ids of a question and of the template text that opens the answer."""
        return [*self.words(question), *self.after_question]

    def answer(self, answer: str) -> list[int]:
        """Ids of an answer, closed by the end-of-turn token."""
        ids = self.tokenizer(answer, add_special_tokens=False, split_special_tokens=True)
        return [*ids["input_ids"], self.end]


def tokenizer_from_gguf(path: Path, system: str = SYSTEM) -> PromptTokenizer:
    """Read the tokenizer and the chat template out of a GGUF file."""
    with _only_errors(), parsed_once():
        # AutoTokenizer reads the file twice, seconds each, for a class that cuts no differently
        tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
        # of the same spelling as transformers', so that it is not parsed again
        rules = gguf.GGUFReader(os.path.join(path.parent, path.name)).get_field(_RULES)
    if rules is not None and rules.contents() == "smollm":  # transformers cuts by GPT-2's
        cutters = [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(cutters)
    parts = prompt_parts(
        lambda messages: tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        ),
        system,
    )
    before, after = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (parts.before_video, parts.after_question)
    )
    return PromptTokenizer(tokenizer, before, after, tokenizer.convert_tokens_to_ids("<|im_end|>"))


@contextmanager
def _only_errors() -> Iterator[None]:
    """Without transformers' advice about tokenizers, which does not hold for GGUF files."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def llm_from_gguf(path: Path) -> nn.Module:
    """Dequantise a GGUF file into a frozen transformers model, float32."""
    with parsed_once():
        model: Any = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
        )
    return model.requires_grad_(False).eval()


def with_lora(llm: nn.Module, config: LlmConfig) -> Any:
    """Wrap every linear layer of the blocks with a trainable low-rank adapter."""
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules=list(LORA_TARGETS),
        task_type="CAUSAL_LM",
    )
    return get_peft_model(llm, lora)


def decoder_of(llm: Any) -> Any:
    """The stack of blocks inside a causal model, with or without adapter."""
    return llm.get_base_model().model if hasattr(llm, "get_base_model") else llm.model


def can_compile(device: torch.device) -> bool:
    """Is there what `torch.compile` needs: a C++ compiler, and Triton on a GPU?"""
    usual = "clang++" if sys.platform == "darwin" else "g++"
    if shutil.which(os.environ.get("CXX", usual)) is None:
        return False
    return device.type != "cuda" or find_spec("triton") is not None


def compile_blocks(llm: Any, fall_back: bool = False) -> None:
    """Let `torch.compile` fuse what a block does between its matrix products.

    All blocks run the same code, so that it is compiled once, at the first call; once more where no
    gradients are wanted. Numbers differ in rounding.

    Args:
        llm: a causal model, with or without adapter.
        fall_back: run as before, after a warning of PyTorch's, should compiling fail.
    """
    torch._dynamo.config.suppress_errors = fall_back
    for block in decoder_of(llm).layers:
        block.compile(dynamic=True)


def hidden_states(llm: Any, embeddings: Tensor, allowed: Tensor, positions: Tensor) -> Tensor:
    """Last hidden states of prepared rows.

    Args:
        llm: a causal model, with or without adapter.
        embeddings: `[B, L, d]`.
        allowed: bool `[B, L, L]`, True where a row may read another.
        positions: int64 `[B, L]`.

    Returns:
        `[B, L, d]`, after the final norm.
    """
    bias = torch.zeros(allowed.shape, dtype=embeddings.dtype, device=embeddings.device)
    bias = bias.masked_fill(~allowed, torch.finfo(embeddings.dtype).min)[:, None]
    output = decoder_of(llm)(
        inputs_embeds=embeddings, attention_mask=bias, position_ids=positions, use_cache=False
    )
    return output.last_hidden_state


def mean_embeddings(llm: Any, ids: Tensor) -> Tensor:
    """What the language model's table says of questions, float32 `[Q, d]`: the mean of their words.

    Args:
        llm: a causal model, with or without adapter.
        ids: int64 `[Q, L]`, negative beyond a question's end.
    """
    there = (ids >= 0)[..., None]
    rows = llm.get_input_embeddings()(ids.clamp(min=0)).float() * there
    return rows.sum(dim=1) / there.sum(dim=1)
