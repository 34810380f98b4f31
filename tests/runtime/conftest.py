"""Two made language models, see `tiny_gguf`, and a made bundle for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import write_bundle

from vqedge.bundle import Bundle


@pytest.fixture
def bundle(tmp_path: Path, own_cache: Path) -> Bundle:
    """A bundle of files that are none, and a cache of its own."""
    return write_bundle(tmp_path / "a.vqedge")


@pytest.fixture(scope="session")
def wild_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of random weights; skips where llama.cpp is missing, or gguf to make it with."""
    return _written("wild", tmp_path_factory)


@pytest.fixture(scope="session")
def parrot_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says one thing; skips as the other does."""
    return _written("parrot", tmp_path_factory)


@pytest.fixture
def wild(wild_path: Path) -> Iterator[Any]:
    """Open, on one thread."""
    yield from _opened(wild_path)


@pytest.fixture
def parrot(parrot_path: Path) -> Iterator[Any]:
    """Open, on one thread."""
    yield from _opened(parrot_path)


@pytest.fixture(scope="module")
def base() -> Iterator[Any]:
    """The real one that `models/tiny` begins with, open on one thread; skips where it is not."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from tiny_gguf import base_gguf

    yield from _opened(base_gguf())


def _written(name: str, factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    import tiny_gguf

    tensors = {"wild": tiny_gguf.wild_tensors, "parrot": tiny_gguf.parrot_tensors}[name]
    return tiny_gguf.write_gguf(factory.mktemp(name) / f"{name}.gguf", tensors())


def _opened(path: Path) -> Iterator[Any]:
    from vqedge_runtime.llm import open_llama_cpp

    with open_llama_cpp(path, threads=1, context=256) as llm:
        yield llm
