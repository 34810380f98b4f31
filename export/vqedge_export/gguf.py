"""The language model of a bundle: base GGUF plus adapter, quantised by llama.cpp. No torch."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp

from vqedge.choices import chosen
from vqedge.config import LlmConfig
from vqedge.cores import usable_cores
from vqedge.errors import ExportError
from vqedge.signals import signals_later
from vqedge_export.gguf_merge import AddedTokens, Floats, write_merged

logger = logging.getLogger(__name__)

LLM_QUANTS: dict[str, int] = {
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16,
    "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """llama.cpp logs to our log inside, and to the one from before afterwards.

    Nor do signals end it before then, see `signals_later`.
    """
    before, user_data = llama_cpp.llama_log_callback(), ctypes.c_void_p()
    llama_cpp.llama_log_get(ctypes.byref(before), ctypes.byref(user_data))
    callback = llama_cpp.llama_log_callback(_log)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p())
    try:
        with signals_later():
            yield
    finally:
        llama_cpp.llama_log_set(before, user_data)


def _log(level: int, text: bytes, _user: ctypes.c_void_p) -> None:
    logger.debug("llama.cpp: %s", text.decode(errors="replace").rstrip())


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
        write_merged(base, lora, config, half, added)
        if quant == "F16":
            half.replace(out)
        else:
            quantize(half, out, quant)
    finally:
        half.unlink(missing_ok=True)


def quantize(source: Path, out: Path, quant: str) -> None:
    """Quantise a GGUF file with llama.cpp's own quantiser.

    Raises:
        ExportError: llama.cpp could not.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = LLM_QUANTS[quant], True
    params.nthread = usable_cores()
    with _quiet():
        code = llama_cpp.llama_model_quantize(
            os.fsencode(source), os.fsencode(out), ctypes.byref(params)
        )
    if code != 0:
        raise ExportError(
            f"llama.cpp could not quantise the language model to {quant} (code {code}); is there "
            "room on the disk? --debug shows what it says"
        )


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
