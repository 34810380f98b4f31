"""A GGUF is parsed once for a model, which is the one that transformers makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from tiny_gguf import wild_tensors, write_gguf
from transformers import AutoModelForCausalLM

from vqedge.model.gguf_reading import parsed_once
from vqedge.model.llm import llm_from_gguf


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were parsed, one after another."""
    found: list[str] = []
    read = gguf.GGUFReader

    def noting(path: str, *more: Any) -> Any:
        found.append(Path(path).name)
        return read(path, *more)

    monkeypatch.setattr(gguf, "GGUFReader", noting)
    return found


def test_a_model_is_that_of_transformers_from_one_parse(tmp_path: Path, parsed: list[str]) -> None:
    path = write_gguf(tmp_path / "wild.gguf", wild_tensors())
    reader = gguf.GGUFReader
    wanted: Any = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=path.name, dtype=torch.float32
    )
    assert len(parsed) > 1, "else transformers parses once by itself, and this can go"
    for _ in range(2):
        parsed.clear()
        state = llm_from_gguf(path).state_dict()
        assert parsed == ["wild.gguf"]
        assert state.keys() == wanted.state_dict().keys()
        assert all(torch.equal(state[name], value) for name, value in wanted.state_dict().items())
    assert gguf.GGUFReader is reader, "what stood there before stands there again"


def test_one_within_another_leaves_the_outer_on(tmp_path: Path, parsed: list[str]) -> None:
    path = str(write_gguf(tmp_path / "wild.gguf", wild_tensors()))
    with parsed_once():
        gguf.GGUFReader(path)
        with parsed_once():
            gguf.GGUFReader(path)
        gguf.GGUFReader(path)
    assert parsed == ["wild.gguf"]
