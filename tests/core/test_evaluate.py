"""Evaluation: what counts as right, how sure the share is, and where the questions come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from vqedge.config import ModelConfig
from vqedge.data.questions import KINDS
from vqedge.data.suites import SYNTHETIC_SEED, Item, Scene, suite_items
from vqedge.errors import ConfigError, DatasetError
from vqedge.evaluate import EvalReport, Reply, Tally, evaluate, is_right, wilson_interval
from vqedge.model.answer import CheckpointAnswerer
from vqedge.model.checkpoint import Checkpoint

# ---- one answer


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("red", "red"),
        ("Red.", "red"),
        ("  a  red\nball ", "The red ball!"),
        ("An apple", "apple"),
        ('"yes"', "Yes"),
        ("", "the"),
    ],
)
def test_right(found: str, wanted: str) -> None:
    assert is_right(found, wanted)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("blue", "red"),
        ("red ball", "red"),
        ("", "red"),
        ("redball", "red ball"),
        ("not red", "red"),
        ("theory", "ory"),
        ("2", "3"),
    ],
)
def test_wrong(found: str, wanted: str) -> None:
    assert not is_right(found, wanted)


# ---- how sure


@pytest.mark.parametrize(
    ("right", "total", "interval"),
    # Newcombe 1998, table I, method 3 (score, no continuity correction), rounded there to 4 places
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0)),
    ],
)
def test_the_wilson_interval(right: int, total: int, interval: tuple[float, float]) -> None:
    found = wilson_interval(right, total)
    assert found == pytest.approx(interval, abs=6e-5)
    assert 0.0 <= found[0] <= right / total <= found[1] <= 1.0


# ---- a suite


class Parrot:
    """Says what it is told, at 10 tokens, then 20, and so on."""

    backend = {"encoder": "none", "llm": "none"}  # noqa: RUF012 - a constant of a stand-in
    tokens_before = 2048
    frames = 8

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = iter(texts)
        self.tokens = 0

    def reply(self, item: Item) -> Reply:
        self.tokens += 10
        return Reply(next(self._texts), self.tokens)


def items_of(*kinds_and_answers: str) -> list[Item]:
    pairs = (text.split(":") for text in kinds_and_answers)
    return [Item(Path("a.mp4"), kind, "What?", answer) for kind, answer in pairs]


def test_a_report_counts_by_kind_and_overall() -> None:
    told: list[tuple[str, str, bool]] = []
    report = evaluate(
        Parrot(["red", "blue", "2", "3"]),
        "mine",
        items_of("count:2", "color:blue", "count:2", "count:3"),
        lambda item, reply, hit: told.append((item.kind, reply.text, hit)),
    )
    document = report.to_dict()
    assert document == {
        "suite": "mine",
        "n": 4,
        "accuracy": 0.75,
        "interval": list(wilson_interval(3, 4)),
        "by_kind": {"color": {"n": 1, "accuracy": 1.0}, "count": {"n": 3, "accuracy": 2 / 3}},
        "tokens_mean": 25.0,
        "tokens_before": 2048,
        "frames": 8,
        "tokdense": 3.0,  # 75 percent over 25 tokens
    }
    assert list(document["by_kind"]) == ["color", "count"]
    assert json.loads(json.dumps(document)) == document
    assert told == [
        ("count", "red", False),
        ("color", "blue", True),
        ("count", "2", True),
        ("count", "3", True),
    ]


def test_extra_keys_are_added_and_no_token_means_no_density() -> None:
    tally = Tally()
    tally.add(True)
    report = EvalReport("x", tally, {}, 0.0, 2048, 8, {"backend": "none"})
    assert report.to_dict()["backend"] == "none"
    assert report.to_dict()["tokdense"] == 0.0


@pytest.mark.parametrize("budget", [0, -1, 33])
def test_a_checkpoint_is_not_asked_for_a_budget_it_does_not_have(budget: int) -> None:
    with pytest.raises(ConfigError, match=rf"--budget {budget}: .* 1 to 32 tokens"):
        CheckpointAnswerer(Checkpoint(Path("none"), ModelConfig()), budget)


# ---- where questions come from


def test_the_synthetic_suite_is_the_one_that_numbers_were_published_for() -> None:
    items = suite_items("synthetic", 60)
    assert len(items) == 60 and {item.kind for item in items} == set(KINDS)
    assert {item.clip.seed for item in items if isinstance(item.clip, Scene)} == {SYNTHETIC_SEED}
    numbers = [item.clip.index for item in items if isinstance(item.clip, Scene)]
    assert numbers == sorted(numbers), "questions about one clip come one after another"
    digest = hashlib.sha256(repr(items).encode()).hexdigest()[:16]
    assert digest == "1ff5f68a5af8574e", "the suite changed: measure all published numbers again"


def test_a_synthetic_clip_is_drawn_at_any_size() -> None:
    (item,) = suite_items("synthetic", 1)
    assert isinstance(item.clip, Scene)
    assert item.clip.frames(2, 28).shape == (2, 28, 28, 3)


def jsonl(folder: Path, *lines: dict[str, Any] | str) -> Path:
    (folder / "a.mp4").touch()
    path = folder / "questions.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(texts), encoding="utf-8")
    return path


GOOD = {"video": "a.mp4", "question": "Was läuft?", "answer": "ein Hund"}


@pytest.mark.parametrize("prefix", ["", "jsonl:"])
def test_a_jsonl_file(tmp_path: Path, prefix: str) -> None:
    choices = ["red", "blue"]
    second = {**GOOD, "answer": "red", "kind": "color", "choices": choices}
    path = jsonl(tmp_path, GOOD, "", second)
    items = suite_items(f"{prefix}{path}")
    assert items == [
        Item(tmp_path / "a.mp4", "all", "Was läuft?", "ein Hund"),
        Item(tmp_path / "a.mp4", "color", "Was läuft?", "red", ("red", "blue")),
    ]
    assert suite_items(str(path), limit=1) == items[:1]


JSONL_FAULTS: dict[str, dict[str, Any] | str] = {
    "not JSON": "{video: a}",
    "question: Field required": {"video": "a.mp4", "answer": "x"},
    "answer: String should have at least 1": {**GOOD, "answer": ""},
    "colour: Extra inputs": {**GOOD, "colour": "red"},
    "the answer is not one of the choices": {**GOOD, "choices": ["a", "b"]},
    "no video": {**GOOD, "video": "b.mp4"},
    "Input should be a valid dictionary": "[1, 2]",
}


@pytest.mark.parametrize("problem", JSONL_FAULTS)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, problem: str) -> None:
    path = jsonl(tmp_path, GOOD, "", JSONL_FAULTS[problem])
    with pytest.raises(DatasetError) as caught:
        suite_items(str(path))
    assert str(caught.value).startswith(f"{path}:3: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


HEADER = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
ROW = "4010069381,369,640,480,how do the two man play,2,6,CH,roll,tap,strum,hit,pat"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/4010069381.mp4").touch()
    return tmp_path / "videos"


def nextqa(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "val.csv"
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    return path


@pytest.mark.parametrize("prefix", ["", "nextqa:"])
def test_a_next_qa_file(tmp_path: Path, videos: Path, prefix: str) -> None:
    path = nextqa(tmp_path, ROW, ROW.replace("4010069381", "999"))
    (item,) = suite_items(f"{prefix}{path}", videos=videos)  # 999 is not there: left out
    choices = ("roll", "tap", "strum", "hit", "pat")
    clip = videos / "4010069381.mp4"
    assert item == Item(clip, "CH", "how do the two man play?", "strum", choices)


NEXTQA_FAULTS = {
    "answer": ROW.replace(",2,6,", ",5,6,"),
    "below zero": ROW.replace(",2,6,", ",-1,6,"),
    "no number": ROW.replace(",2,6,", ",strum,6,"),
    "a column short": ROW.rpartition(",")[0],
    "half a row": "4010069381,369",
}


@pytest.mark.parametrize("problem", NEXTQA_FAULTS)
def test_a_bad_row_is_named_by_file_and_number(tmp_path: Path, videos: Path, problem: str) -> None:
    path = nextqa(tmp_path, ROW, NEXTQA_FAULTS[problem])
    with pytest.raises(DatasetError) as caught:
        suite_items(str(path), videos=videos)
    assert str(caught.value).startswith(f"{path}:3: not a NExT-QA row")
    assert "\n" not in str(caught.value)


def test_another_table(tmp_path: Path, videos: Path) -> None:
    path = nextqa(tmp_path, "1,2", header="a,b")
    with pytest.raises(DatasetError, match=r"val\.csv:2: not a NExT-QA row"):
        suite_items(str(path), videos=videos)


def test_a_video_name_may_not_lead_elsewhere(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "secret.mp4").touch()
    path = nextqa(tmp_path, ROW.replace("4010069381", "../secret"))
    with pytest.raises(DatasetError, match="holds no question"):
        suite_items(str(path), videos=videos)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nothing", "choose one of synthetic, jsonl, nextqa"),
        ("csv:x.csv", "choose one of synthetic, jsonl, nextqa"),
        ("none.jsonl", "cannot be read"),
        ("none.csv", "needs --videos DIR"),
    ],
)
def test_a_suite_that_is_not_there(name: str, problem: str) -> None:
    with pytest.raises(DatasetError, match=problem):
        suite_items(name)


def test_an_empty_file_or_one_that_is_not_text(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no question"):
        suite_items(str(jsonl(tmp_path)))
    (tmp_path / "questions.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match="cannot be read"):
        suite_items(str(tmp_path / "questions.jsonl"))
