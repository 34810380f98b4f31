"""The table of input embeddings that is read out of a GGUF: the file's own, whole, or refused."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_gguf import VOCABULARY, WIDTH, embedding_rows, gguf, wild_tensors, write_gguf

from vqedge.errors import BackendUnavailable, BundleError
from vqedge_runtime.llm import open_llama_cpp
from vqedge_runtime.llm.build_flags import pip_line

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
from vqedge_runtime.llm.embeddings import EmbeddingTable

COUNT = len(VOCABULARY)


def write_table(path: Path, table: Any, kind: Any = None) -> Path:
    """A GGUF of nothing but a table, and a tensor behind it."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", table, raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(4 * WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_its_rows_are_the_tables_and_nothing_behind_it(kind: str, tmp_path: Path) -> None:
    stored = gguf.GGMLQuantizationType[kind]
    values = np.random.default_rng(1).normal(0, 0.1, (COUNT, WIDTH)).astype(np.float32)
    path = write_table(tmp_path / "a.gguf", gguf.quants.quantize(values, stored), stored)
    table = EmbeddingTable(path, WIDTH, COUNT)
    ids = [0, 7, COUNT - 1]
    assert np.array_equal(table.rows(ids), embedding_rows(path, ids))
    with pytest.raises(IndexError):
        table.rows([COUNT])


ROWS = f"is not {COUNT} rows of {WIDTH}"
REFUSED: dict[str, tuple[Any, str]] = {
    "fewer rows": (np.ones((COUNT - 1, WIDTH), np.float32), ROWS),
    "wider rows": (np.ones((COUNT, WIDTH + 32), np.float16), ROWS),
    "integers": (np.ones((COUNT, WIDTH), np.int32), "is i32"),
    "doubles": (np.ones((COUNT, WIDTH), np.float64), "is f64"),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_another_table_is_refused(problem: str, tmp_path: Path) -> None:
    table, why = REFUSED[problem]
    path = write_table(tmp_path / "a.gguf", table)
    with pytest.raises(BundleError, match=rf"a\.gguf: token_embd.weight {why}; export it again"):
        EmbeddingTable(path, WIDTH, COUNT)


def test_a_table_that_was_cut_is_refused(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.gguf", np.ones((COUNT, WIDTH), np.float32))
    path.write_bytes(path.read_bytes()[: COUNT * WIDTH * 2])
    with pytest.raises(BundleError, match=r"a\.gguf: cannot be read.*; export it again"):
        EmbeddingTable(path, WIDTH, COUNT)


def test_a_file_that_was_replaced_is_noticed_and_none_is_held_open(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "wild.gguf", wild_tensors())
    other = write_table(tmp_path / "other.gguf", np.ones((COUNT - 1, WIDTH), np.float32))
    with open_llama_cpp(path, threads=1, context=64) as first:
        first.question_embedding("Which?")
        table = weakref.ref(first._embeddings)
    assert table() is None
    with open_llama_cpp(path, threads=1, context=64) as second:
        other.replace(path)
        with pytest.raises(BundleError, match="rows of"):
            second.question_embedding("Which?")


def test_a_library_without_the_calls_names_the_one_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqedge_runtime.llm.ggml.ggml", None)
    with pytest.raises(BackendUnavailable, match=f"follow it; run: {re.escape(pip_line())}"):
        EmbeddingTable(tmp_path / "a.gguf", WIDTH, COUNT)


def test_the_file_is_found_from_another_folder(
    wild_path: Path, wild: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(wild_path.parent)
    with open_llama_cpp(Path(wild_path.name), threads=1, context=256) as llm:
        monkeypatch.chdir(tmp_path)
        found = llm.question_embedding("What moves?")
    np.testing.assert_array_equal(found, wild.question_embedding("What moves?"))
