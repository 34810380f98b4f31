"""Rows of a GGUF's input embeddings, float32, as llama.cpp's own library reads its files.

llama.cpp has no call that gives them. ggml, which it brings along, tells where a tensor lies in the
file and turns every type of weights into float32; so no second table has to be in a bundle.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vqedge.errors import BackendUnavailable, BundleError
from vqedge_runtime.llm.build_flags import pip_line
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
from vqedge_runtime.llm.protocol import Rows

_NAME = "token_embd.weight"
_FLOAT32 = 0  # GGML_TYPE_F32, which needs no turning


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
        count: of rows: tokens of the vocabulary.

    Raises:
        BackendUnavailable: this llama.cpp does not let anyone read its files.
        BundleError: the file holds no such table, or one of another size or type.
    """

    def __init__(self, path: Path, width: int, count: int) -> None:
        calls = _calls()
        self._kind, start, size_bytes = _place(calls, path)
        self._traits = traits = calls["ggml_get_type_traits"](self._kind).contents
        self.width = width
        if self._kind != _FLOAT32 and not traits.to_float:
            raise BundleError(f"{path}: {_NAME} is {traits.name.decode()}; export it again")
        if size_bytes * traits.block != count * width * traits.block_bytes:
            raise BundleError(f"{path}: {_NAME} is not {count} rows of {width}; export it again")
        try:
            self._rows = np.memmap(path, np.uint8, "r", start, (count, size_bytes // count))
        except (OSError, ValueError) as error:
            raise BundleError(f"{path}: cannot be read ({error}); export it again") from error

    def rows(self, ids: Sequence[int]) -> Rows:
        """The rows of token ids, float32 `[n, width]`."""
        stored = np.ascontiguousarray(self._rows[np.asarray(ids, np.int64)])
        if self._kind == _FLOAT32:
            return stored.view(np.float32)
        rows = np.empty((len(stored), self.width), np.float32)
        for source, target in zip(stored, rows, strict=True):
            self._traits.to_float(source.ctypes.data, target.ctypes.data, self.width)
        return rows


def _place(calls: Calls, path: Path) -> tuple[int, int, int]:
    """The table's type, where in the file it begins, and its size in bytes."""
    with opened_gguf(calls, path) as file:
        if not file:
            raise BundleError(f"{path}: cannot be read; export it again")
        number = calls["gguf_find_tensor"](file, _NAME.encode())
        if number < 0:
            raise BundleError(f"{path}: holds no {_NAME}; export it again")
        start = calls["gguf_get_data_offset"](file) + calls["gguf_get_tensor_offset"](file, number)
        size_bytes = calls["gguf_get_tensor_size"](file, number)
        return calls["gguf_get_tensor_type"](file, number), start, size_bytes


def _calls() -> Calls:
    """The calls of ggml that are needed, with their types.

    Raises:
        BackendUnavailable: the library does not offer them.
    """
    types: Types = {
        "gguf_find_tensor": (NUMBER, (POINTER, ctypes.c_char_p)),
        "gguf_get_tensor_type": (ctypes.c_int, (POINTER, NUMBER)),
        "gguf_get_data_offset": (SIZE, (POINTER,)),
        "gguf_get_tensor_offset": (SIZE, (POINTER, NUMBER)),
        "gguf_get_tensor_size": (SIZE, (POINTER, NUMBER)),
        "ggml_get_type_traits": (ctypes.POINTER(_Traits), (ctypes.c_int,)),
    }
    try:
        return calls_of(types)
    except NotOffered as missing:
        raise BackendUnavailable(
            f"this llama.cpp does not offer {missing}, by which a question is read for bundles "
            f"whose tokens follow it; run: {pip_line()}"
        ) from None
