"""Training on one's own videos: what it looks at first and learns from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate import Accelerator
from fake_clips import read_nothing
from tiny_model import CONFIG, tiny_tokenizer
from tiny_run import BUDGETS, CLIPS, config_for, fill_cache, run

from vqedge.data.generated import GeneratedClips
from vqedge.data.jsonl import JsonlClips
from vqedge.errors import DatasetError, VideoError
from vqedge.model.naming import NamingLoss
from vqedge.progress import Clock
from vqedge.recipe import DataConfig, JsonlConfig, OptimConfig, TrainConfig, WorldConfig
from vqedge.train import train
from vqedge.training.clips import refuse_unreadable
from vqedge.training.dataset import TrainingClips
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


# ---- answers that are too long


def test_answers_that_are_longer_than_any_are_told(tmp_path: Path) -> None:
    lines = [{"video": "a.mp4", "answer": "x" * length} for length in (64, 65, 100)]
    chosen = {"video": "a.mp4", "answer": "y" * 99, "choices": ["y" * 99, "z"]}
    path = written(tmp_path, chosen, *lines)
    source = JsonlClips(path, read_nothing)
    [line] = long_answers([source, GeneratedClips(1, CLIPS), source], tiny_tokenizer())
    assert line.startswith(f"{path}:3: its answer has 65 tokens, and no more than 64 are")
    assert line.endswith("none can be right; so it is with 1 more line")
    written(tmp_path, chosen, *lines, {"video": "b.mp4", "answer": "x" * 70})
    [line] = long_answers([JsonlClips(path, read_nothing)], tiny_tokenizer())
    assert line.endswith("none can be right; so it is with 2 more lines")
    path = written(tmp_path, chosen, lines[0], name="short.jsonl")
    assert not [*long_answers([JsonlClips(path, read_nothing)], tiny_tokenizer())]


def test_answers_that_are_longer_than_any_are_told_before_anything_is_encoded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def encoding(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vqedge.train.clip_quantizer", encoding)
    path = written(tmp_path, {"video": "a.mp4", "answer": "x" * 70}, name="theirs.jsonl")
    config = config_for(tmp_path / "run", validation=(JsonlConfig(kind="jsonl", path=path),))
    with pytest.raises(KeyboardInterrupt):
        train(config, OfGoodNames())
    assert f"{path}:1: its answer has 70 tokens" in capsys.readouterr().err
