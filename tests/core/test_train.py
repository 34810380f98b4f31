"""A run killed and resumed is the run that was never killed; what it leaves in its folder."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_model import CONFIG
from tiny_run import BUDGETS, LESSONS, MODELS, STEPS, config_for, killed_and_resumed, log_of, run

from vqedge.base.weights import llm_weights
from vqedge.checkpoint import LLM_WEIGHTS, ORIGIN, steps_of
from vqedge.errors import CheckpointError
from vqedge.files import file_sha256
from vqedge.model.checkpoint import LORA, METRICS, MODEL, open_checkpoint
from vqedge.recipe import TrainConfig, read_recipe
from vqedge.training import folder as folder_module
from vqedge.training.clips import training_clips
from vqedge.training.folder import LESSON, LOG, STATE, RunFolder
from vqedge.training.naming_lesson import NamingLesson
from vqedge.training.run import Run
from vqedge.training.schedule import learning_rate_factor

pytestmark = pytest.mark.usefixtures("train_cache")


@pytest.mark.parametrize("fatal", [0, 1, 3])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path, fatal: int
) -> None:
    killed = tmp_path / "killed"
    killed_and_resumed(monkeypatch, config_for(killed), fatal)
    for name in (STATE, MODEL, LORA):
        expected, found = load_file(whole / name), load_file(killed / name)
        assert found.keys() == expected.keys()
        for tensor, value in expected.items():
            assert torch.equal(found[tensor], value), f"{name}: {tensor}"
    for name in (MODEL, LORA):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert log_of(killed)[-1]["loss"] == log_of(whole)[-1]["loss"]
    assert [record["step"] for record in log_of(killed)] == [0, 1, 2, 3, 4]


def test_a_killed_run_with_dropout_leaves_out_what_it_would_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path
) -> None:
    optim = config_for(whole).optim.model_copy(update={"hash_dropout": 0.5, "frame_dropout": 0.5})
    run(config_for(tmp_path / "dropping", optim=optim))
    found = killed_and_resumed(monkeypatch, config_for(tmp_path / "killed", optim=optim))
    plain, expected = (load_file(folder / STATE) for folder in (whole, tmp_path / "dropping"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    hashed = [name for name in plain if name.startswith("weight.") and "hash" in name]
    assert hashed and not any(torch.equal(expected[name], plain[name]) for name in hashed)


@pytest.mark.parametrize("place", ["save_file", "carry_weights"])
@pytest.mark.parametrize("first", [True, False])
def test_a_kill_within_a_save_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path, place: str, first: bool
) -> None:
    """Of the first save, or of the last one."""
    killed = tmp_path / "killed"
    part = getattr(folder_module, place)

    def dying(*words: Any) -> None:
        if first or ((killed / "step-000002").exists() and (killed / STATE).exists()):
            raise KeyboardInterrupt
        part(*words)

    monkeypatch.setattr(folder_module, place, dying)
    with pytest.raises(KeyboardInterrupt):
        run(config_for(killed))
    monkeypatch.undo()
    monkeypatch.setenv("VQEDGE_CACHE", os.environ["VQEDGE_CACHE"])
    run(config_for(killed), resume=True)
    for name in (STATE, MODEL, LORA):
        expected, found = load_file(whole / name), load_file(killed / name)
        assert all(torch.equal(found[tensor], value) for tensor, value in expected.items()), name
    assert [record["step"] for record in log_of(killed)] == [0, 1, 2, 3, 4]


def test_encoding_clips_first_changes_no_weight(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path
) -> None:
    def drawing(*words: Any) -> Any:
        torch.rand(5)  # as loaders do that draw clips ahead
        return training_clips(*words)

    monkeypatch.setattr("vqedge.train.training_clips", drawing)
    run(config_for(tmp_path / "cold"))
    expected, found = load_file(whole / MODEL), load_file(tmp_path / "cold" / MODEL)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_log_line_cut_off_by_a_kill_is_dropped(whole: Path) -> None:
    with (whole / LOG).open("a", encoding="utf-8") as file:
        file.write('{"step": 5, "loss": 0.1}\n{"step": 6, "lo')
    run(config_for(whole), resume=True)
    assert [record["step"] for record in log_of(whole)] == [0, 1, 2, 3, 4]


def test_the_log_of_a_run_that_saved_nothing_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / LOG).write_text('{"lesson": "naming", "lesson_step": 9, "loss": 2}\n{"step": 1}\n')
    run(config_for(tmp_path, steps=1))
    assert [record.get("step") for record in log_of(tmp_path)] == [0, 1]


def test_others_may_read_what_a_run_leaves(whole: Path, tmp_path: Path) -> None:
    """As the user's umask says, which made a new file here; not the writer of safetensors."""
    (tmp_path / "new").touch()
    files = [path for path in whole.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".safetensors"}
    assert {path.stat().st_mode for path in files} == {(tmp_path / "new").stat().st_mode}


