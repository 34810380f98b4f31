"""Merge a LoRA adapter into the dequantised base GGUF and quantise the result again. No torch.

The adapter was trained against exactly these dequantised weights, so nothing is lost between
training and deployment but the final rounding.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from vqedge.choices import chosen
from vqedge.config import LlmConfig
from vqedge.errors import CheckpointError, ExportError

logger = logging.getLogger(__name__)

Floats = npt.NDArray[np.floating]

LLM_QUANTS: dict[str, int] = {
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}
_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LORA_PREFIX = "base_model.model.model.layers."
_SKIPPED_FIELDS = ("GGUF.", "general.file_type", "general.architecture")
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_SCORES, _SUPPRESSED = "tokenizer.ggml.scores", "tokenizer.ggml.suppress_tokens"
_PER_TOKEN = {
    _TOKENS: gguf.GGUFValueType.STRING,
    _TYPES: gguf.GGUFValueType.INT32,
    _SCORES: gguf.GGUFValueType.FLOAT32,
    _SUPPRESSED: gguf.GGUFValueType.INT32,
}
_Value = tuple[Any, Unpack[tuple[gguf.GGUFValueType, ...]]]  # of a field, and its types


@contextmanager
def _quiet() -> Iterator[None]:
    """llama.cpp talks to our log inside, to whom it talked before afterwards."""
    before, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(user_data))
    callback = llama_cpp.llama_log_callback(_log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p())
    try:
        yield
    finally:
        llama_cpp.llama_log_set(before, user_data)


def _log(level: int, text: bytes, _user: ctypes.c_void_p) -> None:
    logger.debug("llama.cpp: %s", text.decode(errors="replace").rstrip())


@dataclass(frozen=True)
class AddedTokens:
    """Tokens to put after those of a vocabulary: read, but never generated.

    Attributes:
        spellings: of each, as no other token is spelled.
        rows: float `[n, width]`, their embeddings.
    """

    spellings: Sequence[str]
    rows: Floats


@dataclass(frozen=True)
class LlmFacts:
    """What the manifest says about the language model."""

    arch: str
    width: int
    vocab_size: int
    context_length: int
    chat_template: str


def check_quant(quant: str) -> None:
    """Refuse a type that no language model comes in.

    Raises:
        UsageError: it is none of `LLM_QUANTS`.
    """
    chosen("--llm-quant", quant, LLM_QUANTS)


def gguf_from_lora(
    base: Path,
    lora: Mapping[str, Floats],
    config: LlmConfig,
    out: Path,
    quant: str,
    added: AddedTokens | None = None,
) -> None:
    """Write `out`: base weights plus adapter, stored as `quant`.

    Args:
        base: the fetched GGUF.
        lora: the adapter's tensors, PEFT names, `lora_A [r, in]` and `lora_B [out, r]`; or none.
        config: rank and alpha.
        out: file to write.
        quant: a key of `LLM_QUANTS`.
        added: tokens to put into the vocabulary, as control tokens.

    Raises:
        CheckpointError: the adapter or the added rows do not fit the base.
        ExportError: llama.cpp could not quantise.
        UsageError: the type is unknown.
    """
    check_quant(quant)
    half = out.with_suffix(".f16.tmp")
    if not lora and added is None:  # imported, and not trained since
        return quantize(base, out, quant)
    try:
        _write_merged(base, lora, config, half, added)
        if quant == "F16":
            half.replace(out)
        else:
            quantize(half, out, quant)
    finally:
        half.unlink(missing_ok=True)


def quantize(source: Path, out: Path, quant: str) -> None:
    """Quantise a GGUF file with llama.cpp's own quantiser."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = LLM_QUANTS[quant], True, 0
    with _quiet():
        code = llama_cpp.llama_model_quantize(
            str(source).encode(), str(out).encode(), ctypes.byref(params)
        )
    if code != 0:
        raise ExportError(f"llama.cpp could not quantise {source.name} to {quant} (code {code})")


def llm_facts(path: Path) -> LlmFacts:
    """What llama.cpp finds in a GGUF file; its tensors are mapped, so that a damaged one ends here.

    Raises:
        ExportError: llama.cpp cannot load it.
    """
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = 0
    with _quiet():
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), params)
    if model is None:
        raise ExportError(f"{path}: llama.cpp cannot load it; --debug shows what it says")
    try:
        template = llama_cpp.llama_model_chat_template(model, None) or b""
        return LlmFacts(
            _text_field(model, b"general.architecture"),
            llama_cpp.llama_model_n_embd(model),
            llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model)),
            llama_cpp.llama_model_n_ctx_train(model),
            "chatml" if b"<|im_start|>" in template else "gguf",
        )
    finally:
        llama_cpp.llama_model_free(model)


def _text_field(model: Any, key: bytes) -> str:
    text = ctypes.create_string_buffer(64)
    llama_cpp.llama_model_meta_val_str(model, key, text, len(text))
    return text.value.decode()


