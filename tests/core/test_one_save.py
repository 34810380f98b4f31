"""A checkpoint that a run saves anew while it is opened: what is told of it is of one save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import vqedge.commands.evaluate as evaluating
import vqedge.model.answer as answering
from vqedge.checkpoint import CONFIG, LORA, MODEL, checkpoint_sha256, one_save
from vqedge.commands.baselines import opened_checkpoint
from vqedge.commands.evaluate import EvalOptions
from vqedge.config import ModelConfig
from vqedge.errors import CheckpointError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All files of a checkpoint; its weights are never looked at here."""
    (tmp_path / CONFIG).write_text(ModelConfig().model_dump_json())
    for name in (MODEL, LORA):
        (tmp_path / name).write_bytes(b"of one save")
    return tmp_path


def test_one_that_stays_is_of_one_save_and_one_without_weights_is_told(folder: Path) -> None:
    with one_save(folder):
        pass
    (folder / LORA).unlink()
    with pytest.raises(CheckpointError, match=f"no {LORA}"), one_save(folder):
        pytest.fail("it was opened")


def test_nothing_is_asked_of_a_checkpoint_that_is_saved_anew_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(path: Path, _: Any) -> object:
        (path / LORA).write_bytes(b"of the next")
        return object()

    monkeypatch.setattr(evaluating, "opened_checkpoint", opened)
    monkeypatch.setattr(evaluating, "_asked", lambda *_: pytest.fail("it was asked"))
    told = f"{folder}: was saved anew meanwhile; run again, or take a step-NNNNNN folder in it"
    with pytest.raises(CheckpointError, match=told):
        evaluating.run_eval("synthetic", options=EvalOptions(checkpoint=folder, limit=1))


def test_a_baseline_is_the_one_whose_steps_were_told(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(answering, "CheckpointAnswerer", lambda *_: "opened")
    known = checkpoint_sha256(folder)
    assert opened_checkpoint(folder, None, known) == "opened"
    (folder / LORA).write_bytes(b"of the next")
    with pytest.raises(CheckpointError, match="was saved anew meanwhile"):
        opened_checkpoint(folder, None, known)
