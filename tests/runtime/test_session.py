"""The Python API on stand-ins for the models: what it takes, refuses and gives."""

from __future__ import annotations

import json
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_clips import Gray
from tiny_bundle import asking_facts, tiny_facts, tiny_quantizer, write_bundle
from video_maker import image_bytes, numbered

from vqedge.bundle import BundleFacts
from vqedge.commands.evaluate import BundleAnswerer
from vqedge.data.suites import Item
from vqedge.errors import (
    BackendUnavailable,
    ConfigError,
    PromptError,
    Stopped,
    StreamEnded,
    VideoError,
    VqtError,
)
from vqedge_runtime import DecodingOptions, Video, VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.encoders.protocol import Frames, Text
from vqedge_runtime.llm import FakeLanguageModel, VideoRows
from vqedge_runtime.tokens import Codes

FRAMES = np.full((8, 224, 224, 3), 90, np.uint8)
TABLES = {"levels": 4, "entries": 1024, "sha256": "ab" * 32}


def session(path: Path, facts: BundleFacts | None = None, levels: int = 0) -> VideoQA:
    manifest = write_bundle(path / "tiny.vqedge", facts=facts).manifest
    return VideoQA(FakeEncoder(32, 576, levels), FakeBridge(576), FakeLanguageModel(), manifest)


@pytest.fixture
def qa(tmp_path: Path) -> VideoQA:
    return session(tmp_path)


def llm_of(qa: VideoQA) -> FakeLanguageModel:
    assert isinstance(qa.llm, FakeLanguageModel)
    return qa.llm


# ---- what it gives


def test_results_can_be_compared_kept_in_a_set_and_printed(qa: VideoQA) -> None:
    video, other = qa.encode_frames(FRAMES), qa.encode_frames(FRAMES)
    for first, second in (
        (video, other),
        (video.tokens, other.tokens),
        (video.tokens.codes, other.tokens.codes),
    ):
        assert first == first and first != second and len({first, second}) == 2
    assert video.tokens.key() == other.tokens.key(), "the content is the same"
    assert VideoRows(video.tokens.rows).key == video.rows.key == video.tokens.key()
    answer = qa.ask(video, "Which?", choices=["red", "blue"])
    assert len({answer, answer}) == 1 and str(answer) == f"{answer}" == "red"
    assert "tokens=TokenSet(count=32, patches=2048)" in repr(video)
    assert repr(video.tokens.codes) == "Codes(count=32)"
    assert not any("array" in repr(thing) for thing in (video, video.tokens, answer))


def test_frames_that_wait_for_a_question_are_not_printed(tmp_path: Path) -> None:
    video = session(tmp_path, asking_facts()).encode_frames(FRAMES)
    assert video.frames_thwc is not None and "array" not in repr(video)


@pytest.mark.parametrize("levels", [0, 4])
def test_an_answer_can_be_written_as_json(tmp_path: Path, levels: int) -> None:
    learned = {"kind": "codebook", "codebook": TABLES} if levels else {}
    qa = session(tmp_path, tiny_facts(quantizer=tiny_quantizer(**learned)), levels)
    document = qa.ask(qa.encode_frames(FRAMES), "Which?", choices=["red", "blue"]).to_dict()
    assert json.loads(json.dumps(document)) == document
    assert document["answer"] == "red" and document["tokens"] == 32
    assert document["tokens_per_s"] == 0.0, "none was generated"
    assert list(document["choices"]) == ["red", "blue"]
    assert ("ids" in document) == bool(levels)
    assert set(document["timings_ms"]) >= {"decode", "first_token", "total"}


def test_the_evidence_of_an_answer(qa: VideoQA, clip: Path) -> None:
    found = qa.evidence(clip, "What?", "Red.")
    assert (found.answer, len(found.codes)) == ("Red.", 32)
    assert found == qa.evidence(qa.encode(clip), "What?", "Red.")
    with pytest.raises(PromptError, match="the question is empty"):
        qa.evidence(clip, " ", "Red.")
    qa.close()
    with pytest.raises(BackendUnavailable, match="this VideoQA is closed"):
        qa.evidence(clip, "What?", "Red.")


# ---- what it takes


