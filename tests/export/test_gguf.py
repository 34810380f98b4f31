"""The merged language model: llama.cpp computes what transformers computes with the adapter."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import gguf
import llama_cpp
import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from tiny_gguf import wild_tensors, write_gguf

from vqedge.config import LlmConfig
from vqedge.errors import CheckpointError, ExportError, UsageError
from vqedge.model.llm import llm_from_gguf, tokenizer_from_gguf, with_lora
from vqedge_export.gguf import LLM_QUANTS, gguf_from_lora, llm_facts, quantize
from vqedge_runtime.llm import open_llama_cpp

Array = np.ndarray[Any, Any]
CONFIG = LlmConfig()
PROMPTS = (
    "Answer the question about the video. What color is the circle?",
    "Which way does the red star move, and how many objects are there in the video?",
    "Tell me a story about a cat that lived in a small house by the sea.",
)
CLEAR = 0.05  # of a logit: float16 weights may turn a choice that is closer than this
PREFIX = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def reader(base_gguf: Path) -> gguf.GGUFReader:
    """The base file."""
    return gguf.GGUFReader(base_gguf)


@pytest.fixture(scope="module")
def plain(base_gguf: Path, reader: gguf.GGUFReader, tmp_path_factory: Any) -> Path:
    """The base with an adapter that does nothing."""
    out: Path = tmp_path_factory.mktemp("plain") / "llm.gguf"
    gguf_from_lora(base_gguf, _pair(PREFIX), CONFIG, out, "F16")
    return out


@pytest.fixture(scope="module")
def plain_reader(plain: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(plain)


@pytest.fixture(scope="module")
def adapted(base_gguf: Path, reader: gguf.GGUFReader) -> Any:
    """The base with a random adapter, strong enough to change what the model says."""
    torch.manual_seed(0)
    llm: Any = with_lora(llm_from_gguf(base_gguf), CONFIG)
    for name, parameter in llm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return llm.eval()


@pytest.fixture(scope="module")
def tokenizers(base_gguf: Path) -> Iterator[Any]:
    """That of training, and the language model of the device."""
    with open_llama_cpp(base_gguf, threads=1, context=256) as device:
        yield tokenizer_from_gguf(base_gguf), device


def _pair(name: str, rows: int = 576, columns: int = 576, rank: int = 16) -> dict[str, Array]:
    """An adapter of one layer, all zero."""
    return {
        f"{name}.lora_A.weight": np.zeros((rank, columns), np.float16),
        f"{name}.lora_B.weight": np.zeros((rows, rank), np.float16),
    }


def test_a_zero_adapter_keeps_the_weights_to_float16(
    reader: gguf.GGUFReader, plain_reader: gguf.GGUFReader
) -> None:
    before, after = reader, plain_reader
    assert [tensor.name for tensor in after.tensors] == [tensor.name for tensor in before.tensors]
    for old, new in zip(before.tensors, after.tensors, strict=True):
        wanted = gguf.quants.dequantize(old.data, old.tensor_type)
        matrix = wanted.ndim > 1
        assert new.tensor_type.name == ("F16" if matrix else "F32")
        assert np.array_equal(new.data, wanted.astype(np.float16) if matrix else wanted), new.name


def test_everything_else_in_the_file_is_kept(
    base_gguf: Path, plain: Path, reader: gguf.GGUFReader, plain_reader: gguf.GGUFReader
) -> None:
    before, after = reader.fields, plain_reader.fields
    kept = {name for name in before if not name.startswith("GGUF.")} - {"general.file_type"}
    assert "tokenizer.ggml.tokens" in kept and kept <= set(after)
    for name in kept:
        assert after[name].contents() == before[name].contents(), name
    facts = llm_facts(plain)
    assert facts == llm_facts(base_gguf)
    assert (facts.arch, facts.width, facts.vocab_size) == ("llama", CONFIG.width, 49152)
    assert facts.chat_template == "chatml"


def _kl(reference: Array, found: Array) -> Array:
    """KL(reference || found) of every row, in nats."""
    log_p, log_q = (
        torch.from_numpy(logits).double().log_softmax(-1) for logits in (reference, found)
    )
    return (log_p.exp() * (log_p - log_q)).sum(-1).numpy()


def test_a_file_that_llama_cpp_cannot_load_has_no_facts(plain: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(plain.read_bytes()[:-1000])
    with pytest.raises(ExportError, match=r"cut\.gguf: llama\.cpp cannot load it"):
        llm_facts(cut)


@pytest.mark.slow
def test_llama_cpp_computes_the_merged_adapter(
    base_gguf: Path, adapted: Any, tmp_path: Path
) -> None:
    """Rows of query and key stand in another order in a GGUF: any other order fails here."""
    merged = tmp_path / "llm.gguf"
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    lora = {name: value.numpy() for name, value in state.items()}
    gguf_from_lora(base_gguf, lora, CONFIG, merged, "F16")
    with open_llama_cpp(merged, threads=1, context=256) as llm:
        prompts = [llm.tokens_from_text(text) for text in PROMPTS]
        found = np.concatenate([llm.logits(ids) for ids in prompts])
    with torch.inference_mode():
        wanted = _logits(adapted, prompts)
        with adapted.disable_adapter():
            base = _logits(adapted, prompts)
    divergence = _kl(wanted, found)
    print(f"{len(wanted)} positions, KL max {divergence.max():.2e} mean {divergence.mean():.2e}")
    assert _kl(base, wanted).mean() > 0.1, "the adapter changes too little to prove anything"
    assert divergence.max() < 0.005
    top = np.sort(wanted, axis=1)[:, -2:]
    clear = top[:, 1] - top[:, 0] > CLEAR
    assert clear.mean() > 0.9
    assert (wanted.argmax(1) == found.argmax(1))[clear].all()


def _logits(llm: Any, prompts: list[list[int]]) -> Array:
    return np.concatenate([llm(torch.tensor([ids])).logits[0].numpy() for ids in prompts])


def test_quantising_leaves_nothing_behind(plain: Path, tmp_path: Path) -> None:
    quantize(plain, tmp_path / "q8.gguf", "Q8_0")
    assert [path.name for path in tmp_path.iterdir()] == ["q8.gguf"]
    types = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "q8.gguf").tensors}
    assert types == {"Q8_0", "F32"}


def test_a_path_that_is_no_text_is_quantised_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    called = Mock(return_value=0)
    monkeypatch.setattr(llama_cpp, "llama_model_quantize", called)
    quantize(Path(os.fsdecode(b"caf\xe9.gguf")), Path(os.fsdecode(b"th\xe9.gguf")), "Q8_0")
    assert called.call_args.args[:2] == (b"caf\xe9.gguf", b"th\xe9.gguf")


@pytest.mark.usefixtures("interrupts")
@pytest.mark.parametrize("work", ["quantise", "load"])
def test_an_interrupt_while_llama_cpp_works_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    """Python hears it in the callback of the log, from which nothing can be raised."""
    path = write_gguf(tmp_path / "wild.gguf", wild_tensors())
    heard = Mock(side_effect=lambda *_: signal.raise_signal(signal.SIGINT))
    monkeypatch.setattr("vqedge_export.gguf.logger.debug", heard)
    with pytest.raises(KeyboardInterrupt):
        _ = quantize(path, tmp_path / "q8.gguf", "Q8_0") if work == "quantise" else llm_facts(path)
    assert heard.call_count > 1, "it was not stopped in the midst"


@pytest.mark.parametrize(
    "text", ["½", "is Ⅳ", "① and ²", "7月 at 12:30", "two  3s", "x² ٣٤٥", "say <|im_end|> now"]
)
def test_training_cuts_text_as_llama_cpp_does(tokenizers: Any, text: str) -> None:
    """As SmolLM2 does: every digit for itself, whatever it is beside."""
    training, device = tokenizers
    assert training.question(text) == device.prompt_ids(text)[1]
    assert training.answer(text)[:-1] == device.tokens_from_text(text)


@pytest.mark.parametrize("quant", ["Q3", "q8_0", ""])
def test_an_unknown_type_of_weights(base_gguf: Path, tmp_path: Path, quant: str) -> None:
    with pytest.raises(UsageError, match="choose one of F16, Q8_0, Q4_K_M, Q4_0"):
        gguf_from_lora(base_gguf, {}, CONFIG, tmp_path / "x.gguf", quant)
    assert list(LLM_QUANTS) == ["F16", "Q8_0", "Q4_K_M", "Q4_0"]


MISFITS = {
    "no such layer": _pair(PREFIX.replace("layers.0", "layers.99")),
    "no such module": _pair(PREFIX.replace("q_proj", "x_proj")),
    "another model": _pair("encoder.block"),
    "half missing": {f"{PREFIX}.lora_A.weight": np.zeros((16, 576), np.float16)},
    "ranks differ": _pair(PREFIX) | {f"{PREFIX}.lora_A.weight": np.zeros((8, 576), np.float16)},
    "too narrow": _pair(PREFIX, columns=64),
    "too short": _pair(PREFIX, rows=288),
    "too large": {name: array + np.float16(300) for name, array in _pair(PREFIX).items()},
}


@pytest.mark.parametrize("problem", MISFITS)
@pytest.mark.usefixtures("reader")
def test_an_adapter_that_fits_nothing(base_gguf: Path, tmp_path: Path, problem: str) -> None:
    with pytest.raises(CheckpointError, match=r"lora\.safetensors: "):
        gguf_from_lora(base_gguf, MISFITS[problem], CONFIG, tmp_path / "x.gguf", "F16")
    assert not list(tmp_path.iterdir()), "a half-made file was left behind"
