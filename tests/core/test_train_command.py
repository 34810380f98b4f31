"""`vqedge train`: what it writes and says, with stand-ins for training and tracing."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

import vqedge.commands.train as command
import vqedge.train
import vqedge_export.onnx_export
from vqedge.commands.train import run_train
from vqedge.errors import ConfigError
from vqedge.progress import Clock
from vqedge.recipe import read_recipe
from vqedge.training.folder import STATE

RECIPE = Path(__file__).parents[2] / "recipes/tiny-cpu.yaml"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path]]:
    """Training is over at once, but where it has no minutes; what is traced, of which backbone.

    It saves where its folder is there.
    """
    found: list[tuple[Path, Path]] = []

    def train(settings: Any, _frames: Any, _resume: bool, clock: Clock) -> Any:
        if settings.output.exists():
            (settings.output / STATE).touch()
        return None if clock.is_up() else SimpleNamespace(path=settings.output)

    def trace(checkpoint: Any, backbone: Path) -> None:
        found.append((checkpoint.path, backbone))

    base = SimpleNamespace(path=Path("vit.onnx"))
    monkeypatch.setattr(vqedge.train, "train", train)
    monkeypatch.setattr(vqedge_export.onnx_export, "write_graph", trace)
    monkeypatch.setattr(command, "encoder_weights", lambda *_: base)
    return found


def test_a_finished_run_is_traced(
    traced: list[tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(RECIPE, [], out=tmp_path / "own")
    assert traced == [(tmp_path / "own", Path("vit.onnx"))]
    assert capsys.readouterr().out == f"{tmp_path / 'own'}\n"


def test_the_recipe_is_printed_and_nothing_done(
    traced: list[tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed is a recipe that says the same, with nothing left to defaults."""
    changes, out = ["optim.steps=7", "data.sources.0.clips=5"], tmp_path / "own"
    run_train(RECIPE, changes, out=out, print_config=True)
    text = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(text)
    settings = read_recipe(RECIPE, changes, out)
    assert read_recipe(tmp_path / "printed.yaml") == settings
    lines = {"  steps: 7", "    unit_means: false", "  max_grad_norm: 1.0", f"output: {out}"}
    assert lines <= set(text.splitlines())
    run_train(RECIPE, changes, out=out, print_config=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == yaml.safe_load(text)
    assert traced == [] and not out.exists()


def test_a_run_out_of_time_says_how_to_go_on(
    traced: list[tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(RECIPE, [], out=tmp_path / "own", minutes=0)
    line = f"time is up: nothing is saved in {tmp_path / 'own'} yet; begin again, clips that"
    assert line in capsys.readouterr().err
    (tmp_path / "own").mkdir()
    run_train(RECIPE, [], out=tmp_path / "own", minutes=0, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"checkpoint": str(tmp_path / "own"), "finished": False}
    assert f"time is up: `--resume` goes on with {tmp_path / 'own'}" in err
    assert traced == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGUSR1", 0)])
def test_a_signal_that_comes_before_a_kill_has_the_run_save_and_stop(
    traced: list[tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    code: int,
) -> None:
    train, number = vqedge.train.train, signal.Signals[name]
    missed: list[int] = []

    def killed(*words: Any) -> Any:
        os.kill(os.getpid(), number)
        return train(*words)

    monkeypatch.setattr(vqedge.train, "train", killed)
    before = signal.signal(number, lambda *_: missed.append(number))
    (tmp_path / "own").mkdir()
    try:
        if code:
            with pytest.raises(SystemExit, match=f"^{code}$"):
                run_train(RECIPE, [], out=tmp_path / "own")
        else:
            run_train(RECIPE, [], out=tmp_path / "own")
        out, err = capsys.readouterr()
        assert f"stopped by {name}: `--resume` goes on" in err and not traced
        assert out == f"{tmp_path / 'own'}\n"
        os.kill(os.getpid(), number)
        assert missed == [number], "the handler from before is back"
    finally:
        signal.signal(number, before)


def test_a_full_gpu_is_told_what_takes_less(
    traced: list[tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(vqedge.train, "train", train)
    with pytest.raises(ConfigError, match=r"optim\.accumulate, here 2, .* --resume goes on"):
        run_train(RECIPE, ["optim.accumulate=2"], out=tmp_path / "own")
    assert traced == []


def test_the_first_process_alone_traces_and_speaks(
    traced: list[tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "1")
    run_train(RECIPE, [], out=tmp_path / "own")
    assert traced == [] and capsys.readouterr().out == ""


@pytest.mark.parametrize(("rank", "told"), [("0", "stopped by SIGTERM: "), ("1", "")])
def test_a_signal_that_another_process_heard_is_no_limit_of_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str,
    told: str,
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(vqedge.train, "train", lambda *_: None)
    run_train(RECIPE, [], out=tmp_path / "own")
    assert ("stopped, as another process is: " in capsys.readouterr().err) == (rank == "0")
    monkeypatch.setattr(vqedge.train, "train", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit, match=r"^143$"):
        run_train(RECIPE, [], out=tmp_path / "own")
    assert capsys.readouterr().err.startswith(told)