def test_many_questions_about_paths_encode_each_once(qa: VideoQA, clip: Path) -> None:
    assert isinstance(qa.encoder, FakeEncoder)
    video = qa.encode_frames(FRAMES)
    texts = ("Red.", "Two.", "Gray.")
    for text in texts:
        llm_of(qa).enqueue(text)
    found = qa.ask_many([(clip, "What?"), (str(clip), "How many?"), (video, "Which?")])
    assert [answer.text for answer in found] == list(texts)
    assert found[2].video is video
    calls = qa.encoder.calls
    for text in texts[:2]:
        llm_of(qa).enqueue(text)
    first, second = qa.ask_many([(clip, "What?"), (clip, "How many?")])
    assert first.video is second.video and qa.encoder.calls == calls + 1
    assert first.timings.decode == 0 < first.including_encoding().timings.decode


def test_many_questions_may_come_from_an_iterator(qa: VideoQA) -> None:
    videos = [qa.encode_frames(FRAMES) for _ in range(2)]
    for _ in videos:
        llm_of(qa).enqueue("Red.")
    found = qa.ask_many(zip(videos, ("What?", "Which?"), strict=True))
    assert [answer.video for answer in found] == videos


def test_a_video_of_another_session_says_what_encoded_it_and_opens_no_encoder(
    qa: VideoQA, tmp_path: Path
) -> None:
    video = pickle.loads(pickle.dumps(qa.encode_frames(FRAMES)))
    other = VideoQA(
        lambda: pytest.fail("opened"), FakeBridge(576), FakeLanguageModel(), qa.manifest
    )
    llm_of(other).enqueue("Red.")
    assert str(other.ask(video, "Which?").backend) == "encoder: fake encoder; llm: fake"
    qa.save(video, tmp_path / "a.vqt")
    stored = other.ask(tmp_path / "a.vqt", "Which?", choices=["red", "blue"])
    assert stored.backend == other.backend_for(stored=True)


def test_a_video_that_was_pickled_before_it_had_an_encoder_can_be_asked(qa: VideoQA) -> None:
    video = qa.encode_frames(FRAMES)
    del video.__dict__["encoder"]
    llm_of(qa).enqueue("Red.")
    assert qa.ask(pickle.loads(pickle.dumps(video)), "Which?").backend.encoder == ""


def test_a_stream_that_is_left_stops(qa: VideoQA) -> None:
    llm_of(qa).enqueue("A red ball moves.")
    with qa.stream(qa.encode_frames(FRAMES), "What?") as stream:
        assert next(stream) == "A"
    assert list(stream) == [] and stream.answer.text == "A" and not stream.answer.stopped


def test_the_next_question_or_video_that_is_read_ends_a_stream(qa: VideoQA) -> None:
    video = qa.encode_frames(FRAMES)
    for read in (lambda: qa.ask(video, "What?"), lambda: qa.prefill(video)):
        for text in ("A red ball moves.", "A ball."):
            llm_of(qa).enqueue(text)
        stream = qa.stream(video, "What?")
        assert next(stream) == "A"
        qa.llm.question_embedding("What?")
        assert next(stream)
        read()
        with pytest.raises(StreamEnded, match="another call"):
            next(stream)


def test_a_camera_of_any_number_and_size_of_frames(qa: VideoQA, tmp_path: Path) -> None:
    """Of twelve frames those that are on screen in the middle of eight parts."""
    camera = [np.full((48, 64, 3), 10 * number, np.uint8) for number in range(12)]
    times_s = [5 + number / 4 for number in range(12)]
    video = qa.encode_frames(camera, times_s=times_s)
    chosen = [int((part + 0.5) * 1.5) for part in range(8)]
    assert video.times_s == tuple(times_s[number] for number in chosen)
    assert (video.start_s, video.duration_s, video.frames) == (5.0, 3.0, 8)
    small = np.stack([np.full((224, 224, 3), 10 * number, np.uint8) for number in chosen])
    assert video.tokens.key() == qa.encode_frames(small).tokens.key()
    qa.save(video, tmp_path / "a.vqt")
    assert qa.encode(tmp_path / "a.vqt").times_s == video.times_s
    unknown = qa.encode_frames(np.stack(camera))
    assert unknown.tokens.key() == video.tokens.key()
    assert (unknown.times_s, unknown.duration_s) == ((), 0.0)


# ---- what it refuses


