"""A model whose videos are words: graph, bridge and GGUF tell the same words with the same rows."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_export import Array, config_of

from vqedge.budget import ADAPTIVE
from vqedge.checkpoint import MODEL
from vqedge.config import LlmConfig
from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge.errors import CheckpointError, ConfigError
from vqedge.model.checkpoint import Checkpoint, clip_quantizer, save_checkpoint
from vqedge.model.encoder import trained_bridge
from vqedge_export.assemble import graph_of
from vqedge_export.gguf import gguf_from_lora, llm_facts
from vqedge_export.gguf_merge import AddedTokens
from vqedge_export.graph import WORD_ROWS, BaseArrays, bridge_of, checkpoint_arrays, filled
from vqedge_export.onnx_export import outputs_of, write_graph
from vqedge_export.targets import engine_targets, require_words
from vqedge_runtime.llm import VideoRows, open_llama_cpp

CONFIG = config_of("words")
WORDS = ("<|v0|>", "<|v1|>", "<|t0-7|>")


@pytest.fixture(scope="module")
def word_checkpoint(vit_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Random words behind the real backbone's first block."""
    torch.manual_seed(4)
    bridge = trained_bridge(CONFIG)
    bridge.name_entries()
    bridge.finish()
    llm = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules="0"))
    position = clip_quantizer(CONFIG, Path()).vit.position
    folder = tmp_path_factory.mktemp("words")
    saved = save_checkpoint(folder, CONFIG, position, bridge, llm, {})
    write_graph(saved, vit_source)
    return saved


@pytest.fixture(scope="module")
def word_graph(word_checkpoint: Checkpoint, vit_source: Path) -> onnx.ModelProto:
    own = checkpoint_arrays(word_checkpoint.path / MODEL)
    base = dict(BaseArrays("dinov2-s14-focus", vit_source))
    return filled(graph_of(word_checkpoint.path), own, base)


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> dict[str, Array]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("budget", [ADAPTIVE, 5, 64])
def test_graph_and_bridge_tell_what_pytorch_tells(
    word_checkpoint: Checkpoint, word_graph: onnx.ModelProto, budget: int
) -> None:
    frames = frames_from_scene(scene_from_seed(7, 0), CONFIG.encoder.frames)
    found = run(word_graph, {"frames": frames, "budget": np.array(budget, np.int64)})
    assert tuple(found) == outputs_of(CONFIG)
    with torch.inference_mode():
        encoder = word_checkpoint.encoder()
        ids, index_map = torch.from_numpy(found["ids"]), torch.from_numpy(found["index_map"])
        wanted = encoder.bridge.rows(ids, index_map)
        seen = encoder(torch.from_numpy(frames), torch.tensor(budget))
    assert np.array_equal(found["words"], wanted.words.numpy())
    assert np.array_equal(found["tokens"], wanted.tokens.numpy())
    assert np.array_equal(found["row_mask"], wanted.row_mask.numpy())
    assert (seen.words == wanted.words).float().mean() > 0.95, "rounding moves few words"
    per_code = encoder.bridge.words.per_code
    assert found["row_mask"].sum() == found["mask"].sum() * per_code
    assert ((found["words"] >= 0) == found["row_mask"]).all()

    again = run(bridge_of(word_graph), {"ids": found["ids"], "index_map": found["index_map"]})
    for name, value in again.items():
        assert np.array_equal(value, found[name]), name
    assert set(again) == {"tokens", "row_mask", "words"}


def test_rows_are_those_of_the_table_that_goes_into_the_gguf(
    word_checkpoint: Checkpoint, word_graph: onnx.ModelProto
) -> None:
    frames = frames_from_scene(scene_from_seed(7, 1), CONFIG.encoder.frames)
    found = run(word_graph, {"frames": frames, "budget": np.array(8, np.int64)})
    table = checkpoint_arrays(word_checkpoint.path / MODEL)[WORD_ROWS].astype(np.float32)
    used = found["row_mask"]
    assert np.array_equal(found["tokens"][used], table[found["words"][used]])
    assert not found["tokens"][~used].any()


