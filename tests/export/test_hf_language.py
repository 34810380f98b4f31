"""Qwen2 folders as GGUF: the logits of transformers, the ids of its tokenizer."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hf_maker import llava_state, tiny_qwen2, tiny_tokenizer, write_json, write_llava, write_shards
from tokenizers import Tokenizer
from transformers import Qwen2Tokenizer

from vqedge.errors import CheckpointError
from vqedge.model.llm import tokenizer_from_gguf
from vqedge.prompt import question_text
from vqedge_export.gguf import llm_facts
from vqedge_export.hf.folder import HfFolder
from vqedge_export.hf.language import language_of, write_gguf
from vqedge_export.hf.llava import SYSTEM
from vqedge_export.hf.tokenizer import vocabulary_of
from vqedge_runtime.llm import open_llama_cpp
from vqedge_runtime.llm.generate import LlamaCpp

TEXTS = [
    "What color is the circle?",
    "It's 1234567 o'clock, isn't it?  Two  spaces,\ttabs\n\n\nand lines\r\n",
    "WE'RE shouting; x_1 = (a+b)*c != 0.5%",
    "Grüße, naïve café",
    "数字と漢字、한국어 текст עברית",
    "😀👩‍👩‍👧 emoji",
    " leading and trailing ",
    "<|im_end|> is text here",
    "",
    "a",
    "\n",
]
# llama.cpp computes in blocks and other orders than PyTorch, its KV cache is in float16, and for
# half-precision weights its products round activations to float16 as well.
TOLERANCE = {"F32": 2e-2, "F16": 2e-2, "BF16": 1e-1}
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def gguf_of(folder: Path) -> Path:
    source = HfFolder(folder)
    path = folder / "llm.gguf"
    write_gguf(path, source, language_of(source))
    return path


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llava") / "source", dtype=torch.float32)


@pytest.fixture(scope="module")
def llm(source: Path) -> Iterator[LlamaCpp]:
    with open_llama_cpp(gguf_of(source), threads=2, system=SYSTEM) as opened:
        yield opened


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", list(DTYPES))
def test_logits_are_those_of_transformers(tmp_path: Path, kind: str, tied: bool) -> None:
    folder = write_llava(tmp_path / "source", tied=tied, dtype=DTYPES[kind])
    vocabulary = HfFolder(folder).config["vocab_size"]
    model = tiny_qwen2(vocabulary, tied).to(DTYPES[kind]).float()  # the rounded numbers
    ids = np.random.default_rng(3).integers(0, vocabulary, 24).tolist()
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    with open_llama_cpp(gguf_of(folder), threads=2) as llm:
        found = llm.logits(ids)
    difference = np.abs(found - wanted)
    print(
        f"{kind}: max {difference.max():.1e}, mean {difference.mean():.1e}, std {wanted.std():.2f}"
    )
    assert wanted.std() > 1, "nothing to compare"
    assert difference.max() < TOLERANCE[kind]


def test_rows_of_embeddings_read_as_ids_do(source: Path, llm: LlamaCpp) -> None:
    """What video rows go through: the same logits as the tokens whose embeddings they are."""
    vocabulary = HfFolder(source).config["vocab_size"]
    ids = np.random.default_rng(4).integers(0, vocabulary, 8)
    table = tiny_qwen2(vocabulary).get_input_embeddings().weight.numpy()
    np.testing.assert_allclose(llm.logits(table[ids]), llm.logits(ids), atol=1e-4)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_are_those_of_the_tokenizer(source: Path, llm: LlamaCpp, text: str) -> None:
    """Cut as plain text: what a user writes is never one of the special tokens."""
    values = json.loads((source / "tokenizer.json").read_text())
    plain = Tokenizer.from_str(json.dumps(values | {"added_tokens": []}))
    assert llm.tokens_from_text(text) == plain.encode(text, add_special_tokens=False).ids


def test_letters_with_loose_accents_are_cut_otherwise(source: Path, llm: LlamaCpp) -> None:
    """A limit of llama.cpp: the tokenizer of transformers joins them first, as NFC does."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    loose = unicodedata.normalize("NFD", "caf\u00e9")
    assert llm.tokens_from_text(loose) != tokenizer.encode(loose).ids
    joined = unicodedata.normalize("NFC", loose)
    assert llm.tokens_from_text(joined) == tokenizer.encode(loose).ids