@pytest.mark.parametrize(
    ("frames", "times_s", "words"),
    [
        (FRAMES.astype(np.float32), None, r"frames are float32 \(8, .*, want uint8 RGB \(N, hei"),
        (FRAMES[0], None, r"frames are uint8 \(224, 224, 3\), want"),
        (FRAMES[:0], None, "there are no frames; give at least one"),
        ([], None, "there are no frames; give at least one"),
        ([FRAMES[0], FRAMES[0, :9]], None, "frames differ in size"),
        ([FRAMES[0], FRAMES[0] / 2], None, r"frames are float64 \(2, 224, 224, 3\), want"),
        (list(FRAMES[0]), None, r"frames are uint8 \(224, 224, 3\), want"),
        (None, None, r"frames are object \(\), want"),
        (FRAMES, [0.0, 1.0], "2 times for 8 frames; give one for each"),
        (FRAMES, [0.0, 2.0, 1.0, *range(3, 8)], "seconds from 0 up that do not fall"),
        (FRAMES, [-1.0, *range(7)], "seconds from 0 up"),
        (FRAMES, [*range(7), float("nan")], "seconds from 0 up"),
        (FRAMES, [0.0] * 8, "times of frames are all 0; give none, or seconds that differ"),
        (FRAMES, np.float32(1.7e9 + np.arange(8) / 10), r"all 1\.7e\+09; .* as float64"),
    ],
)
def test_frames_that_are_none(qa: VideoQA, frames: Any, times_s: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        qa.encode_frames(frames, times_s=times_s)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ("red|blue", r"choices 'red\|blue': give a list, as \['red', 'blue'\]"),
        (["red", "blue", " red"], "'red' is there twice"),
        (["red", " "], "every choice needs a word"),
        ([], "every choice needs a word"),
    ],
)
def test_choices_of_which_the_likeliest_cannot_be_told(
    qa: VideoQA, clip: Path, choices: Any, words: str
) -> None:
    assert isinstance(qa.encoder, FakeEncoder)
    with pytest.raises(PromptError, match=words):
        qa.ask(clip, "Which?", choices=choices)
    with pytest.raises(PromptError, match=words):
        qa.llm.score_choices(qa.encode_frames(FRAMES).rows, "Which?", choices)
    assert qa.encoder.calls == 1, "the clip was read first"


@pytest.mark.parametrize("kind", [tuple, iter, np.array, dict.fromkeys])
def test_choices_of_any_iterable(qa: VideoQA, kind: Callable[[Any], Any]) -> None:
    answer = qa.ask(qa.encode_frames(FRAMES), "Which?", choices=kind(["red", "blue"]))
    assert (answer.text, list(answer.choice_scores)) == ("red", ["red", "blue"])


def test_a_suite_may_give_a_choice_twice(qa: VideoQA) -> None:
    item = Item(Gray(), "all", "Which?", "red", ("red", "red", "blue"))
    assert [reply.text for reply in BundleAnswerer(qa).replies([item])] == ["red"]
    llm_of(qa).enqueue("Two.")
    free = replace(item, choices=())
    assert [reply.text for reply in BundleAnswerer(qa).replies([free])] == ["Two."]


def test_choices_take_no_options(qa: VideoQA) -> None:
    video = qa.encode_frames(FRAMES)
    with pytest.raises(ConfigError, match="options are for an answer that is generated"):
        qa.ask(video, "Which?", choices=["red", "blue"], options=DecodingOptions(seed=1))


