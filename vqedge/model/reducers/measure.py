"""What a reducer costs and loses on a clip, apart from the answers: time, memory, error, FLOPs."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vqedge.flops import Transformer, nearest_codebook
from vqedge.model.quantizer import Quantized, unit

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # what proc(5) wants written


def quantisation_error(patches: Tensor, found: Quantized, unit_means: bool = False) -> float:
    """Squared distance of patches to the codes that stand for them, as a share of their squares.

    Args:
        patches: float `[N, D]`.
        found: their codes.
        unit_means: codes are means of patches of length one, which is what is compared then.
    """
    patches = unit(patches) if unit_means else patches
    rest = patches - found.codes[found.indices.long()]
    return float(rest.square().sum() / patches.square().sum())


def median_ms(call: Callable[[], object], runs: int) -> float:
    """Median wall time of a call on the CPU, after one run to warm up."""
    call()
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return 1000 * sorted(times)[len(times) // 2]


def peak_mb(call: Callable[[], object]) -> float | None:
    """How far the process's memory rises above where it stood; None where that cannot be told."""
    try:
        _return_free_memory()
        _CLEAR.write_text(_RESET_PEAK)
        before = _status_kb("VmRSS")
        call()
        return (_status_kb("VmHWM") - before) / 1024
    except OSError:
        return None


def matrix_flops(call: Callable[[], object]) -> int:
    """FLOPs of the matrix products of a call, NearestCodebook's among them."""
    op = torch.ops.vqedge.nearest_codebook
    with FlopCounterMode(display=False, custom_mapping={op: _nearest_codebook}) as counter:
        call()
    return int(counter.get_total_flops())


def decoder_of(llm: Any) -> Transformer:
    """Sizes of a transformers decoder of the Llama family."""
    config = llm.config
    head = config.hidden_size // config.num_attention_heads
    return Transformer(
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        ffn=config.intermediate_size,
        kv_width=head * config.num_key_value_heads,
        vocabulary=config.vocab_size,
    )


def _return_free_memory() -> None:
    """Give what was freed back to the system, else new memory is old memory and not seen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _nearest_codebook(x: Any, codebook: Any, *_: Any, **__: Any) -> int:
    return nearest_codebook(x[0], codebook[0], x[1])


def _status_kb(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
