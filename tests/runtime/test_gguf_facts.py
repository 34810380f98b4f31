"""Numbers of a GGUF's header that end llama.cpp, or are not the manifest's: refused before it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import tiny_facts
from tiny_gguf import VOCABULARY, WIDTH, gguf

from vqedge.errors import BundleError

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
from vqedge_runtime.llm import gguf_facts, open_llama_cpp
from vqedge_runtime.llm.gguf_facts import check_gguf

NAN = float("nan")


def header(path: Path, arch: str = "llama", **numbers: float) -> Path:
    """A GGUF without tensors; `__` is a dot."""
    writer = gguf.GGUFWriter(path, arch)
    numbers = {"embedding_length": WIDTH, "block_count": 4, "expert_count": 2} | numbers
    for name, value in numbers.items():
        add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
        add(f"{arch}.{name.replace('__', '.')}", value)
    writer.add_token_list(VOCABULARY)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


REFUSED: dict[str, dict[str, float]] = {
    "llama.block_count is 100000, want 512 at most": {"block_count": 100_000},
    "llama.expert_count is 100000, want 512 at most": {"expert_count": 100_000},
    "llama.expert_used_count is 3, want 2 at most": {"expert_used_count": 3},
    "llama.nextn_predict_layers is 5, want 4 at most": {"nextn_predict_layers": 5},
    "rms_epsilon is nan, want a finite number": {"attention__layer_norm_rms_epsilon": NAN},
    "rms_epsilon is -1, want 0 or more": {"attention__layer_norm_rms_epsilon": -1.0},
    "rope.freq_base is inf, want a finite number": {"rope__freq_base": float("inf")},
    "rope.freq_base is 0, want more than 0": {"rope__freq_base": 0.0},
    "rope.scaling.factor is nan, want a finite number": {"rope__scaling__factor": NAN},
}


@pytest.mark.parametrize("problem", REFUSED)
def test_a_number_that_ends_the_process(tmp_path: Path, problem: str) -> None:
    path = header(tmp_path / "llm.gguf", **REFUSED[problem])
    with pytest.raises(BundleError, match=f"llm.gguf: .*{problem}; export or fetch it again"):
        check_gguf(path)
    with pytest.raises(BundleError, match=problem):
        open_llama_cpp(path)


def test_what_llama_cpp_runs_is_left_alone(wild_path: Path, tmp_path: Path) -> None:
    check_gguf(wild_path)
    most = {"block_count": 512, "expert_count": 512, "expert_used_count": 512}
    check_gguf(header(tmp_path / "a.gguf", **most, attention__layer_norm_epsilon=0.0))


@pytest.mark.parametrize("content", [b"", b"GGUF\3\0\0\0", b"not one"])
def test_what_is_no_gguf_is_left_to_llama_cpp(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "llm.gguf").write_bytes(content)
    check_gguf(tmp_path / "llm.gguf", tiny_facts().llm)


@pytest.mark.parametrize("name", ["arch", "width", "vocab_size"])
def test_another_model_than_the_manifests(wild_path: Path, name: str) -> None:
    own: dict[str, Any] = {"arch": "llama", "width": WIDTH, "vocab_size": len(VOCABULARY)}
    record = tiny_facts().llm.model_copy(update=own)
    check_gguf(wild_path, record)
    told = record.model_copy(update={name: 7})
    words = re.escape(f"its {name} is {own[name]}, the manifest says 7; export again")
    with pytest.raises(BundleError, match=words):
        check_gguf(wild_path, told)
    with pytest.raises(BundleError, match=words):
        open_llama_cpp(wild_path, record=told)


def test_a_library_without_the_calls_reads_none(
    wild_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqedge_runtime.llm.ggml.ggml", None)
    assert gguf_facts.gguf_facts(wild_path) == {}
