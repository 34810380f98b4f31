"""A made language model of random weights, open, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def wild(tmp_path: Path) -> Iterator[Any]:
    """On one thread; skips where there is no llama.cpp, or no gguf to make the model with."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from tiny_gguf import wild_tensors, write_gguf

    from vqedge_runtime.llm import open_llama_cpp

    path = write_gguf(tmp_path / "wild.gguf", wild_tensors())
    with open_llama_cpp(path, threads=1, context=256) as llm:
        yield llm
