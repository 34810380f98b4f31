"""What a GGUF's header says, looked at before llama.cpp trusts it: a wrong number aborts it."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vqedge.bundle import LlmRecord
from vqedge.errors import BundleError
from vqedge_runtime.llm.ggml import (
    NUMBER,
    POINTER,
    SIZE,
    Calls,
    NotOffered,
    Types,
    calls_of,
    opened_gguf,
)

_ARCH, _TOKENS = "general.architecture", "tokenizer.ggml.tokens"
_MOST: dict[str, int | str] = {  # by key, without the architecture before it
    "block_count": 512,  # LLAMA_MAX_LAYERS
    "expert_count": 512,  # LLAMA_MAX_EXPERTS
    "expert_used_count": "expert_count",
    "nextn_predict_layers": "block_count",
}

Facts = dict[str, int | float | str]


def check_gguf(path: Path, record: LlmRecord | None = None) -> None:
    """Refuse a GGUF with a number that ends the process, or one that the manifest does not mean.

    What llama.cpp refuses by itself is left to it, a file that is no GGUF, too.

    Args:
        path: the file.
        record: what the bundle's manifest says of it, if it is one of a bundle.

    Raises:
        BundleError: so, with the key.
    """
    facts = gguf_facts(path)
    for key, value in facts.items():
        if not isinstance(value, str) and (wanted := _wanted_instead(key, value, facts)):
            raise BundleError(
                f"{path}: {key} is {value:g}, want {wanted}; export or fetch it again"
            )
    if record is not None and facts:
        _check_record(path, facts, record)


def gguf_facts(path: Path) -> Facts:
    """Numbers and texts of a GGUF's header by key, and of its tokens how many there are.

    Empty of a file that is no GGUF, and where this llama.cpp does not let anyone read its files.
    """
    try:
        calls = calls_of(_CALLS)
    except NotOffered:
        return {}
    with opened_gguf(calls, path) as file:
        return dict(_facts_of(calls, file)) if file else {}


def _wanted_instead(key: str, value: float, facts: Facts) -> str:
    """What a number of a header has to be; "" where it is that."""
    if not math.isfinite(value):
        return "a finite number"
    if key.endswith("epsilon") and value < 0:
        return "0 or more"
    if ".rope.freq_base" in key and value <= 0:
        return "more than 0"
    arch = f"{facts.get(_ARCH)}."
    most = _MOST.get(key.removeprefix(arch), value)
    most = facts.get(arch + most, 0) if isinstance(most, str) else most
    return f"{most} at most" if not isinstance(most, str) and value > most else ""


def _check_record(path: Path, facts: Facts, record: LlmRecord) -> None:
    width = facts.get(f"{facts.get(_ARCH)}.embedding_length")
    found = {
        "arch": (facts.get(_ARCH), record.arch),
        "width": (width, record.width),
        "vocab_size": (facts.get(_TOKENS), record.vocab_size),
    }
    for name, (own, told) in found.items():
        if own != told:
            raise BundleError(
                f"{path}: its {name} is {own}, the manifest says {told}; export again"
            )


_ARRAY = 9
_READS: dict[int, tuple[str, Any]] = {  # by type: what reads a value of it, and as what
    4: ("gguf_get_val_u32", ctypes.c_uint32),
    6: ("gguf_get_val_f32", ctypes.c_float),
    8: ("gguf_get_val_str", ctypes.c_char_p),
    12: ("gguf_get_val_f64", ctypes.c_double),
}
_CALLS: Types = {
    "gguf_get_n_kv": (NUMBER, (POINTER,)),
    "gguf_get_key": (ctypes.c_char_p, (POINTER, NUMBER)),
    "gguf_get_kv_type": (ctypes.c_int, (POINTER, NUMBER)),
    "gguf_get_arr_n": (SIZE, (POINTER, NUMBER)),
    **{name: (kind, (POINTER, NUMBER)) for name, kind in _READS.values()},
}


def _facts_of(calls: Calls, file: int) -> Iterator[tuple[str, int | float | str]]:
    for index in range(calls["gguf_get_n_kv"](file)):
        key = calls["gguf_get_key"](file, index).decode("utf-8", "replace")
        kind = calls["gguf_get_kv_type"](file, index)
        if kind in _READS:
            value = calls[_READS[kind][0]](file, index)
            yield key, value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        elif kind == _ARRAY and key == _TOKENS:
            yield key, calls["gguf_get_arr_n"](file, index)