def test_every_step_is_logged(whole: Path) -> None:
    log = log_of(whole)
    first, *log = log
    assert set(first) == {"step", "naming"}  # random codes show nothing that could be named
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert {record["budget"] for record in log} <= {*BUDGETS}
    assert ["validation" in record for record in log] == [False, True, False, True]
    assert all(record["loss"] > 0 and record["gradient_norm"] > 0 for record in log)


def test_a_finished_run_may_be_resumed_and_lengthened(whole: Path) -> None:
    before = load_file(whole / MODEL)
    assert run(config_for(whole), resume=True).path == whole
    assert all(torch.equal(value, before[name]) for name, value in load_file(whole / MODEL).items())
    run(config_for(whole, steps=6), resume=True)
    assert [record["step"] for record in log_of(whole)] == [0, 1, 2, 3, 4, 5, 6]


def test_a_run_goes_on_without_its_init_and_remembers_it(tmp_path: Path, whole: Path) -> None:
    init = Path(shutil.copytree(whole, tmp_path / "tiny"))
    run(config_for(tmp_path / "on", steps=1, init=init))
    (init / MODEL).unlink()
    run(config_for(tmp_path / "on", steps=2, init=init), resume=True)
    with safe_open(tmp_path / "on" / STATE, framework="pt") as file:
        assert file.metadata()["init"] == file_sha256(whole / MODEL)


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path) -> Path:
    """A checkpoint whose language model's weights lie in it, which runs want to read."""
    folder = Path(shutil.copytree(whole, tmp_path / "imported"))
    (folder / LLM_WEIGHTS).write_bytes(b"weights")
    origin = {"version": 1, "source": "s", "revision": None, "licence": "l", "ignored": []}
    (folder / ORIGIN).write_text(json.dumps(origin))
    own = {"source": "checkpoint", "weights_sha256": file_sha256(folder / LLM_WEIGHTS)}
    model = CONFIG.model_copy(update={"llm": CONFIG.llm.model_copy(update=own)})
    (folder / "config.json").write_text(model.model_dump_json())
    for module in ("inputs", "run"):
        monkeypatch.setattr(f"vqedge.training.{module}.llm_weights", llm_weights)
    return folder


def recipe_of(config: TrainConfig, path: Path) -> Path:
    """A recipe that leaves its model to `init`."""
    path.write_text(json.dumps(config.model_dump(mode="json", exclude={"model"})))
    return path


def test_a_run_goes_on_without_the_imported_checkpoint_that_it_began_with(
    tmp_path: Path, imported: Path
) -> None:
    """Its base weights are in the run's folder since the first save, and so is its model."""
    recipe = recipe_of(config_for(tmp_path / "on", init=imported), tmp_path / "recipe.yaml")
    run(read_recipe(recipe, ["optim.steps=1"]))
    shutil.rmtree(imported)
    for options in ((["output=elsewhere"], tmp_path / "on"), ([f"output={tmp_path / 'on'}"], None)):
        config = read_recipe(recipe, *options)
        assert run(config, resume=True).path == tmp_path / "on"
    numbered = tmp_path / "on" / "step-000004"
    assert llm_weights(config.model.llm, numbered).path == numbered / LLM_WEIGHTS
    with pytest.raises(CheckpointError, match="imported: no such folder"):
        read_recipe(recipe, output=tmp_path / "another")


