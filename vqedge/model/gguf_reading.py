"""A GGUF file parsed once for all that transformers reads of it.

transformers 4.57 parses the file for the configuration, for the names of the weights and for the
weights, and makes the table of all names anew for every module: six of the ten seconds that a model
of 135M took on two cores. It asks `gguf` for both at every call, so both are kept there meanwhile;
where it asks no more, nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import gguf

_ASKED = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}


@contextmanager
def parsed_once() -> Iterator[None]:
    """Within it `gguf` parses a file once: a large vocabulary takes 0.2 GB, so not for longer."""
    for name, kept in _KEPT.items():
        setattr(gguf, name, kept)
    try:
        yield
    finally:
        for name, call in _ASKED.items():
            setattr(gguf, name, call)
        _reader_of.cache_clear()


@lru_cache(maxsize=1)
def _reader_of(path: str) -> Any:
    return _ASKED["GGUFReader"](path)


@lru_cache(maxsize=1)
def _names_of(*arguments: Any) -> Any:
    return _ASKED["get_tensor_name_map"](*arguments)


_KEPT = {"GGUFReader": _reader_of, "get_tensor_name_map": _names_of}
