"""A made language model of random weights, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def wild_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its file; skips where there is no llama.cpp, or no gguf to make the model with."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from tiny_gguf import wild_tensors, write_gguf

    return write_gguf(tmp_path_factory.mktemp("wild") / "wild.gguf", wild_tensors())


@pytest.fixture
def wild(wild_path: Path) -> Iterator[Any]:
    """Open, on one thread."""
    from vqedge_runtime.llm import open_llama_cpp

    with open_llama_cpp(wild_path, threads=1, context=256) as llm:
        yield llm
