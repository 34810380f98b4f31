"""Saves of a run that a kill cut in two, that were damaged, or that are of an older version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_run import STEPS, config_for, run

from vqedge.errors import CheckpointError
from vqedge.model import checkpoint as checkpoint_module
from vqedge.model.checkpoint import CONFIG, LORA, MODEL, open_checkpoint
from vqedge.recipe import read_recipe
from vqedge.training.folder import LESSON, STATE

pytestmark = pytest.mark.usefixtures("train_cache")


def test_a_checkpoint_that_a_kill_left_of_two_saves_is_refused_and_mended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, whole: Path
) -> None:
    killed, save = tmp_path / "killed", checkpoint_module.save_file

    def dying(tensors: Any, path: Path, info: Any) -> None:
        if (killed / "step-000002").exists() and tensors.keys() == load_file(whole / LORA).keys():
            raise KeyboardInterrupt
        save(tensors, path, info)

    run(config_for(killed, steps=2))
    monkeypatch.setattr(checkpoint_module, "save_file", dying)
    with pytest.raises(KeyboardInterrupt):
        run(config_for(killed), resume=True)
    monkeypatch.setattr(checkpoint_module, "save_file", save)
    words = f"{MODEL} and {LORA} are of two saves.*--resume` mends it, or take a step-"
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(killed)
    with pytest.raises(CheckpointError, match=words):
        run(config_for(tmp_path / "on", init=killed))
    assert open_checkpoint(killed / "step-000002").path.exists()

    recipe = tmp_path / "recipe.yaml"  # its model is that of the run, once `init` is gone
    told = config_for(killed).model_dump(mode="json", exclude={"model"})
    recipe.write_text(json.dumps({**told, "init": str(tmp_path / "gone")}))
    assert read_recipe(recipe).model == config_for(killed).model
    run(config_for(killed), resume=True)
    open_checkpoint(killed)
    assert (killed / MODEL).read_bytes() == (whole / MODEL).read_bytes()


def test_weights_that_do_not_say_of_which_save_they_are(whole: Path) -> None:
    """As of an older version, and of an import; one of each is of two saves."""
    save_file(load_file(whole / LORA), whole / LORA)
    with pytest.raises(CheckpointError, match=f"{MODEL} and {LORA} are of two saves"):
        open_checkpoint(whole)
    save_file(load_file(whole / MODEL), whole / MODEL)
    assert open_checkpoint(whole).path == whole


def flipped(path: Path) -> None:
    """One bit of the last tensor."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x40
    path.write_bytes(data)


def test_a_save_whose_bytes_changed_is_refused(whole: Path, tmp_path: Path) -> None:
    flipped(whole / STATE)
    with pytest.raises(CheckpointError, match=rf"{STATE}: damaged \(its tensors .*init="):
        run(config_for(whole, steps=STEPS + 1), resume=True)
    run(config_for(tmp_path / "run"), minutes=0.0)
    flipped(tmp_path / "run" / LESSON)
    with pytest.raises(CheckpointError, match=rf"{LESSON}: damaged \(its tensors .*delete it"):
        run(config_for(tmp_path / "run"), resume=True)


def test_a_save_of_an_older_version_goes_on(whole: Path) -> None:
    """It has no digest, and its identity in one."""
    with safe_open(whole / STATE, framework="pt") as file:
        info = file.metadata()
    older = {key: info[key] for key in ("step", "steps", "steps_before", "run", "files")}
    save_file(load_file(whole / STATE), whole / STATE, older)
    with pytest.raises(CheckpointError, match=r"another model, data\.sources, .* or seed"):
        run(config_for(whole, seed=1), resume=True)
    assert run(config_for(whole, steps=STEPS + 1), resume=True).path == whole


def test_the_mark_of_the_first_save_goes_with_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a kill within it the run may begin again; once it is whole, the mark says nothing."""
    mark = tmp_path / ".first-save"

    def dying(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vqedge.training.folder.save_file", dying)
        with pytest.raises(KeyboardInterrupt):
            run(config_for(tmp_path))
    assert (tmp_path / CONFIG).exists() and mark.exists()
    run(config_for(tmp_path))
    assert not mark.exists()
