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

import gguf

_NAMES = ("GGUFReader", "get_tensor_name_map")


@contextmanager
def parsed_once() -> Iterator[None]:
    """Within it `gguf` parses a file once: a large vocabulary takes 0.2 GB, so not for longer."""
    asked = {name: getattr(gguf, name) for name in _NAMES}
    for name, call in asked.items():
        setattr(gguf, name, lru_cache(maxsize=1)(call))
    try:
        yield
    finally:
        for name, call in asked.items():
            setattr(gguf, name, call)
