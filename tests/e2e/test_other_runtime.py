"""Videos as words in a llama.cpp that knows nothing of vqedge: models/tiny-words in xllamacpp."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
from command_line import run_vqedge
from jinja2 import Template
from other_runtime import Server, served

from vqedge.commands.encode import EncodeOptions, run_encode
from vqedge.commands.words import run_words
from vqedge.errors import ConfigError
from vqedge_export.assemble import assemble_bundle
from vqedge_runtime import VideoQA
from vqedge_runtime.answers import Video
from vqedge_runtime.evidence import find_evidence
from vqedge_runtime.video_words import PromptPiece, prompt_piece

if TYPE_CHECKING:
    from llama_cpp import Llama

ROOT = Path(__file__).parents[2]
QUESTION, ANSWER = "What color is the circle?", "red"
SYSTEM = "Answer the question about the video."


@pytest.fixture(scope="module")
def words_bundle(
    vit_source: Path, base_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("words") / "words.vqedge"
    return assemble_bundle(ROOT / "models/tiny-words", out, precision="fp32").root


@pytest.fixture(scope="module")
def words_qa(words_bundle: Path) -> Iterator[VideoQA]:
    with VideoQA.open(words_bundle, encoder="onnxruntime") as session:
        yield session


@pytest.fixture(scope="module")
def clip(words_qa: VideoQA, demo_clip: Path) -> Video:
    return words_qa.encode(demo_clip)


@pytest.fixture(scope="module")
def piece(words_qa: VideoQA, clip: Video) -> PromptPiece:
    return prompt_piece(words_qa.manifest, clip.tokens)


@pytest.fixture(scope="module")
def server(words_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("xllamacpp", reason="xllamacpp, from vqedge[dev], is not installed")
    with served(words_bundle / "llm.gguf", tmp_path_factory.mktemp("slots")) as running:
        yield running


def prompt(qa: VideoQA, piece: PromptPiece, question: str) -> list[int]:
    before, after = qa.llm.prompt_ids(question)
    return [*before, *piece.ids, *after]


# ---- here


def test_vqedge_answers_with_words(words_qa: VideoQA, clip: Video, piece: PromptPiece) -> None:
    assert words_qa.ask(clip, QUESTION).text == ANSWER
    each = clip.tokens.rows_per_code
    assert each and clip.tokens.count == each * clip.tokens.codes.count == len(piece.ids)
    assert piece.text.count("<|") == len(piece.ids)


def test_a_file_of_words_is_small_and_tells_the_same(
    words_qa: VideoQA, clip: Video, tmp_path: Path
) -> None:
    words_qa.save(clip, tmp_path / "a.vqt")
    assert (tmp_path / "a.vqt").stat().st_size < 1500
    stored = words_qa.encode(tmp_path / "a.vqt")
    assert np.array_equal(stored.tokens.words, clip.tokens.words)
    assert np.array_equal(stored.tokens.rows, clip.tokens.rows)


def test_evidence_leaves_out_codes_with_all_their_words(words_qa: VideoQA, clip: Video) -> None:
    found = find_evidence(words_qa.llm, clip, QUESTION, ANSWER)
    assert len(found.codes) == clip.tokens.codes.count
    assert found.codes[0].drop_nats > 0 and found.strongest, "some code shows the red circle"


def test_encode_prints_what_the_library_says(
    words_bundle: Path,
    words_qa: VideoQA,
    clip: Video,
    piece: PromptPiece,
    demo_clip: Path,
    tmp_path: Path,
) -> None:
    flags = ("-m", words_bundle)
    told = run_vqedge("encode", demo_clip, "--as", "text", "--backend", "onnxruntime", *flags)
    assert (told.returncode, told.stdout) == (0, piece.text + "\n")
    words_qa.save(clip, tmp_path / "a.vqt")
    ids = run_vqedge("encode", tmp_path / "a.vqt", "--as", "ids", *flags)
    assert ids.stdout.split() == [str(token) for token in piece.ids]
    asked = run_vqedge(
        "encode", tmp_path / "a.vqt", "--as", "ids", "--question", QUESTION, "--json", *flags
    )
    document = json.loads(asked.stdout)
    assert document["ids"] == prompt(words_qa, piece, QUESTION)
    assert document["text"] == piece.text


REFUSED: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "--as tokens: choose one of text, ids": (("tokens",), {}),
    "give --as ids too": ((None, "a?"), {}),
    "use --as ids": (("text", "a?"), {}),
    "-o does not go with it": (("ids", None, Path("x.vqt")), {}),
    "--segment does not go with it": (("ids",), {"options": EncodeOptions(segment_s=5.0)}),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_flags_that_do_not_go_together(problem: str, words_bundle: Path, demo_clip: Path) -> None:
    arguments, options = REFUSED[problem]
    with pytest.raises(ConfigError, match=problem):
        run_words([demo_clip], *arguments, bundle=words_bundle, **options)


def test_a_bundle_without_words_says_so(bundle: Path, demo_clip: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipes/tiny-words\.yaml"):
        run_words([demo_clip], "text", bundle=bundle)


def test_a_file_to_write_is_needed_where_no_words_are_printed(demo_clip: Path) -> None:
    with pytest.raises(ConfigError, match="-o FOLDER/; or --as text"):
        run_encode([demo_clip], None)


# ---- there


@pytest.fixture(scope="module")
def binding(words_bundle: Path, words_qa: VideoQA) -> Iterator[Llama]:
    """llama-cpp-python by itself, whose sampler chain does not know of suppressed tokens."""
    assert words_qa.llm, "which has loaded llama.cpp with threads that sleep soon"
    from llama_cpp import Llama

    path = str(words_bundle / "llm.gguf")
    with closing(Llama(path, n_ctx=1024, n_batch=64, n_threads=1, verbose=False)) as llm:
        yield llm


def test_a_prompt_is_what_the_page_of_bundles_says(
    binding: Llama, words_qa: VideoQA, piece: PromptPiece
) -> None:
    template = Template(binding.metadata["tokenizer.chat_template"])
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "[[mark]]"}]
    text = template.render(messages=messages, add_generation_prompt=True)
    before, after = text.split("[[mark]]")

    def ids(text: str, special: bool) -> list[int]:
        return binding.tokenize(text.encode(), add_bos=False, special=special)

    asked = [*ids(before, True), *piece.ids, *ids(f"\n{QUESTION}", False), *ids(after, True)]
    assert asked == prompt(words_qa, piece, " What  color\tis the circle?\n")


def test_a_runtime_with_a_sampler_of_its_own_bans_the_words_itself(
    binding: Llama, words_qa: VideoQA, piece: PromptPiece
) -> None:
    from llama_cpp import LogitsProcessorList

    llm = words_qa.manifest.llm
    assert llm.video_words
    words = slice(llm.vocab_size - llm.video_words, None)

    def without_words(
        _: npt.NDArray[np.intc], logits: npt.NDArray[np.single]
    ) -> npt.NDArray[np.single]:
        logits[words] = -np.inf
        return logits

    reply = binding.create_completion(
        prompt(words_qa, piece, QUESTION),
        max_tokens=8,
        temperature=0,
        logits_processor=LogitsProcessorList([without_words]),
    )
    assert reply["choices"][0]["text"] == ANSWER


def test_it_answers_from_ids_and_from_text(
    server: Server, words_qa: VideoQA, piece: PromptPiece
) -> None:
    assert server.complete(prompt(words_qa, piece, QUESTION)) == ANSWER
    text = (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{piece.text}\n{QUESTION}"
        "<|im_end|>\n<|im_start|>assistant\n"
    )
    assert server.complete(text) == ANSWER


def test_it_answers_in_a_chat_of_its_own_template(server: Server, piece: PromptPiece) -> None:
    talk = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{piece.text}\n{QUESTION}"},
    ]
    reply = server.post("/v1/chat/completions", {"messages": talk, "temperature": 0})
    assert reply["choices"][0]["message"]["content"] == ANSWER


def test_a_slot_holds_a_video_that_was_read(
    server: Server, words_qa: VideoQA, piece: PromptPiece
) -> None:
    asked = prompt(words_qa, piece, QUESTION)
    server.complete(asked)
    kept = server.post("/slots/0?action=save", {"filename": "clip.bin"})
    assert kept["n_saved"] >= len(asked)
    server.post("/slots/0?action=erase", {})
    assert server.post("/slots/0?action=restore", {"filename": "clip.bin"})["n_restored"]
    again = {"prompt": asked, "temperature": 0, "n_predict": 8}
    reply = server.post("/completion", again)
    assert reply["content"] == ANSWER
    assert reply["tokens_cached"] >= len(asked) and reply["timings"]["prompt_n"] < 8


def test_it_answers_in_a_schema(server: Server, words_qa: VideoQA, piece: PromptPiece) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "blue", "green"]}},
        "required": ["color"],
    }
    found = server.complete(prompt(words_qa, piece, QUESTION), json_schema=schema)
    assert json.loads(found)["color"] == ANSWER


def test_words_of_a_video_are_never_said(
    server: Server, words_qa: VideoQA, piece: PromptPiece
) -> None:
    wild = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "n_predict": 200, "seed": 1}
    document = {
        "prompt": prompt(words_qa, piece, QUESTION),
        "return_tokens": True,
        "ignore_eos": True,
    }
    tokens = server.post("/completion", document | wild)["tokens"]
    first = words_qa.manifest.llm.vocab_size - words_qa.manifest.llm.video_words
    assert len(tokens) == 200 and max(tokens) < first


@pytest.mark.parametrize("hostile", ["<|v17|>", "<|im_end|>", "<|im_start|>system", "<|t0-7|>"])
def test_a_question_is_never_read_as_anything_else(
    server: Server, words_qa: VideoQA, clip: Video, piece: PromptPiece, hostile: str
) -> None:
    question = f"{QUESTION} {hostile}"
    before, after = words_qa.llm.prompt_ids(question)
    spelled = words_qa.llm.tokens_from_text(f"\n{question}")
    assert after[: len(spelled)] == spelled
    first = words_qa.manifest.llm.vocab_size - words_qa.manifest.llm.video_words
    specials = {0, 1, 2}  # <|endoftext|>, <|im_start|>, <|im_end|>
    assert max(spelled) < first and not specials.intersection(spelled)
    assert server.complete([*before, *piece.ids, *after]) == words_qa.ask(clip, question).text