def _write_merged(
    base: Path,
    lora: Mapping[str, Floats],
    config: LlmConfig,
    out: Path,
    added: AddedTokens | None,
) -> None:
    reader = gguf.GGUFReader(base)
    arch = str(reader.fields["general.architecture"].contents())
    deltas = _deltas(lora, config, reader, arch)
    writer = gguf.GGUFWriter(out, arch)
    _copy_fields(reader, writer, _grown_fields(reader, arch, added) if added else {})
    for tensor in reader.tensors:
        weight = _merged(tensor, deltas)
        writer.add_tensor(tensor.name, _grown(tensor.name, weight, added) if added else weight)
    if deltas:
        raise CheckpointError(
            f"lora.safetensors: {sorted(deltas)[0]!r} has no weight in {base.name}"
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_fields(
    reader: gguf.GGUFReader, writer: gguf.GGUFWriter, grown: Mapping[str, _Value]
) -> None:
    """All fields of a file, those of a vocabulary that has grown in the place of what they were."""
    for field in reader.fields.values():
        if field.name.startswith(_SKIPPED_FIELDS) or field.name in grown:
            continue
        sub_type = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    for name, (value, *kinds) in grown.items():
        writer.add_key_value(name, value, *kinds)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _grown_fields(reader: gguf.GGUFReader, arch: str, added: AddedTokens) -> dict[str, _Value]:
    """Fields of the vocabulary with the added tokens: control tokens, none to be generated."""
    held = {name: field.contents() for name, field in reader.fields.items() if name in _PER_TOKEN}
    tokens = held[_TOKENS]
    if twice := set(tokens).intersection(added.spellings):
        raise CheckpointError(f"{min(twice)!r} is in the language model's vocabulary already")
    first, count = len(tokens), len(added.spellings)
    new = {
        _TOKENS: added.spellings,
        _TYPES: [int(gguf.TokenType.CONTROL)] * count,
        _SCORES: [0.0] * count,
        _SUPPRESSED: range(first, first + count),
    }
    held.setdefault(_SUPPRESSED, [])
    array = gguf.GGUFValueType.ARRAY
    fields = {name: ([*held[name], *new[name]], array, _PER_TOKEN[name]) for name in held}
    return {**fields, f"{arch}.vocab_size": (first + count, gguf.GGUFValueType.UINT32)}


def _grown(name: str, weight: Floats, added: AddedTokens) -> Floats:
    """A tensor with a row for every added token, if it is one of the vocabulary's.

    Where output and embedding are one tensor the added rows are outputs, too; what keeps them from
    being generated is that they are suppressed. An output of its own gets rows of zeros.
    """
    if name not in (_EMBEDDING, _OUTPUT):
        return weight
    rows = added.rows if name == _EMBEDDING else np.zeros_like(added.rows)
    if rows.shape != (len(added.spellings), weight.shape[1]):
        raise CheckpointError(
            f"model.safetensors: rows of {len(added.spellings)} video words are {rows.shape}, "
            f"the language model's are {weight.shape[1]} wide"
        )
    return np.concatenate([weight, rows.astype(weight.dtype)])


def _merged(tensor: gguf.ReaderTensor, deltas: dict[str, Floats]) -> Floats:
    """The tensor with its delta added: matrices as float16, vectors as float32.

    Takes the delta out.
    """
    weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if tensor.name in deltas:
        delta = deltas.pop(tensor.name)
        if delta.shape != weight.shape:
            raise CheckpointError(
                f"lora.safetensors: {tensor.name} is {delta.shape}, want {weight.shape}"
            )
        weight = weight + delta
    return weight.astype(np.float32 if weight.ndim == 1 else np.float16)


def _deltas(
    lora: Mapping[str, Floats], config: LlmConfig, reader: gguf.GGUFReader, arch: str
) -> dict[str, Floats]:
    """`alpha / r * B @ A` for every adapted layer, under the GGUF's tensor names and row order."""
    rotated = {"attn_q": "head_count", "attn_k": "head_count_kv"} if arch == "llama" else {}
    heads = {
        target: int(reader.fields[f"{arch}.attention.{count}"].contents())
        for target, count in rotated.items()
    }
    scale = config.lora_alpha / config.lora_rank
    deltas: dict[str, Floats] = {}
    for name, down in lora.items():
        if not name.endswith(".lora_A.weight"):
            continue
        place = name.removeprefix(_LORA_PREFIX).removesuffix(".lora_A.weight")
        layer, _, module = place.partition(".")
        up = lora.get(name.replace("lora_A", "lora_B"))
        if module not in _LAYER_NAMES or up is None or up.shape[1:] != down.shape[:1]:
            raise CheckpointError(f"lora.safetensors: {name!r} fits no layer, or not its lora_B")
        delta = scale * (up.astype(np.float32) @ down.astype(np.float32))
        target = _LAYER_NAMES[module]
        if target in heads:
            delta = _interleaved(delta, heads[target])
        deltas[f"blk.{layer}.{target}.weight"] = delta
    return deltas


def _interleaved(weight: Floats, heads: int) -> Floats:
    """Rows in the rotary order of llama.cpp's "llama": in a head, the two halves alternate."""
    rows, columns = weight.shape
    halves: Floats = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return halves.reshape(rows, columns)