def test_a_run_saves_on_when_the_imported_checkpoint_goes_meanwhile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, imported: Path
) -> None:
    config = read_recipe(recipe_of(config_for(tmp_path / "on", init=imported), tmp_path / "a.yaml"))
    step = Run.step

    def gone(self: Run, number: int, *others: Any) -> dict[str, Any]:
        shutil.rmtree(imported, ignore_errors=True)
        return step(self, number, *others)

    monkeypatch.setattr(Run, "step", gone)
    run(config)
    assert not imported.exists() and (tmp_path / "on" / "step-000004" / LLM_WEIGHTS).exists()


def test_steps_before_a_run_are_those_that_it_began_with(tmp_path: Path, whole: Path) -> None:
    """`init` may train on while the run goes on, and be gone when it is resumed."""
    step = Run.step

    def longer(self: Run, number: int, *others: Any) -> dict[str, Any]:
        (whole / METRICS).write_text('{"step": 900}')
        return step(self, number, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "step", longer)
        run(config_for(tmp_path / "on", init=whole))
    assert steps_of(tmp_path / "on") == STEPS + STEPS
    shutil.rmtree(whole)
    run(config_for(tmp_path / "on", steps=STEPS + 1, init=whole), resume=True)
    assert steps_of(tmp_path / "on") == STEPS + STEPS + 1


def test_a_run_stops_when_its_time_is_up_and_goes_on(tmp_path: Path, whole: Path) -> None:
    stopped = tmp_path / "stopped"
    assert run(config_for(stopped), minutes=0.0) is None
    while run(config_for(stopped), resume=True, minutes=0.0) is None:
        pass
    assert [record["step"] for record in log_of(stopped)] == [0, 1, 2, 3, 4]
    expected, found = load_file(whole / STATE), load_file(stopped / STATE)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("resumed", ["stopped", "killed"])
def test_a_lesson_that_was_cut_short_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, resumed: str
) -> None:
    """The first lesson, and of words the second."""

    def config(name: str) -> TrainConfig:
        return config_for(tmp_path / name, model=MODELS[kind], optim=LESSONS, save_every=1)

    run(config("whole"))
    if resumed == "stopped":
        calls = itertools.takewhile(
            lambda done: done is None,
            (run(config(resumed), resume=True, minutes=0.0) for _ in range(20)),
        )
        assert len(list(calls)) >= 3 * (1 + (kind == "words"))
    else:
        for fatal in (1, 4 if kind == "words" else 1):
            killed_lesson(monkeypatch, fatal)
            with pytest.raises(KeyboardInterrupt):
                run(config(resumed), resume=True)
            assert (tmp_path / resumed / LESSON).exists()
            torch.manual_seed(99)  # a new process has another random state
        run(config(resumed), resume=True)
    assert not (tmp_path / resumed / LESSON).exists()
    expected, found = (load_file(tmp_path / name / STATE) for name in ("whole", resumed))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    lessons, again = (
        [record for record in log_of(tmp_path / name) if "step" not in record or not record["step"]]
        for name in ("whole", resumed)
    )
    assert lessons == again
    taught = ["naming"] * 3 * (kind == "words") + ["naming codes"] * 3
    assert [record.get("lesson") for record in lessons] == [*taught, None]
    assert [record["lesson_step"] for record in lessons[-4:-1]] == [1, 2, 3]