def test_the_device_cuts_the_prompt_as_the_published_code_does(source: Path, llm: LlamaCpp) -> None:
    """ChatML with the published system message; the video's rows, a line break, the question."""
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    before = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    after = "<|im_end|>\n<|im_start|>assistant\n"
    wanted = tokenizer.encode(before, add_special_tokens=False).ids
    reader = llm._reader
    assert reader._before == wanted
    assert reader.chat.after_question == tokenizer.encode(after, add_special_tokens=False).ids
    words = tokenizer.encode("\nWhat moves?", add_special_tokens=False).ids
    assert llm.tokens_from_text(question_text("What  moves? ")) == words
    ours = tokenizer_from_gguf(source / "llm.gguf", SYSTEM)
    assert (ours.before_video, ours.question("What moves?")) == (
        wanted,
        words + reader.chat.after_question,
    )


def test_facts_for_the_manifest(source: Path, llm: LlamaCpp) -> None:
    facts = llm_facts(source / "llm.gguf")
    assert (facts.arch, facts.width, facts.context_length) == ("qwen2", 64, 512)
    assert facts.chat_template == "chatml"
    assert facts.vocab_size == HfFolder(source).config["vocab_size"]


def test_ids_without_a_token_are_padding_that_is_never_said(source: Path) -> None:
    rows = HfFolder(source).config["vocab_size"]
    vocabulary = vocabulary_of(HfFolder(source), rows)
    assert vocabulary.tokens[-1] == f"[PAD{rows - 1}]"
    assert vocabulary.kinds[-5:] == [5] * 5
    assert vocabulary.kinds[-8:-5] == [3] * 3, "the special ones are control tokens"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": True}}, "other rules than Qwen2"),
        ({"added_tokens": []}, "no token <|endoftext|>"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "not a byte-level BPE tokenizer"),
        ({"model": []}, "not a tokenizer of the library"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_cut_otherwise(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = write_llava(tmp_path / "source")
    values = HfFolder(folder).json("tokenizer.json") | change
    if change.get("added_tokens") == []:
        model = dict(HfFolder(folder).json("tokenizer.json")["model"])
        model["vocab"] = {t: i for t, i in model["vocab"].items() if not t.startswith("<|")}
        values |= {"model": model}
    write_json(folder / "tokenizer.json", values)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: ") as caught:
        vocabulary_of(HfFolder(folder), 400)
    assert message in str(caught.value)


def test_what_looks_special_is_never_read_in_a_question(tmp_path: Path) -> None:
    """Some published tokenizers say of such tokens that they are not."""
    folder = write_llava(tmp_path / "source", dtype=torch.float32)
    values = HfFolder(folder).json("tokenizer.json")
    for token in values["added_tokens"]:
        token["special"] = False
    write_json(folder / "tokenizer.json", values)
    with open_llama_cpp(gguf_of(folder), threads=1) as llm:
        for token in values["added_tokens"]:
            assert token["id"] not in llm.tokens_from_text(f"a {token['content']} b")


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A folder whose tokenizer transformers saved as a training with `use_fast=False` does."""
    folder = write_llava(tmp_path / "older")
    model = HfFolder(folder).json("tokenizer.json")["model"]
    write_json(folder / "vocab.json", model["vocab"])
    pairs = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs), encoding="utf-8")
    special = ["<|im_start|>", "<|im_end|>"]
    tokenizer = Qwen2Tokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        additional_special_tokens=special,
    )
    assert tokenizer.add_tokens(["<thing>"]) == 1
    tokenizer.save_pretrained(folder)
    return folder


def test_the_older_files_give_the_same_vocabulary(older: Path) -> None:
    newer = Tokenizer.from_file(str(older / "tokenizer.json"))
    newer.add_tokens(["<thing>"])
    newer.save(str(older / "tokenizer.json"))
    rows = newer.get_vocab_size() + 2
    wanted = vocabulary_of(HfFolder(older), rows)
    (older / "tokenizer.json").unlink()
    found = vocabulary_of(HfFolder(older), rows)
    assert found == wanted
    assert len(found.merges) > 50
    assert found.kinds[-6:] == [3, 3, 3, 4, 5, 5], "control, the user's, unused"


def test_the_newer_file_counts_where_both_are(older: Path) -> None:
    rows = HfFolder(older).config["vocab_size"]
    wanted = vocabulary_of(HfFolder(older), rows)
    (older / "vocab.json").write_text("{}")
    assert vocabulary_of(HfFolder(older), rows) == wanted


def test_merges_may_begin_with_the_sign_of_a_comment(older: Path) -> None:
    (older / "tokenizer.json").unlink()
    rows = HfFolder(older).config["vocab_size"]
    for first in ("#version: 0.2\n", ""):
        (older / "merges.txt").write_text(f"{first}# #\n\nt h\r\n")
        assert vocabulary_of(HfFolder(older), rows).merges == ["# #", "t h"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", '{"tokenizer_class": "GPT2Tokenizer"}', "want Qwen2Tokenizer"),
        ("tokenizer_config.json", '{"tokenizer_class": "Qwen2Tokenizer"}', "added_tokens_decoder"),
        ("tokenizer_config.json", None, "no tokenizer_config.json"),
        ("vocab.json", '{"a": "b"}', "invalid literal"),
        ("merges.txt", None, "no merges.txt"),
        ("merges.txt", b"\xff", "merges.txt: 'utf-8' codec"),
        ("merges.txt", "t h\nt h e\n", "merges.txt has the line 't h e', want two tokens"),
    ],
)
def test_older_files_that_are_no_tokenizer_of_qwen2(
    older: Path, file: str, content: str | bytes | None, message: str
) -> None:
    (older / "tokenizer.json").unlink()
    (older / file).unlink()
    if content is not None:
        (older / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError) as caught:
        vocabulary_of(HfFolder(older), 400)
    assert message in str(caught.value)


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "source")
    with pytest.raises(CheckpointError, match="the model has rows for 300"):
        vocabulary_of(HfFolder(folder), 300)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"rope_scaling": {"type": "yarn"}}, "rope_scaling: 'yarn'; vqedge imports models with un"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling: 'linear'"),
        ({"rope_scaling": {"factor": 4.0}}, "rope_scaling: 'factor'"),
        ({"rope_scaling": {"type": "default", "rope_theta": 1e6}}, "rope_scaling: 'rope_theta'"),
        ({"rope_parameters": {"rope_theta": 1e6, "rope_type": "yarn"}}, "rope_type"),
        ({"rope_parameters": {"rope_type": "default"}}, "rope_theta"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"num_attention_heads": 3}, "does not divide hidden_size"),
        ({"hidden_size": "wide"}, "hidden_size"),
    ],
)
def test_a_language_model_that_cannot_be_written(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = write_llava(tmp_path / "source")
    source = HfFolder(folder)
    source.config |= change
    with pytest.raises(CheckpointError) as caught:
        language_of(source)
    assert message in str(caught.value)


def test_positions_are_read_from_where_transformers_5_keeps_them(tmp_path: Path) -> None:
    source = HfFolder(write_llava(tmp_path / "source"))
    base = source.config.pop("rope_theta")
    assert language_of(source).config.frequency_base == 1e4, "what Qwen2 has by default"
    source.config["rope_parameters"] = {"rope_theta": base}
    assert language_of(source).config.frequency_base == base == 1e6


def test_scaling_that_scales_nothing_is_none(tmp_path: Path) -> None:
    source = HfFolder(write_llava(tmp_path / "source"))
    wanted = language_of(source).parts
    for told in ({"rope_type": "default"}, {"type": "default"}, {}):
        source.config["rope_scaling"] = told
        assert language_of(source).parts == wanted


def test_an_output_table_that_differs_from_the_one_it_is_tied_to(tmp_path: Path) -> None:
    from vqedge_export.hf.importing import checkpoint_from_folder

    folder = write_llava(tmp_path / "source")
    state = llava_state(tiny_tokenizer(folder) + 5)
    embedding = state["model.embed_tokens.weight"]
    write_shards(folder, state | {"lm_head.weight": embedding.clone()})
    same = checkpoint_from_folder(folder, tmp_path / "same")
    assert "lm_head.weight" in same.ignored
    write_shards(folder, state | {"lm_head.weight": embedding + 1})
    with pytest.raises(
        CheckpointError, match=r"lm_head\.weight differs .*; set tie_word_embeddings"
    ):
        checkpoint_from_folder(folder, tmp_path / "other")


def test_a_file_that_cannot_be_finished_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_llava(tmp_path / "source")
    state = llava_state(tiny_tokenizer(folder) + 5)
    state["model.norm.weight"][0] = torch.nan
    write_shards(folder, state)
    writers: list[gguf.GGUFWriter] = []
    opened = gguf.GGUFWriter.open_output_file

    def noted(writer: gguf.GGUFWriter, path: Path | None = None) -> None:
        writers.append(writer)
        opened(writer, path)

    monkeypatch.setattr(gguf.GGUFWriter, "open_output_file", noted)
    source = HfFolder(folder)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight holds NaN"):
        write_gguf(tmp_path / "llm.gguf", source, language_of(source))
    assert writers and not any(writer.fout for writer in writers)
