"""Two made GGUF models of a few megabytes, and where the real one is.

`wild` has random weights: what it says depends on every token and row it has read. `parrot` says
`SPEECH`, byte by byte, and then ends its turn, whatever it is asked.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vqedge.files import cache_root
from vqedge_runtime.llm import VideoRows

gguf = pytest.importorskip("gguf", reason="gguf, from vqedge[export], is not installed")

BASE_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHATML = (
    "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
WIDTH, HEADS, HIDDEN, CONTEXT = 320, 5, 64, 1024
SPEECH = "é€😀"
Array = npt.NDArray[Any]


def vocabulary() -> list[str]:
    """One token a byte, in GPT-2's spelling of bytes, "th", and three special ones."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(256)
    spelled = [chr(byte if byte in plain else next(others)) for byte in range(256)]
    return [*spelled, "th", "<|endoftext|>", "<|im_start|>", "<|im_end|>"]


VOCABULARY = vocabulary()
END = VOCABULARY.index("<|im_end|>")


def wild_tensors() -> dict[str, Array]:
    """Random weights of one block."""
    rng = np.random.default_rng(7)
    shapes = {
        "token_embd": (len(VOCABULARY), WIDTH),
        "output": (len(VOCABULARY), WIDTH),
        **{f"blk.0.attn_{part}": (WIDTH, WIDTH) for part in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (HIDDEN, WIDTH),
        "blk.0.ffn_up": (HIDDEN, WIDTH),
        "blk.0.ffn_down": (WIDTH, HIDDEN),
    }
    weights = {name: rng.normal(0, 0.15, shape) for name, shape in shapes.items()}
    norms = ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm")
    return weights | {name: np.ones(WIDTH) for name in norms}


def parrot_tensors(speech: str = SPEECH) -> dict[str, Array]:
    """Blocks that do nothing, one-hot embeddings, an output that names each byte's successor."""
    said = [ord("\n"), *speech.encode(), END]
    output = np.zeros((len(VOCABULARY), WIDTH))
    for current, following in itertools.pairwise(said):
        output[following, current] = 1
    still = {
        "blk.0.attn_output": np.zeros((WIDTH, WIDTH)),
        "blk.0.ffn_down": np.zeros((WIDTH, HIDDEN)),
    }
    return wild_tensors() | still | {"token_embd": np.eye(len(VOCABULARY), WIDTH), "output": output}


def write_gguf(path: Path, tensors: dict[str, Array], suppressed: tuple[int, ...] = ()) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(0)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([1] * 257 + [3] * 3)
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHATML)
    if suppressed:
        writer.add_array("tokenizer.ggml.suppress_tokens", list(suppressed))
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def base_gguf() -> Path:
    """The real model, from the cache or named by VQEDGE_TEST_GGUF; skips the test without it."""
    named = os.environ.get("VQEDGE_TEST_GGUF")
    found = [Path(named)] if named else sorted((cache_root() / "base").glob(f"*/{BASE_NAME}"))
    if not found:
        pytest.skip(f"{BASE_NAME} is neither in the cache nor named by VQEDGE_TEST_GGUF")
    return found[0]


def video(seed: int = 0, rows: int = 8, width: int = WIDTH) -> VideoRows:
    return VideoRows(np.random.default_rng(seed).normal(0, 0.1, (rows, width)).astype(np.float32))


def embedding_rows(path: Path, ids: list[int]) -> Array:
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    table = tensors["token_embd.weight"]
    return np.asarray(gguf.quants.dequantize(table.data[ids], table.tensor_type), np.float32)
