"""`vqedge train`: what it writes and says, with stand-ins for training and tracing."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import vqedge.commands.train as command
import vqedge.train
import vqedge_export.onnx_export
from vqedge.commands.train import run_train

RECIPE = Path(__file__).parents[2] / "recipes/tiny-cpu.yaml"


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path]]:
    """Training is over at once, but where it has no minutes; what is traced, of which backbone."""
    found: list[tuple[Path, Path]] = []

    def train(settings: Any, _frames: Any, _resume: bool, minutes: float | None) -> Any:
        return None if minutes == 0 else SimpleNamespace(path=settings.output)

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


def test_a_run_out_of_time_says_how_to_go_on(
    traced: list[tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_train(RECIPE, [], out=tmp_path / "own", minutes=0, as_json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"checkpoint": str(tmp_path / "own"), "finished": False}
    assert f"time is up: `--resume` goes on with {tmp_path / 'own'}" in err
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