def test_a_checkpoint_without_words_has_none_to_export() -> None:
    asked = engine_targets("gguf-vocab")
    assert [row.name for row in asked] == ["gguf-vocab"]
    require_words(asked, CONFIG)
    require_words(engine_targets("tensorrt"), config_of("codebook"))
    with pytest.raises(ConfigError, match=r"gguf-vocab.*recipes/tiny-words"):
        require_words(asked, config_of("codebook"))


# ---- the language model


@pytest.fixture(scope="module")
def grown(base_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model with three words, each the double of an embedding that it has."""
    rows = np.stack(
        [_embedding(base_gguf, 260), 2 * _embedding(base_gguf, 7), _embedding(base_gguf, 9)]
    )
    out: Path = tmp_path_factory.mktemp("grown") / "llm.gguf"
    gguf_from_lora(base_gguf, {}, LlmConfig(), out, "Q8_0", AddedTokens(WORDS, rows))
    return out


@functools.cache
def _parsed(path: Path) -> gguf.GGUFReader:
    """Parsed once: it takes seconds."""
    return gguf.GGUFReader(path)


def _embedding(path: Path, token: int) -> Array:
    tensor = next(t for t in _parsed(path).tensors if t.name == "token_embd.weight")
    row: Array = gguf.quants.dequantize(tensor.data[token : token + 1], tensor.tensor_type)[0]
    return row


def test_words_are_control_tokens_after_all_others(grown: Path, base_gguf: Path) -> None:
    facts, base = llm_facts(grown), llm_facts(base_gguf)
    first = base.vocab_size
    assert facts.vocab_size == first + len(WORDS)
    assert (facts.arch, facts.width, facts.chat_template) == (base.arch, base.width, "chatml")
    fields = _parsed(grown).fields
    assert fields["tokenizer.ggml.tokens"].contents()[first:] == list(WORDS)
    assert fields["tokenizer.ggml.token_type"].contents()[first:] == [3] * len(WORDS)
    assert fields["tokenizer.ggml.suppress_tokens"].contents() == [first, first + 1, first + 2]


def test_a_word_reads_like_its_row_and_text_only_where_it_is_allowed(
    grown: Path, base_gguf: Path
) -> None:
    first = llm_facts(base_gguf).vocab_size
    with open_llama_cpp(grown, threads=1, context=256) as llm:
        model: Any = llm._model
        assert model.tokens_from_text("".join(WORDS), special=True) == [first, first + 1, first + 2]
        asked = llm.tokens_from_text(f"\nis it {WORDS[0]}<|im_end|>?")
        assert max(asked) < first and 2 not in asked, "a question is never read as words"
        told = llm.logits([first, first + 1, first + 2])
        rows = np.stack([_embedding(grown, first + n) for n in range(3)]).astype(np.float32)
        fed = llm.logits(rows)
        assert np.array_equal(told, fed)
        assert np.isneginf(told[:, first:]).all() and np.isfinite(told[:, :first]).all()
        answer = llm.ask(VideoRows(rows), "what is it?").text
    assert not any(word in answer for word in WORDS)


@pytest.mark.parametrize(
    ("spellings", "width", "problem"),
    [(("<|im_end|>",), 576, "vocabulary already"), (("<|v0|>",), 64, "576 wide")],
)
def test_words_that_do_not_fit(
    base_gguf: Path, tmp_path: Path, spellings: tuple[str, ...], width: int, problem: str
) -> None:
    added = AddedTokens(spellings, np.zeros((1, width), np.float32))
    with pytest.raises(CheckpointError, match=problem):
        gguf_from_lora(base_gguf, {}, LlmConfig(), tmp_path / "x.gguf", "F16", added)
    assert not list(tmp_path.iterdir())
