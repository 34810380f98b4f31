"""Training on one's own videos: what it looks at first, learns from and is validated by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate import Accelerator
from fake_clips import read_nothing
from tiny_model import CODES, CONFIG, random_codes, random_maps, tiny_llm, tiny_tokenizer
from tiny_run import BUDGETS, CLIPS, config_for, fill_cache, run

from vqedge.data.cache import QuantizedClips
from vqedge.data.clips import QuestionAnswer
from vqedge.data.generated import GeneratedClips
from vqedge.data.jsonl import FileClip, JsonlClips, VideoFile
from vqedge.data.training import TrainingClips
from vqedge.errors import DatasetError, VideoError
from vqedge.model.encoder import Bridge
from vqedge.model.naming import NamingLoss
from vqedge.model.vlm import Scores, VideoLanguageModel
from vqedge.progress import Clock
from vqedge.recipe import DataConfig, JsonlConfig, OptimConfig, TrainConfig, WorldConfig
from vqedge.train import train
from vqedge.training.batches import Batches
from vqedge.training.clips import refuse_unreadable
from vqedge.training.held_out import exact_match
from vqedge.training.inputs import long_answers
from vqedge.training.naming_lesson import NamingLesson

pytestmark = pytest.mark.usefixtures("train_cache")


def written(folder: Path, *lines: dict[str, Any], name: str = "mine.jsonl") -> Path:
    """A file of questions; its videos are empty files."""
    path = folder / name
    usual = {"question": "What?", "answer": "a"}
    path.write_text("\n".join(json.dumps(usual | line) for line in lines))
    for line in lines:
        (folder / line["video"]).touch()
    return path


def mixed(folder: Path, **changes: Any) -> TrainConfig:
    """A run on a file and the world."""
    path = written(folder, *({"video": f"{name}.mp4"} for name in "abc"))
    sources = (JsonlConfig(kind="jsonl", path=path, weight=0.9), WorldConfig(clips=CLIPS))
    data = DataConfig(sources=sources, questions_per_clip=2, budgets=BUDGETS)
    return config_for(folder / "run", data=data, **changes)


# ---- the naming lesson


def test_the_naming_lesson_is_of_clips_with_labels_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, train_cache: Path
) -> None:
    """Else all that one's own videos show would be named "background"."""
    picked: list[Any] = []
    rows: list[int] = []
    shown, distance = NamingLesson._shown, NamingLoss.distance

    def noted(self: NamingLesson, clips: TrainingClips, picks: Any, budget: int) -> Any:
        picked.extend(clips.sources[pick.source] for pick in picks)
        return shown(self, clips, picks, budget)

    def counted(self: NamingLoss, found: torch.Tensor, names: torch.Tensor) -> torch.Tensor:
        rows.append(len(found))
        return distance(self, found, names)

    monkeypatch.setattr(NamingLesson, "_shown", noted)
    monkeypatch.setattr(NamingLoss, "distance", counted)
    steps = OptimConfig(
        steps=1, clips_per_step=2, warmup_steps=1, naming_steps=4, naming_clips_per_step=3
    )
    config = mixed(tmp_path, optim=steps)
    own = JsonlClips(tmp_path / "mine.jsonl", read_nothing)
    fill_cache(train_cache, CONFIG, 5, own)
    run(config)
    assert len(picked) >= 4 * 3 and all(isinstance(each, GeneratedClips) for each in picked)
    assert rows == [3] * 4


def test_clips_that_all_have_labels_are_the_same_clips() -> None:
    world = GeneratedClips(1, CLIPS)
    clips = TrainingClips((world, world), ({}, {}), (1.0, 2.0), 2, True)
    assert clips.labelled() is clips


# ---- videos that cannot be read


class OfGoodNames:
    """Reads files whose names do not begin with `bad`."""

    def __init__(self) -> None:
        self.read: list[tuple[str, int, float | None]] = []

    def __call__(
        self, path: Path, count: int, size: int, start: float | None, end: float | None
    ) -> npt.NDArray[np.uint8]:
        self.read.append((path.name, count, start))
        if path.name.startswith("bad") or (start or 0) > 9:
            raise VideoError(f"{path}: is damaged")
        return np.zeros((count, size, size, 3), np.uint8)


