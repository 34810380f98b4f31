"""One's own videos and questions: lines of a file become clips."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fake_clips import read_nothing
from hypothesis import given
from hypothesis import strategies as st

from vqedge.data.clips import QuestionAnswer
from vqedge.data.jsonl import FileClip, JsonlClips, VideoFile, questions_from_jsonl
from vqedge.data.sources import source_from_config
from vqedge.errors import DatasetError
from vqedge.files import MOST_TEXT_BYTES
from vqedge.recipe import JsonlConfig

GOOD: dict[str, Any] = {"video": "a.mp4", "question": "Was läuft?", "answer": "ein Hund"}
SPAN = {**GOOD, "start": 1.5, "end": 4, "kind": "span"}
CHOICE = {**GOOD, "answer": "red", "kind": "color", "choices": ["red", "blue"]}
OTHER = {**GOOD, "video": "sub/b.mp4", "question": "And here?"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.mp4").write_bytes(b"a video")
    (tmp_path / "sub" / "b.mp4").write_bytes(b"another one")
    return tmp_path


def written(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "clips.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


def clips_of(folder: Path, *lines: dict[str, Any] | str) -> JsonlClips:
    return JsonlClips(written(folder, *lines), read_nothing)


# ---- lines become clips


def test_lines_about_one_span_of_a_video_are_one_clip_in_order_of_their_first(folder: Path) -> None:
    clips = clips_of(folder, OTHER, GOOD, SPAN, "", CHOICE, {**OTHER, "answer": "x"})
    assert [clip.video for clip in clips] == [  # type: ignore[attr-defined]
        VideoFile(folder / "sub/b.mp4"),
        VideoFile(folder / "a.mp4"),
        VideoFile(folder / "a.mp4", 1.5, 4.0),
    ]
    assert clips[1].asked == (
        QuestionAnswer("all", "Was läuft?", "ein Hund"),
        QuestionAnswer("color", "Was läuft?", "red", ("red", "blue")),
    )
    assert len(clips) == 3 and [len(clips[number].asked) for number in range(3)] == [2, 2, 1]


def test_space_around_words_is_dropped_and_odd_line_ends_are_part_of_a_text(folder: Path) -> None:
    line = json.dumps({**GOOD, "question": " eins\u2028zwei? "}, ensure_ascii=False)
    (clip,) = questions_from_jsonl(written(folder, line)).values()
    assert clip[0].question == "eins\u2028zwei?"


def test_a_byte_order_mark_is_no_part_of_the_first_line(folder: Path) -> None:
    (clip,) = questions_from_jsonl(written(folder, f"\ufeff{json.dumps(GOOD)}")).values()
    assert clip == [QuestionAnswer("all", "Was läuft?", "ein Hund")]


def test_a_clip_reads_its_part_of_its_file(folder: Path) -> None:
    asked: list[object] = []

    def read(*arguments: object) -> npt.NDArray[np.uint8]:
        asked.append(arguments)
        return np.zeros((2, 14, 14, 3), np.uint8)

    clips = JsonlClips(written(folder, GOOD, SPAN), read)
    assert clips[0].frames(2, 14).shape == clips[1].frames(2, 14).shape == (2, 14, 14, 3)
    path = folder / "a.mp4"
    assert asked == [(path, 2, 14, None, None), (path, 2, 14, 1.5, 4.0)]


def test_nothing_is_known_but_the_questions(folder: Path) -> None:
    clips = clips_of(folder, GOOD)
    assert clips[0].labels(8, 16) is None and clips[0].reversed() is None  # type: ignore[func-returns-value]
    assert clips.vocabulary == {}


def test_a_recipe_names_the_file(folder: Path) -> None:
    path = written(folder, GOOD)
    source = source_from_config(JsonlConfig(kind="jsonl", path=path), read_nothing)
    assert source == JsonlClips(path, read_nothing)


# ---- questions


MANY = FileClip(
    VideoFile(Path("a.mp4")),
    tuple(QuestionAnswer(f"kind {n % 3}", f"Question {n}?", str(n)) for n in range(10)),
    read_nothing,
)


@given(seed=st.integers(0, 2**32), count=st.integers(1, 15))
def test_questions_are_drawn_without_replacement(seed: int, count: int) -> None:
    drawn = MANY.questions(np.random.default_rng(seed), count)
    assert len(drawn) == len(set(drawn)) == min(count, 10)
    assert set(drawn) <= set(MANY.asked)
    assert drawn == MANY.questions(np.random.default_rng(seed), count)


def test_all_questions_are_drawn_sooner_or_later() -> None:
    rng = np.random.default_rng(0)
    assert {item for _ in range(40) for item in MANY.questions(rng, 2)} == set(MANY.asked)


def test_one_of_each_kind_in_the_order_of_the_file() -> None:
    rng = np.random.default_rng(0)
    drawn = [MANY.one_question_per_kind(rng) for _ in range(40)]
    assert all([item.kind for item in items] == ["kind 0", "kind 1", "kind 2"] for items in drawn)
    assert {item for items in drawn for item in items} == set(MANY.asked)


# ---- the fingerprint


def test_the_fingerprint_follows_what_the_clips_show(folder: Path) -> None:
    def fingerprint(*lines: dict[str, Any]) -> str:
        return clips_of(folder, *lines).fingerprint

    before = fingerprint(GOOD, OTHER)
    assert re.fullmatch(r"[A-Za-z0-9-]+", before)
    assert fingerprint(GOOD, OTHER, CHOICE) == before, "questions show nothing"
    others = [fingerprint(OTHER, GOOD), fingerprint(GOOD), fingerprint(GOOD, OTHER, SPAN)]
    others.append(fingerprint({**GOOD, "start": 1}, OTHER))
    stamp = (folder / "a.mp4").stat()
    os.utime(folder / "a.mp4", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    others.append(fingerprint(GOOD, OTHER))
    (folder / "a.mp4").write_bytes(b"a longer video")
    os.utime(folder / "a.mp4", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    others.append(fingerprint(GOOD, OTHER))
    assert len({before, *others}) == 7


def test_the_fingerprint_stays_when_everything_moves_together(tmp_path: Path) -> None:
    found = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.mp4").write_bytes(b"a video")
        os.utime(tmp_path / name / "a.mp4", ns=(7, 7))
        found.add(clips_of(tmp_path / name, GOOD).fingerprint)
    assert len(found) == 1


def test_a_folder_of_frames_is_all_of_its_files(folder: Path) -> None:
    (folder / "sub" / "c.png").write_bytes(b"a frame")
    line = {**GOOD, "video": "sub"}
    before = clips_of(folder, line).fingerprint
    stamp = (folder / "sub").stat()
    (folder / "sub" / "c.png").write_bytes(b"another frame")
    os.utime(folder / "sub", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert clips_of(folder, line).fingerprint != before


# ---- what is refused


FAULTS: dict[str, dict[str, Any] | str] = {
    "not JSON": "{video: a}",
    "question: Field required": {"video": "a.mp4", "answer": "x"},
    "answer: String should have at least 1": {**GOOD, "answer": " "},
    "question: String should have at least 1": {**GOOD, "question": "\t"},
    "kind: String should have at least 1": {**GOOD, "kind": ""},
    "colour: Extra inputs": {**GOOD, "colour": "red"},
    "the answer is not one of the choices": {**GOOD, "choices": ["a", "b"]},
    "choices: give two or more, all different": {**CHOICE, "choices": ["red", "red"]},
    "choices: give two or more": {**CHOICE, "choices": ["red"]},
    "choices.1: String should have at least 1": {**CHOICE, "choices": ["red", " "]},
    "no video": {**GOOD, "video": "c.mp4"},
    "paths are relative to the file": {**GOOD, "video": "x" * 5000},
    "start: Input should be greater than or equal to 0": {**GOOD, "start": -1},
    "start is not before end": {**GOOD, "start": 2, "end": 2},
    "start is not before end ": {**GOOD, "end": 0},
    "end: Input should be a finite number": json.dumps({**GOOD, "end": float("inf")}),
    "Input should be a valid dictionary": "[1, 2]",
    "maximum recursion depth": "[" * 100_000,
    "a key is repeated: 'answer'": json.dumps(GOOD).replace("{", '{"answer": "eine Katze", '),
}


@pytest.mark.parametrize("problem", FAULTS)
def test_a_bad_line_is_named_by_file_and_number(folder: Path, problem: str) -> None:
    path = written(folder, GOOD, "", FAULTS[problem])
    with pytest.raises(DatasetError) as caught:
        len(JsonlClips(path, read_nothing))
    assert str(caught.value).startswith(f"{path}:3: ")
    assert problem.strip() in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_file_or_one_that_is_not_text_or_not_there(folder: Path) -> None:
    with pytest.raises(DatasetError, match="holds no question"):
        len(clips_of(folder, "", "  "))
    (folder / "clips.jsonl").write_bytes(b"\xff\xfe")
    for name in ("clips.jsonl", "none.jsonl", "sub"):
        with pytest.raises(DatasetError, match="cannot be read"):
            len(JsonlClips(folder / name, read_nothing))


def test_a_file_that_never_ends_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("wb") as file:
        file.truncate(MOST_TEXT_BYTES + 1)
    with pytest.raises(DatasetError, match=r"large\.jsonl: cannot be read .* 64 MiB"):
        questions_from_jsonl(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(values=st.dictionaries(st.sampled_from([*SPAN, "choices", "x"]), JSON))
def test_any_line_is_a_clip_or_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("any", numbered=True)
    (folder / "a.mp4").touch()
    path = written(folder, {**GOOD, **values})
    try:
        found = questions_from_jsonl(path)
    except DatasetError as error:
        assert str(error).startswith(f"{path}:1: ")
    else:
        assert sum(map(len, found.values())) == 1