def test_an_empty_path_is_not_the_current_folder(
    qa: VideoQA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(image_bytes(numbered(0)))
    assert qa.encode(".").frames == 8
    with pytest.raises(VideoError, match="the video's path is empty; give a file or a folder"):
        qa.encode("")


@pytest.mark.parametrize("budget", [8.5, 8.0, True, "8", b"auto"])
def test_a_budget_that_is_no_number(qa: VideoQA, budget: Any) -> None:
    with pytest.raises(ConfigError, match=f"budget {budget!r}: give a whole number of tokens"):
        qa.encode_frames(FRAMES, budget)
    assert qa.encode_frames(FRAMES, np.int64(8)).budget == 8  # type: ignore[arg-type]


def test_no_error_of_the_api_names_a_flag_or_a_command(
    qa: VideoQA, clip: Path, tmp_path: Path
) -> None:
    qa.save(qa.encode(clip), tmp_path / "a.vqt")
    acts: list[tuple[type[Exception], Callable[[], object]]] = [
        (ConfigError, lambda: qa.encode(clip, 99)),
        (ConfigError, lambda: qa.encode(clip, "auto")),
        (ConfigError, lambda: qa.encode(tmp_path / "a.vqt", 8)),
        (ConfigError, lambda: qa.save(qa.encode(clip), tmp_path / "b.vqt", bits=9)),
        (VqtError, lambda: qa.encode(tmp_path / "a.vqt", start_s=9)),
        (VideoError, lambda: qa.encode(clip, start_s=9)),
        (VideoError, lambda: qa.encode(clip, end_s=float("nan"))),
        (VideoError, lambda: qa.encode(clip, start_s=2, end_s=1)),
        (PromptError, lambda: qa.ask(clip, "Which?", choices=[" "])),
        (PromptError, lambda: qa.ask(clip, " ")),
    ]
    for kind, act in acts:
        with pytest.raises(kind) as caught:
            act()
        assert "--" not in str(caught.value) and "vqedge " not in str(caught.value)


def test_encoding_stops_at_the_next_packet(qa: VideoQA, clip: Path) -> None:
    asked: list[bool] = []

    def stopped() -> bool:
        asked.append(len(asked) == 3)
        return asked[-1]

    with pytest.raises(Stopped, match=r"demo\.mp4: no longer wanted"):
        qa.encode(clip, stopped=stopped)
    assert isinstance(qa.encoder, FakeEncoder)
    assert asked == [False] * 3 + [True] and qa.encoder.calls == 0


def test_after_closing_all_say_so(qa: VideoQA, clip: Path, tmp_path: Path) -> None:
    video = qa.encode(clip)
    qa.save(video, tmp_path / "a.vqt")
    with qa:
        pass
    acts: list[Callable[[], object]] = [
        lambda: qa.__enter__(),
        lambda: qa.backend,
        lambda: qa.encode(clip),
        lambda: qa.encode_frames(FRAMES),
        lambda: next(qa.encode_segments(tmp_path / "a.vqt")),
        lambda: qa.prefill(video),
        lambda: qa.ask(video, "What?"),
        lambda: qa.ask(video, "What?", choices=["red", "blue"]),
        lambda: qa.ask_many([(video, "What?")]),
        lambda: qa.stream(video, "What?"),
    ]
    for act in acts:
        with pytest.raises(BackendUnavailable, match="this VideoQA is closed; open the bundle"):
            act()
    qa.close()


# ---- threads


class Jealous(FakeEncoder):
    """Says whether it was ever used by two threads at once, or after it was closed."""

    def __init__(self) -> None:
        super().__init__(32, 576)
        self.busy = self.disturbed = self.closed = False
        self.began = threading.Event()

    def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
        self.disturbed |= self.busy or self.closed
        self.busy = True
        self.began.set()
        time.sleep(0.02)
        codes = super().encode(frames_thwc, budget, text)
        self.busy = False
        return codes

    def close(self) -> None:
        self.disturbed |= self.busy
        self.closed = True


def test_threads_take_turns_and_open_the_encoder_once(tmp_path: Path) -> None:
    opened: list[Jealous] = []

    def open_slowly() -> Jealous:
        time.sleep(0.02)
        opened.append(Jealous())
        return opened[-1]

    manifest = write_bundle(tmp_path / "tiny.vqedge").manifest
    qa = VideoQA(open_slowly, FakeBridge(576), FakeLanguageModel(), manifest)
    start, found = threading.Barrier(5), list[Video]()

    def encode() -> None:
        start.wait()
        found.append(qa.encode_frames(FRAMES))

    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    start.wait()
    for thread in threads:
        thread.join()
    assert len(opened) == 1 and len(found) == 4 and not opened[0].disturbed


def test_an_answer_that_is_there_outlives_the_session(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "tiny.vqedge").manifest
    llm = FakeLanguageModel()
    llm.enqueue("a red circle")
    with VideoQA(Jealous(), FakeBridge(576), llm, manifest) as qa:
        stream = qa.stream(qa.encode_frames(FRAMES), "What moves?")
        words = "".join(stream)
    assert stream.answer.text == words and stream.answer.backend.encoder


def test_an_encoder_that_is_open_tells_its_name_while_it_encodes(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "tiny.vqedge").manifest
    qa = VideoQA(Jealous(), FakeBridge(576), FakeLanguageModel(), manifest)
    told: list[str] = []
    teller = threading.Thread(target=lambda: told.append(qa.backend.encoder))
    with qa._lock:  # as another thread does while it encodes
        teller.start()
        teller.join(timeout=120)
        assert told
    qa.close()


def test_closing_waits_for_a_thread_that_encodes(tmp_path: Path) -> None:
    encoder = Jealous()
    manifest = write_bundle(tmp_path / "tiny.vqedge").manifest
    qa = VideoQA(encoder, FakeBridge(576), FakeLanguageModel(), manifest)
    thread = threading.Thread(target=qa.encode_frames, args=(FRAMES,))
    thread.start()
    assert encoder.began.wait(120)
    qa.close()
    thread.join()
    assert encoder.closed and not encoder.disturbed