@pytest.mark.parametrize("workers", [0, 1])
def test_all_bad_videos_of_all_files_are_listed_before_anything_is_encoded(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    def encoding(*_: object) -> None:
        raise AssertionError("nothing is to be encoded")

    monkeypatch.setattr("vqedge.train.training_clips", encoding)
    monkeypatch.setattr("vqedge.train.clip_quantizer", encoding)
    names = ["good.mp4", "bad-1.mp4", "good.mp4", "bad-2.mp4"]
    ours = written(tmp_path, *({"video": name} for name in names))
    theirs = written(tmp_path, {"video": "new.mp4", "start": 10.0}, name="theirs.jsonl")
    config = config_for(
        tmp_path / "run",
        data=DataConfig(
            sources=(JsonlConfig(kind="jsonl", path=ours),), budgets=BUDGETS, workers=workers
        ),
        validation=(JsonlConfig(kind="jsonl", path=theirs),),
    )
    with pytest.raises(DatasetError, match=r"^3 clips cannot be read; they are listed above"):
        train(config, OfGoodNames())
    told = [line for line in capsys.readouterr().err.splitlines() if "is damaged" in line]
    places = [f"{ours}:2", f"{ours}:4", f"{theirs}:1"]
    files = ["bad-1.mp4", "bad-2.mp4", "new.mp4"]
    pairs = zip(places, files, strict=True)
    assert told == [f"{place}: {tmp_path / name}: is damaged" for place, name in pairs]


def test_a_frame_of_each_clip_is_read_where_it_is_not_encoded_yet(
    tmp_path: Path, train_cache: Path
) -> None:
    config, read = mixed(tmp_path), OfGoodNames()
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": 0})})
    source = JsonlClips(tmp_path / "mine.jsonl", read)
    world = GeneratedClips(1, CLIPS)
    refuse_unreadable(config, (source, world, source), Accelerator(), Clock())
    assert read.read == [(f"{name}.mp4", 1, None) for name in "abc"]
    fill_cache(train_cache, CONFIG, 5, source)
    refuse_unreadable(config, (source,), Accelerator(), Clock())
    assert len(read.read) == 3


# ---- validation


def clip_of(*asked: QuestionAnswer) -> FileClip:
    return FileClip(VideoFile(Path("a.mp4")), asked, read_nothing)


class Listed:
    """A source of given clips."""

    vocabulary: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 - a constant of a stand-in

    def __init__(self, *clips: FileClip) -> None:
        self._clips, self.fingerprint = clips, "listed"

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> FileClip:
        return self._clips[number]


class Likes(torch.nn.Module):
    """Finds every answer wrong as a whole, and the longer the likelier."""

    def forward(self, _clips: Any, batch: Any) -> Scores:
        lengths = [
            (batch.targets[row][batch.segment[row] == segment] >= 0).sum()
            for row in range(len(batch.segment))
            for segment in range(1, int(batch.segment[row].max()) + 1)
        ]
        told = torch.stack(lengths).float()
        return Scores(told.sum(), told.sum(), torch.zeros(len(told), dtype=torch.bool), told)


def validated(tmp_path: Path, *clips: FileClip) -> tuple[dict[str, float], list[Any]]:
    source, codes = Listed(*clips), random_codes(len(clips)).half()
    kept = {CODES: QuantizedClips(codes, random_maps(len(clips)).to(torch.uint8))}
    held_out = TrainingClips((source,), (kept,), (1.0,), CONFIG.encoder.frames, False)
    batches = Batches(config_for(tmp_path), tiny_tokenizer(), torch.device("cpu"))
    model: Any = Likes()
    found = exact_match(model, held_out, batches, Accelerator())
    return found, [*batches.held_out(held_out)]


def test_all_questions_of_a_file_are_asked(tmp_path: Path) -> None:
    """A long row is cut, and no question is asked twice."""
    many = [QuestionAnswer(f"kind {n % 2}", f"Number {n}?", "a") for n in range(50)]
    found, parts = validated(tmp_path, clip_of(*many), clip_of(many[0]))
    asked = [each.item for _, questions in parts for each in questions]
    assert asked == [*many, many[0]]
    assert set(found) == {"exact_match", "kind 0", "kind 1"} and found["exact_match"] == 0.0
    [(batch, _)] = parts
    assert batch.packed.segment.amax(dim=1).tolist() == [24, 24, 2, 1]


def test_of_choices_the_likeliest_is_said(tmp_path: Path) -> None:
    def choice(answer: str, *choices: str) -> QuestionAnswer:
        return QuestionAnswer("choice", "Which?", answer, choices)

    right, wrong = choice("long", "a", "long", "b"), choice("a", "a", "long")
    tie = choice("bb", "aa", "bb")
    free = QuestionAnswer("free", "What?", "long")
    found, _ = validated(tmp_path, clip_of(right, free, wrong), clip_of(right, tie))
    assert found == {"exact_match": 0.4, "choice": 0.5, "free": 0.0}


def test_likelihood_is_that_of_the_answer_alone(tmp_path: Path) -> None:
    """Of the real model: what it says of an answer does not depend on the others of its row."""
    torch.manual_seed(0)
    model = VideoLanguageModel(Bridge(CONFIG), tiny_llm()).eval()
    item = QuestionAnswer("choice", "Which?", "a", ("a", "bc"))
    kept = {CODES: QuantizedClips(random_codes(1).half(), random_maps(1).to(torch.uint8))}
    batches = Batches(config_for(tmp_path), tiny_tokenizer(), torch.device("cpu"))

    def likelihoods(items: Sequence[QuestionAnswer]) -> list[float]:
        clips = TrainingClips(
            (Listed(clip_of(*items)),), (kept,), (1.0,), CONFIG.encoder.frames, False
        )
        [(batch, _)] = batches.held_out(clips)
        with torch.no_grad():
            found = model(batch.clips, batch.packed).likelihood
        assert found is not None
        return [float(value) for value in found]

    alone = [likelihoods([QuestionAnswer("x", "Which?", answer)])[0] for answer in item.choices]
    assert likelihoods([item]) == pytest.approx(alone, abs=1e-4)
    assert all(value < -1 for value in alone) and alone[0] != alone[1]


# ---- answers that are too long


def test_answers_that_are_longer_than_any_are_told(tmp_path: Path) -> None:
    lines = [{"video": "a.mp4", "answer": "x" * length} for length in (64, 65, 100)]
    chosen = {"video": "a.mp4", "answer": "y" * 99, "choices": ["y" * 99, "z"]}
    path = written(tmp_path, chosen, *lines)
    source = JsonlClips(path, read_nothing)
    [line] = long_answers([source, GeneratedClips(1, CLIPS), source], tiny_tokenizer())
    assert line.startswith(f"{path}:3: its answer has 65 tokens, and no more than 64 are")
    assert line.endswith("; 1 more answers are too long")
    path = written(tmp_path, chosen, lines[0], name="short.jsonl")
    assert not [*long_answers([JsonlClips(path, read_nothing)], tiny_tokenizer())]
