"""ggml's reader of GGUF files, which llama.cpp brings along: its calls with their types."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vqedge_runtime.llm.native import ggml

POINTER, NUMBER, SIZE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
Calls = Mapping[str, Any]
Types = Mapping[str, tuple[Any, tuple[Any, ...]]]
"""What each call gives, and what it takes."""


class _OpenHow(ctypes.Structure):
    _fields_ = (("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p))


_OPENING: Types = {
    "gguf_init_from_file": (POINTER, (ctypes.c_char_p, _OpenHow)),
    "gguf_free": (None, (POINTER,)),
}


class NotOffered(Exception):
    """This llama.cpp's library has no such call; its name is the only argument."""


def calls_of(types: Types) -> Calls:
    """Calls by name, ready to use, beside those that `opened_gguf` needs.

    Raises:
        NotOffered: there is one that the library lacks.
    """
    found = {}
    for name, (result, arguments) in {**_OPENING, **types}.items():
        call = getattr(ggml, name, None)
        if call is None:
            raise NotOffered(name)
        call.restype, call.argtypes = result, arguments
        found[name] = call
    return found


@contextmanager
def opened_gguf(calls: Calls, path: Path) -> Iterator[int | None]:
    """A file's header, without its tensors; None of what is no GGUF."""
    file = calls["gguf_init_from_file"](os.fsencode(path), _OpenHow(True, None))
    try:
        yield file
    finally:
        if file:
            calls["gguf_free"](file)
