"""Rows of a GGUF's input embeddings, float32, as llama.cpp's own library reads its files.

llama.cpp has no call that gives them. ggml, which it brings along, tells where a tensor lies in the
file and turns every type of weights into float32; so no second table has to be in a bundle.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vqedge.errors import BackendUnavailable, BundleError
from vqedge_runtime.llm.native import ggml
from vqedge_runtime.llm.protocol import Rows

_TENSOR = b"token_embd.weight"
_FLOAT32 = 0  # GGML_TYPE_F32, which needs no turning


class _OpenHow(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


class _Traits(ctypes.Structure):
    """The beginning of `struct ggml_type_traits`."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("block", ctypes.c_int64),  # values
        ("interleave", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantised", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


class EmbeddingTable:
    """The input embeddings of a GGUF file, of which rows are read as they are asked for.

    Args:
        path: the file.
        width: of a row.

    Raises:
        BackendUnavailable: this llama.cpp does not let anyone read its files.
        BundleError: the file holds no such table.
    """

    def __init__(self, path: Path, width: int) -> None:
        calls = _calls()
        file = calls["gguf_init_from_file"](os.fsencode(path), _OpenHow(True, None))
        if not file:
            raise BundleError(f"{path}: cannot be read; export it again")
        try:
            number = calls["gguf_find_tensor"](file, _TENSOR)
            if number < 0:
                raise BundleError(f"{path}: holds no {_TENSOR.decode()}; export it again")
            self._kind = calls["gguf_get_tensor_type"](file, number)
            start = calls["gguf_get_data_offset"](file)
            start += calls["gguf_get_tensor_offset"](file, number)
        finally:
            calls["gguf_free"](file)
        self._traits = calls["ggml_get_type_traits"](self._kind).contents
        self.width = width
        row_bytes = width // self._traits.block * self._traits.block_bytes
        stored = np.memmap(path, np.uint8, "r", offset=start)
        self._rows = stored[: len(stored) // row_bytes * row_bytes].reshape(-1, row_bytes)

    def rows(self, ids: Sequence[int]) -> Rows:
        """The rows of token ids, float32 `[n, width]`."""
        stored = np.ascontiguousarray(self._rows[np.asarray(ids, np.int64)])
        if self._kind == _FLOAT32:
            return stored.view(np.float32)
        rows = np.empty((len(stored), self.width), np.float32)
        for source, target in zip(stored, rows, strict=True):
            self._traits.to_float(source.ctypes.data, target.ctypes.data, self.width)
        return rows


def _calls() -> dict[str, Any]:
    """The calls of ggml that are needed, with their types.

    Raises:
        BackendUnavailable: the library does not offer them.
    """
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64
    types: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "gguf_init_from_file": (pointer, (ctypes.c_char_p, _OpenHow)),
        "gguf_find_tensor": (number, (pointer, ctypes.c_char_p)),
        "gguf_get_tensor_type": (ctypes.c_int, (pointer, number)),
        "gguf_get_data_offset": (size, (pointer,)),
        "gguf_get_tensor_offset": (size, (pointer, number)),
        "gguf_free": (None, (pointer,)),
        "ggml_get_type_traits": (ctypes.POINTER(_Traits), (ctypes.c_int,)),
    }
    found = {}
    for name, (result, arguments) in types.items():
        call = getattr(ggml, name, None)
        if call is None:
            raise BackendUnavailable(
                f"this llama.cpp does not offer {name}, by which a question is read for bundles "
                "whose tokens follow it; install another llama-cpp-python"
            )
        call.restype, call.argtypes = result, arguments
        found[name] = call
    return found