def killed_lesson(monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
    """The next run dies before this step of its lessons, counted through, once."""
    step, steps = NamingLesson._step, itertools.count()

    def dying(self: NamingLesson, number: int, *others: Any) -> float:
        if next(steps) == fatal:
            monkeypatch.setattr(NamingLesson, "_step", step)
            raise KeyboardInterrupt
        return step(self, number, *others)

    monkeypatch.setattr(NamingLesson, "_step", dying)


def test_what_a_killed_save_left_half_written_goes(whole: Path) -> None:
    left = [whole / ".vqedge-0123.tmp", whole / "step-000004/.vqedge-4567.tmp"]
    (whole / "elsewhere").mkdir()
    (whole / "step-000900").symlink_to(whole / "elsewhere")
    others = [whole / "notes.tmp", whole / "step-notes", whole / "elsewhere/.vqedge-89ab.tmp"]
    for path in (*left, *others):
        path.write_bytes(b"half")
    run(config_for(whole), resume=True)
    assert not any(path.exists() for path in left) and all(path.exists() for path in others)


def test_a_line_of_the_log_that_is_no_record_belongs_to_no_step(tmp_path: Path) -> None:
    kept = ['{"loss": 1.0}', '{"step": 1}']
    others = ["5", "[1]", '{"step": null}', '{"step": [1]}', '{"step": 1', "[" * 9999, '"\\xff']
    path = tmp_path / LOG
    path.write_bytes("\n".join([*others, *kept, '{"step": 2}']).encode("latin-1"))
    RunFolder(config_for(tmp_path)).forget_after(1)
    assert path.read_text().splitlines() == kept


def test_old_checkpoints_are_pruned_and_curves_drawn(tmp_path: Path) -> None:
    output = tmp_path / "kept"
    run(config_for(output, steps=6, keep=2))
    assert sorted(path.name for path in output.glob("step-*")) == ["step-000004", "step-000006"]
    assert open_checkpoint(output / "step-000004").config == CONFIG
    assert (output / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_numbered_folders_that_are_not_this_runs_stay(tmp_path: Path) -> None:
    """Nor do they count as those that are kept."""
    foreign = ("step-000001-good", "step-000900", "step-1000000", "step-3", "step-notes")
    for name in foreign:
        (tmp_path / name).mkdir()
    (tmp_path / "step-3.png").touch()
    (tmp_path / "step-000001").symlink_to(tmp_path / "step-notes")
    run(config_for(tmp_path, steps=6, keep=2))
    there = {path.name for path in tmp_path.glob("step-*")}
    assert there == {*foreign, "step-3.png", "step-000001", "step-000004", "step-000006"}


def test_numbered_folders_are_dropped_by_number(tmp_path: Path) -> None:
    folder = RunFolder(config_for(tmp_path, keep=1))
    for name in ("step-999950", "step-1000000"):
        (tmp_path / name).mkdir()
    folder._prune(1_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1000000"]


def test_the_best_numbered_checkpoint_stays_and_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shares, kept, told in (
        ([0.1, 0.5, 0.2, 0.5, 0.3, 0.4], [4, 5, 6], "step-000004: did best in validation, 50.0%"),
        ([0.1, 0.5, 0.2, 0.3, 0.3, 0.5], [5, 6], None),
    ):
        left = iter(shares)
        found = lambda *_, left=left: {"exact_match": next(left)}  # noqa: E731
        monkeypatch.setattr("vqedge.training.run.exact_match", found)
        output = tmp_path / f"best{kept[0]}"
        run(config_for(output, steps=6, keep=2, save_every=1))
        there = sorted(path.name for path in output.glob("step-*"))
        assert there == [f"step-00000{step}" for step in kept]
        said = capsys.readouterr().err
        assert told is None or f"{output}/{told}\n" in said
        assert ("did best" in said) == (told is not None)


def test_a_run_that_goes_on_with_more_steps_is_told_of_its_learning_rate(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(config_for(whole), resume=True)
    assert "was to have" not in capsys.readouterr().err
    run(config_for(whole, steps=STEPS + 4), resume=True)
    line = f"{whole}: was to have 4 steps, and has 8 now: its learning rate goes from 52% of the"
    advice = f"give init={whole} and another -o folder\n"
    said = capsys.readouterr().err
    assert line in said and advice in said


def test_the_learning_rate_warms_up_and_falls() -> None:
    factors = [learning_rate_factor(step, 10, 100) for step in range(100)]
    assert factors[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert factors[10] == 1.0 and factors[99] == pytest.approx(0.05, abs=1e-3)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.525)


def test_metrics_of_no_step_are_of_unknown_steps(whole: Path) -> None:
    for text in ("{", "[]", "{}", '{"step": null}', '{"step": 1e999}', '{"step": NaN}'):
        (whole / METRICS).write_text(text)
        assert steps_of(whole) is None, text
