"""A bundle whose tokens follow the question: made for each, never kept, read ahead or reused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_clips import Gray
from timed_llm import Timed
from tiny_bundle import asking_facts, tiny_facts, tiny_quantizer, write_bundle
from tiny_gguf import base_gguf, embedding_rows, wild_tensors, write_gguf

from vqedge.bundle import Manifest, open_bundle
from vqedge.bundle.manifest import manifest_bytes, manifest_from_bytes
from vqedge.commands import encoded
from vqedge.commands.ask import run_ask
from vqedge.commands.ask_options import AskOptions
from vqedge.commands.chat import Chat
from vqedge.commands.encode import run_encode
from vqedge.commands.evaluate import BundleAnswerer
from vqedge.commands.search import run_search
from vqedge.commands.viz import run_viz
from vqedge.data.suites import Item
from vqedge.errors import BundleError, ConfigError, PromptError, VqedgeError, VqtError
from vqedge_runtime import Video, VideoQA, bench
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.encoders.protocol import made_question
from vqedge_runtime.evidence import find_evidence
from vqedge_runtime.llm import FakeLanguageModel

QUESTIONS = ("What moves?", "Which color has the circle?")


def write_asking(path: Path) -> Manifest:
    """A bundle of a few bytes whose encoder reads a question."""
    return write_bundle(path, facts=asking_facts()).manifest


@pytest.fixture
def qa(tmp_path: Path) -> VideoQA:
    manifest = write_asking(tmp_path / "asking.vqedge")
    return VideoQA(FakeEncoder(32, 576), FakeBridge(576), FakeLanguageModel(), manifest)


def parts_of(qa: VideoQA) -> tuple[FakeEncoder, FakeLanguageModel]:
    assert isinstance(qa.encoder, FakeEncoder) and isinstance(qa.llm, FakeLanguageModel)
    return qa.encoder, qa.llm


# ---- the manifest


def test_the_manifest_says_so_and_older_ones_mean_no(tmp_path: Path) -> None:
    asking = write_asking(tmp_path / "asking.vqedge")
    assert manifest_from_bytes(manifest_bytes(asking)).quantizer.per_question
    question = made_question(asking)
    assert question is not None and question.shape == (576,)
    plain = write_bundle(tmp_path / "plain.vqedge").manifest
    assert not plain.quantizer.per_question and made_question(plain) is None
    assert b"per_question" not in manifest_bytes(plain), "bundles from before it keep their digest"


@pytest.mark.parametrize("reads", [True, False])
def test_it_goes_with_the_encoders_input(tmp_path: Path, reads: bool) -> None:
    manifest = write_asking(tmp_path / "asking.vqedge")
    encoder = manifest.encoder if reads else tiny_facts().encoder
    facts = tiny_facts().model_copy(
        update={"encoder": encoder, "quantizer": tiny_quantizer(per_question=not reads)}
    )
    with pytest.raises(BundleError, match="per_question does not go with the encoder's inputs"):
        Manifest.sealed(facts, manifest.files)


@pytest.mark.parametrize("change", [{"dtype": "float16"}, {"shape": (1,)}, {"shape": ("d",)}])
def test_the_question_is_as_wide_as_the_language_model(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    manifest = write_asking(tmp_path / "asking.vqedge")
    *others, text = manifest.encoder.inputs
    reads = {"inputs": (*others, text.model_copy(update=change))}
    facts = asking_facts().model_copy(update={"encoder": manifest.encoder.model_copy(update=reads)})
    with pytest.raises(BundleError, match=r"encoder\.onnx: text, float32 \[llm\.width\]"):
        Manifest.sealed(facts, manifest.files)


# ---- questions


def test_a_clip_is_decoded_once_and_encoded_for_every_question(qa: VideoQA, clip: Path) -> None:
    encoder, llm = parts_of(qa)
    video = qa.encode(clip)
    assert encoder.calls == 0 and video.tokens.count == 0 and video.frames == 8
    for text in ("A circle.", "Red.", "A circle."):
        llm.enqueue(text)
    answers = [qa.ask(video, question) for question in (*QUESTIONS, QUESTIONS[0])]
    first, second, again = (answer.video.tokens for answer in answers)
    assert encoder.calls == 3 and [answer.tokens for answer in answers] == [32, 32, 32]
    assert video.encoder == "" and answers[0].backend.encoder == encoder.name
    assert first.key() == again.key() != second.key()
    assert [key for key, _ in llm.calls] == [first.key(), second.key(), first.key()]
    text = llm.question_embedding(QUESTIONS[1])
    assert video.frames_thwc is not None
    wanted = qa.bridge.tokens(encoder.encode(video.frames_thwc, 32, text))
    assert np.array_equal(second.rows, wanted.rows)
    assert video.tokens.count == 0, "what was encoded stays as it was"
    llm.enqueue("Red.")
    assert qa.ask(answers[0].video, QUESTIONS[1]).video.tokens.key() == second.key()


def test_frames_that_wait_for_a_question_are_not_the_cameras(qa: VideoQA) -> None:
    buffer = np.full((8, 224, 224, 3), 90, np.uint8)
    video = qa.encode_frames(buffer)
    buffer[:] = 0  # the next pictures
    assert video.frames_thwc is not None and (video.frames_thwc == 90).all()


def test_what_is_read_of_a_clip_is_never_reused_for_another_question(
    qa: VideoQA, clip: Path
) -> None:
    _, llm = parts_of(qa)
    reused: list[bool] = []
    prefill = llm.prefill_video

    def noting(video: Any) -> Any:
        prefix = prefill(video)
        reused.append(prefix.reused)
        return prefix

    llm.prefill_video = noting  # type: ignore[method-assign]
    video = qa.encode(clip)
    for question in (*QUESTIONS, "How many?", QUESTIONS[0]):
        llm.enqueue("Yes.")
        qa.ask(video, question)
    assert reused[:3] == [False] * 3, "the last was asked before, and its rows are the same"


def test_streams_choices_and_many_questions_are_asked_of_their_own_tokens(
    qa: VideoQA, clip: Path
) -> None:
    _, llm = parts_of(qa)
    video = qa.encode(clip)
    keys = [qa.asked(video, question).tokens.key() for question in QUESTIONS]
    for text in ("One.", "Two.", "Three.", "Four."):
        llm.enqueue(text)
    stream = qa.stream(video, QUESTIONS[1])
    assert "".join(stream) == "One." and stream.answer.video.tokens.key() == keys[1]
    assert qa.ask(video, QUESTIONS[0], choices=["a", "b"]).video.tokens.key() == keys[0]
    many = qa.ask_many([(video, question) for question in QUESTIONS])
    assert [answer.video.tokens.key() for answer in many] == keys
    assert [answer.text for answer in many] == ["Two.", "Three."]
    assert qa.ask(clip, QUESTIONS[0]).video.tokens.key() == keys[0]
    with pytest.raises(PromptError, match="the question is empty"):
        qa.ask(video, " ")


def test_encoding_counts_once_in_an_answers_times(qa: VideoQA, clip: Path) -> None:
    _, llm = parts_of(qa)
    llm.enqueue("A circle.")
    answer = qa.ask(qa.encode(clip), QUESTIONS[0])
    own, whole = answer.timings, answer.including_encoding().timings
    assert 0 < own.encode == whole.encode and own.decode == 0 < whole.decode
    before = whole.decode + whole.preprocess + whole.encode
    assert whole.first_token == pytest.approx(before + own.first_token - own.encode)
    assert whole.total == pytest.approx(before + own.total - own.encode)


def test_bench_times_an_encoding_with_every_question(
    qa: VideoQA, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, _ = parts_of(qa)
    qa.llm = llm = Timed()
    ask, encoded = llm.ask, list[int]()

    def counted(rows: Any, question: str, options: Any) -> Any:
        if question in bench._REASKS:
            encoded.append(encoder.calls)
        return ask(rows, question, options)

    monkeypatch.setattr(llm, "ask", counted)
    found = bench.run(qa, clip, 1)
    assert found["tokens"] == 32 and found["stages_ms"]["encode"] > 0
    assert encoded == [3, 4, 5, 6, 7, 8], "two to begin with, then one for every question"
    assert found["reask_first_token_ms"] > 1.0, "more than the language model takes"


def test_a_suite_is_asked_question_by_question(qa: VideoQA) -> None:
    encoder, llm = parts_of(qa)

    items = [Item(Gray(), "all", question, "yes", ()) for question in QUESTIONS]
    for _ in QUESTIONS:
        llm.enqueue("yes")
    assert [reply.tokens for reply in BundleAnswerer(qa).replies(items)] == [32, 32]
    assert encoder.calls == 2 and len({key for key, _ in llm.calls}) == 2


def test_a_talk_shows_the_tokens_of_its_last_question(
    qa: VideoQA, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, llm = parts_of(qa)
    for text in ("A circle.", "Red."):
        llm.enqueue(text)
    Chat(qa, clip).talk(iter(["/tokens", *QUESTIONS, "/tokens", "/save a.vqt"]))
    err = capsys.readouterr().err
    assert "demo.mp4: 3.0 s, tokens by question" in err
    assert "vqedge: /tokens: they follow the question; ask one first" in err
    assert "32 of 2048 visual tokens" in err and "so that none can be kept" in err
    assert len({key for key, _ in llm.calls}) == 2


def test_frames_that_change_afterwards_are_not_asked_about(qa: VideoQA) -> None:
    _, llm = parts_of(qa)
    spec = qa.manifest.encoder
    camera = np.full((spec.frames, spec.size, spec.size, 3), 90, np.uint8)
    video = qa.encode_frames(camera)
    wanted = qa.asked(video, QUESTIONS[0]).tokens.key()
    camera[...] = 200
    llm.enqueue("Gray.")
    assert qa.ask(video, QUESTIONS[0]).video.tokens.key() == wanted


# ---- what cannot be


REFUSED = "this bundle makes a clip's tokens anew for every question, so that none can be kept"


def test_nothing_is_kept_or_read_ahead(qa: VideoQA, clip: Path, tmp_path: Path) -> None:
    encoder, llm = parts_of(qa)
    video = qa.encode(clip)
    with pytest.raises(ConfigError, match=REFUSED):
        llm.ask(video.rows, QUESTIONS[0])
    with pytest.raises(ConfigError, match=REFUSED):
        find_evidence(llm, video, QUESTIONS[0], "A circle.")
    llm.enqueue("A circle.")
    asked = qa.ask(video, QUESTIONS[0]).video
    for each in (video, asked):
        for act in (
            lambda v: qa.prefill(v),
            lambda v: qa.prefill(v, tmp_path / "a.kv"),
            lambda v: qa.save(v, tmp_path / "a.vqt"),
        ):
            with pytest.raises(ConfigError, match=REFUSED):
                act(each)
    assert encoder.calls == 1 and {path.name for path in tmp_path.iterdir()} == {
        "demo.mp4",
        "asking.vqedge",
    }


def test_another_budget_than_its_own_is_refused(qa: VideoQA, clip: Path) -> None:
    assert qa.encode(clip, 32).budget == 32
    for budget in (16, "auto"):
        with pytest.raises(ConfigError, match=f"budget {budget}: this bundle has one, 32"):
            qa.encode(clip, budget)  # type: ignore[arg-type]


def test_a_file_of_another_bundle_is_refused_before_its_codes_are_looked_at(
    qa: VideoQA, clip: Path, tmp_path: Path
) -> None:
    plain = write_bundle(tmp_path / "plain.vqedge").manifest
    other = VideoQA(FakeEncoder(32, 576), FakeBridge(576), FakeLanguageModel(), plain)
    other.save(other.encode(clip), tmp_path / "clip.vqt")
    with pytest.raises(VqtError, match=f"clip.vqt.*{REFUSED}"):
        qa.encode(tmp_path / "clip.vqt")


Command = Callable[[Path, Path], None]
COMMANDS: dict[str, Command] = {
    "encode": lambda clip, bundle: run_encode([clip], str(clip.with_suffix(".vqt")), bundle),
    "search": lambda clip, bundle: run_search(clip, clip.parent, bundle),
    "viz": lambda clip, bundle: run_viz(clip, clip.with_suffix(".png"), bundle),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_want_tokens_without_a_question_refuse_before_any_work(
    name: str, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_asking(tmp_path / "asking.vqedge")
    (clip.parent / "other.vqt").touch()  # to search
    monkeypatch.setattr(encoded, "clip_from_path", None)
    with pytest.raises(ConfigError, match=REFUSED):
        COMMANDS[name](clip, tmp_path / "asking.vqedge")


def test_a_kept_prefix_is_for_a_file_which_there_is_none_of(clip: Path, tmp_path: Path) -> None:
    write_asking(tmp_path / "asking.vqedge")
    with pytest.raises(VqedgeError, match=r"vqedge encode VIDEO -o FILE\.vqt"):
        run_ask(clip, QUESTIONS[0], tmp_path / "asking.vqedge", options=AskOptions(keep_kv=True))


# ---- the question, out of the GGUF


@pytest.mark.parametrize("kind", ["made", "base"])
def test_a_question_is_the_mean_of_its_words_input_embeddings(kind: str, tmp_path: Path) -> None:
    """Of any type of weights, as the gguf package turns them."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from vqedge_runtime.llm import open_llama_cpp

    path = write_gguf(tmp_path / "wild.gguf", wild_tensors()) if kind == "made" else base_gguf()
    with open_llama_cpp(path, threads=1, context=64) as llm:
        found = llm.question_embedding("Which  color?")
        ids = llm.tokens_from_text("\nWhich color?")
        assert np.abs(found - embedding_rows(path, ids).mean(axis=0)).max() < 1e-6
        assert found.shape == (llm.width,) and found.dtype == np.float32
        assert np.abs(found - llm.question_embedding("How many?")).max() > 1e-3
        with pytest.raises(PromptError, match="the question is empty"):
            llm.question_embedding(" ")


def test_a_video_of_other_bundles_is_asked_as_it_is(clip: Path, tmp_path: Path) -> None:
    plain = open_bundle(write_bundle(tmp_path / "plain.vqedge").root).manifest
    other = VideoQA(FakeEncoder(32, 576), FakeBridge(576), FakeLanguageModel(), plain)
    video: Video = other.encode(clip)
    assert video.frames_thwc is None and other.asked(video, "What?") is video
