"""docs/train-your-own.md tells the truth: its files, its recipe and its commands work together.

The videos are generated, the backbone is one block of random weights and the language model a tiny
one, so that everything but the size is real.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_model import random_backbone, tiny_llm, tiny_tokenizer
from typer.main import get_command
from typer.testing import CliRunner

import vqedge.model.answer as answer
import vqedge.model.checkpoint as checkpoint
import vqedge.train as training
import vqedge.training.beginning as beginning
import vqedge.training.inputs as inputs
import vqedge.training.run as run
from vqedge.cli import app
from vqedge.commands.frames import read_frames
from vqedge.data.jsonl import _Line
from vqedge.data.photos import photos_from_index
from vqedge.data.render import frames_from_scene, write_mp4
from vqedge.data.world import scene_from_seed
from vqedge.errors import DatasetError
from vqedge.recipe import JsonlConfig, TrainConfig, read_recipe

PAGE = (Path(__file__).parents[2] / "docs/train-your-own.md").read_text(encoding="utf-8")
TRAIN, HELD_OUT, RECIPE = "mine/train.jsonl", "mine/held_out.jsonl", "mine/recipe.yaml"
SECONDS, FPS = 2, 8
SMALL = [
    "model.encoder={block: 1, size: 112, frames: 8}",
    "model.attention={width: 16, heads: 2, depth: 1}",
    "model.llm={width: 32, lora_rank: 2}",
    "data.workers=0",
    "optim={naming_steps: 2, naming_clips_per_step: 3, steps: 2, clips_per_step: 4}",
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """The words of every command of the page, without `vqedge`."""
    lines = [line for block in blocks("console") for line in block.splitlines()]
    assert all(line.startswith("$ vqedge ") for line in lines)
    return [shlex.split(line)[2:] for line in lines]


def test_the_line_of_a_photo_is_one_of_an_index(tmp_path: Path) -> None:
    *_, line = blocks("json")
    (tmp_path / "index.jsonl").write_text(line, encoding="utf-8")
    (tmp_path / "cups").mkdir()
    (tmp_path / "cups/0001.jpg").touch()
    found = photos_from_index(tmp_path / "index.jsonl", "train")
    assert [photo.noun for photo in found] == ["cup"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The page's files in a folder that is the current one; the heavy parts are tiny."""
    root = tmp_path_factory.mktemp("own")
    (root / "mine").mkdir()
    train, held_out, _photo = blocks("json")
    (root / TRAIN).write_text(train, encoding="utf-8")
    (root / HELD_OUT).write_text(held_out, encoding="utf-8")
    (root / RECIPE).write_text(blocks("yaml")[0], encoding="utf-8")
    videos = {json.loads(line)["video"] for line in (train + held_out).splitlines()}
    for number, name in enumerate(sorted(videos)):
        frames = frames_from_scene(scene_from_seed(9, number), SECONDS * FPS, 112)
        write_mp4(root / "mine" / name, frames, fps=FPS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("VQEDGE_CACHE", str(root / "cache"))
        for module in (run, inputs, checkpoint, answer):
            patch.setattr(module, "llm_weights", lambda *_: SimpleNamespace(path=Path("llm")))
        for module in (training, checkpoint):
            patch.setattr(module, "clip_quantizer", random_backbone)
        for module in (run, checkpoint):
            patch.setattr(module, "llm_from_gguf", lambda _path: tiny_llm())
        for module in (run, answer):
            patch.setattr(module, "tokenizer_from_gguf", lambda *_: tiny_tokenizer())
        yield root


def small_config(*overrides: str) -> TrainConfig:
    """The recipe of the page, small, with three clips of the world."""
    config = read_recipe(Path(RECIPE), [*SMALL, *overrides])
    sources = tuple(
        entry if isinstance(entry, JsonlConfig) else entry.model_copy(update={"clips": 3})
        for entry in config.data.sources
    )
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": sources})})


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """What the page's recipe makes of the page's files."""
    made = training.train(small_config(), read_frames)
    assert made is not None
    return folder / made.path


# ---- the page itself


def test_every_field_is_in_the_table_and_no_other() -> None:
    rows = re.findall(r"^\| (`.+?`) \|", PAGE, flags=re.MULTILINE)
    fields = [name for row in rows for name in re.findall(r"`(\w+)`", row)]
    assert fields == list(_Line.model_fields)
    needed = re.findall(r"^\| `(\w+)` \| needed", PAGE, flags=re.MULTILINE)
    assert needed == [name for name, field in _Line.model_fields.items() if field.is_required()]


def test_every_command_is_one_that_the_command_line_takes() -> None:
    known = get_command(app).commands  # type: ignore[attr-defined]
    assert {words[0] for words in commands()} == {"train", "eval", "export", "ask"}
    for name, *arguments in commands():
        known[name].make_context(name, arguments)  # raises for an option that is not there


def test_names_agree_across_files_recipe_and_commands(folder: Path) -> None:
    config = read_recipe(Path(RECIPE))
    paths = [
        entry.path for entry in (*config.data.sources, *config.validation) if entry.kind == "jsonl"
    ]
    assert paths == [Path(TRAIN), Path(HELD_OUT)]
    assert all(f"`{name}`" in PAGE for name in (TRAIN, HELD_OUT, RECIPE))
    told = [word for words in commands() for word in words]
    assert RECIPE in told and str(config.output) in told and HELD_OUT in told
    assert config.model.quantizer.default_budget in config.data.budgets


# ---- the run


def test_the_recipe_trains_on_files_and_the_world_and_validates_on_the_held_out(
    trained: Path,
) -> None:
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["step"] == 2 and metrics["loss"] > 0
    assert set(metrics["validation"]) == {"exact_match", "thing", "all"}
    cached = [path.name for path in (trained.parents[1] / "cache/clips").glob("*-k32-*")]
    assert sorted(re.search(r"jsonl|world", name)[0] for name in cached) == [  # type: ignore[index]
        "jsonl",
        "jsonl",
        "world",
    ]


def test_the_evaluation_of_the_page(trained: Path) -> None:
    evaluations = [words for words in commands() if words[:2] == ["eval", "--checkpoint"]]
    assert len(evaluations) == 2
    for words in evaluations:
        outcome = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
        document = json.loads(outcome.stdout.splitlines()[-1])
        assert document["n"] == 2 and set(document["by_kind"]) == {"thing", "all"}
        assert 1 <= document["tokens_mean"] <= 32
        compared = document.get("baselines", {})
        assert set(compared) == ({"shuffled frames", "blind"} if "--baselines" in words else set())


def test_without_labels_there_is_no_naming_lesson(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lesson:
        def __init__(self, *_: Any) -> None:
            raise AssertionError("a lesson")

    monkeypatch.setattr(beginning, "NamingLesson", Lesson)
    with pytest.raises(AssertionError, match="a lesson"):
        training.train(small_config("output=runs/mixed"), read_frames)
    alone = f"data.sources=[{{kind: jsonl, path: {TRAIN}}}]"
    made = training.train(small_config(alone, "output=runs/alone"), read_frames)
    assert made is not None and (folder / "runs/alone/model.safetensors").exists()


@pytest.mark.parametrize("place", ["data.sources.0", "validation.0"])
def test_a_bad_line_stops_the_run_before_anything_is_encoded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    bad = folder / "mine/bad.jsonl"
    bad.write_text((folder / TRAIN).read_text().replace('"kind"', '"kin"'))
    monkeypatch.setenv("VQEDGE_CACHE", str(folder / "untouched"))
    with pytest.raises(DatasetError, match=r"bad\.jsonl:1: kin: Extra inputs"):
        training.train(small_config(f"{place}.path={bad}", "output=runs/bad"), read_frames)
    assert not (folder / "runs/bad").exists() and not (folder / "untouched").exists()
