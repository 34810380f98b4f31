"""The folder of a training run: checkpoint, state to resume from, metrics, curves."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from vqedge.base.weights import carry_weights
from vqedge.checkpoint import CONFIG, METRICS, MODEL, steps_of
from vqedge.errors import CheckpointError
from vqedge.files import NO_LOCKS, file_sha256, remove_unfinished, replacing, try_lock
from vqedge.model.checkpoint import save_checkpoint
from vqedge.model.vlm import VideoLanguageModel
from vqedge.recipe import TrainConfig, file_identity, source_identity
from vqedge.tensor_files import save_file, tensors_sha256
from vqedge.training.curves import CURVES, draw_curves
from vqedge.training.state import all_of, give_all, taught, trained

logger = logging.getLogger(__name__)

STATE, LESSON, LOG = "training.safetensors", "naming.safetensors", "metrics.jsonl"
_LOCK = ".lock"
_FIRST_SAVE = ".first-save"  # there until the first save is whole
_NUMBERED, _BEFORE = "step-", "steps_before"
_STEPS = "steps"  # that the run was to have
_SHA256 = "sha256"  # of a save's tensors
_LESSON_STEP = -1.0  # lessons come before step 0
_PARTS = ("model", "sources", "begun", "seed")  # of `run`; older saves do not have them apart
_KEYS = {  # of a run's identity, as the recipe has them
    "model": "model",
    "sources": "data.sources",
    "begun": "init or optim.naming_steps",
    "seed": "seed",
    "run": "model, data.sources, init, optim.naming_steps or seed",
    "files": "data.sources",
    "init": "init",
}


class RunFolder:
    """Reads and writes what a run leaves behind."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.path = config, config.output
        init = config.init  # its weights and steps are those of now: that run may go on
        self._init = file_sha256(init / MODEL) if init and (init / MODEL).is_file() else None
        self._steps_before = (steps_of(init) or 0) if init else 0

    def refuse_unwritable(self) -> None:
        """Before any work: a folder that nothing can be saved in.

        Raises:
            CheckpointError: it is one.
        """
        there = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            raise CheckpointError(f"{there}: cannot be written to; give another -o folder")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other runs out, and remove what a killed one left half-written.

        Raises:
            CheckpointError: another run writes here.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = self._lock()
        try:
            if lock is not None:
                for folder in (self.path, *_numbered_ones(self.path).values()):
                    remove_unfinished(folder, older_s=0.0)
            yield
        finally:
            if lock is not None:
                os.close(lock)

    def _lock(self) -> int | None:
        """What to close at the end; None where files cannot be locked."""
        try:
            lock = try_lock(self.path / _LOCK)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            logger.warning("%s: no locks here; let no other run write to it", self.path)
            return None
        if lock is None:
            raise CheckpointError(
                f"{self.path}: another vqedge train is writing here; wait for it or give another "
                "-o folder"
            )
        return lock

    def refuse_old_run(self) -> None:
        """Before any work: a folder that holds a run is not overwritten.

        Raises:
            CheckpointError: it does.
        """
        if (self.path / STATE).exists() or (self.path / LESSON).exists():
            raise CheckpointError(
                f"{self.path}: holds a run already; pass --resume or another -o folder"
            )

    def refuse_checkpoint(self) -> None:
        """Before any work: a checkpoint that no run can go on from is not overwritten.

        Raises:
            CheckpointError: there is one.
        """
        ours = any((self.path / name).exists() for name in (STATE, LESSON, _FIRST_SAVE))
        if (self.path / CONFIG).exists() and not ours:
            raise CheckpointError(
                f"{self.path}: is a finished checkpoint, not a run that can go on: it has no "
                f"{STATE}; give another -o folder, and init={self.path} to start from it"
            )

    def save(
        self,
        step: int,
        record: dict[str, Any],
        model: VideoLanguageModel,
        optimizer: torch.optim.Optimizer,
        position: Tensor,
    ) -> None:
        """Write weights, optimiser moments, the deployable checkpoint and the curves."""
        self.path.mkdir(parents=True, exist_ok=True)
        model.bridge.finish()
        tensors = all_of(model, trained(model), optimizer)
        if not (self.path / STATE).exists():
            (self.path / _FIRST_SAVE).touch()
        self._checkpoint(self.path, record, model, position)
        if self.config.keep and step:
            self._checkpoint(numbered(self.path, step), record, model, position)
        with replacing(self.path / STATE) as path:
            # the last file: after a kill before it, the same steps write all of them again;
            # step and identity travel inside it: one rename, nothing that could disagree
            told = {_STEPS: str(self.config.optim.steps), **self._info(step, tensors)}
            save_file(tensors, path, told)
        for name in (_FIRST_SAVE, LESSON):  # what it led to is saved
            (self.path / name).unlink(missing_ok=True)
        self._prune(step)
        draw_curves(self.path / LOG, self.path / CURVES)

    def restore(self, model: VideoLanguageModel, optimizer: torch.optim.Optimizer) -> int | None:
        """Load the last save; returns the number of steps done, None if there is no save.

        Raises:
            CheckpointError: the save belongs to another run.
        """
        found = self._saved(STATE)
        if found is None:
            return None
        info, tensors = found
        give_all(tensors, model, trained(model), optimizer)
        return int(info["step"])

    def steps_then(self) -> int | None:
        """How many steps the run was to have at its last save; None if nothing says so."""
        told = (self._told(STATE) or {}).get(_STEPS, "")
        return int(told) if told.isdecimal() else None

    def save_lesson(
        self, name: str, step: int, model: VideoLanguageModel, optimizer: torch.optim.Optimizer
    ) -> None:
        """Write how far a lesson before the first step is."""
        self.path.mkdir(parents=True, exist_ok=True)
        tensors = all_of(model, taught(model), optimizer)
        with replacing(self.path / LESSON) as path:
            save_file(tensors, path, {"lesson": name, **self._info(step, tensors)})

    def lesson(self) -> tuple[str, int] | None:
        """Which lesson was saved, and how many steps of it; None if there is none.

        Raises:
            CheckpointError: it belongs to another run.
        """
        found = self._saved(LESSON)
        return found and (found[0]["lesson"], int(found[0]["step"]))

    def restore_lesson(self, model: VideoLanguageModel, optimizer: torch.optim.Optimizer) -> None:
        """Give the model what the lesson had taught it when it was saved."""
        found = self._saved(LESSON)
        assert found is not None, "the caller has asked for the lesson"
        give_all(found[1], model, taught(model), optimizer)

    def begun(self) -> bool:
        """Is a step of this run saved?

        Raises:
            CheckpointError: a save, or one of a lesson, belongs to another run.
        """
        _lesson, step = self._told(LESSON), self._told(STATE)
        return step is not None

    def _saved(self, name: str) -> tuple[dict[str, str], dict[str, Tensor]] | None:
        """What one of the run's files says and holds, None if it is not there."""
        info = self._told(name)
        if info is None:
            return None
        tensors = load_file(self.path / name)
        if info.get(_SHA256) not in (None, tensors_sha256(tensors)):
            raise self._damaged(name, "its tensors are not those that were saved")
        return info, tensors

    def _told(self, name: str) -> dict[str, str] | None:
        """What one of the run's files says of itself, None if it is not there."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                info: dict[str, str] = file.metadata() or {}
        except SafetensorError as error:
            raise self._damaged(name, str(error)) from error
        counts = (info.get("step", ""), info.get(_BEFORE, "0"))
        if not all(map(str.isdecimal, counts)) or (name == LESSON and "lesson" not in info):
            raise self._damaged(name, "it does not say how far the run is")
        if (key := self._differs(info)) is not None:
            where = f" ({CONFIG} and {METRICS} say which)" if name == STATE else ""
            raise CheckpointError(
                f"{self.path}: is a run with another {key}; give another -o folder, or the recipe "
                f"that it was begun with{where}"
            )
        self._init = info.get("init", self._init)  # as it was: it need not be there any more
        self._steps_before = int(info.get(_BEFORE, self._steps_before))
        return info

    def _damaged(self, name: str, why: str) -> CheckpointError:
        """The refusal of one of the run's files, with what the run goes on from instead."""
        step = f"init={self.path} with another -o folder starts from the weights beside it"
        if name == LESSON or not (self.path / MODEL).exists():
            step = "delete it, and --resume begins again"
        return CheckpointError(f"{self.path / name}: damaged ({why}); {step}")

    def _differs(self, info: Mapping[str, str]) -> str | None:
        """The key of the recipe that is not as a save says; None if all that must be is."""
        told = self._identity()
        was = {**{part: told[part] for part in _PARTS}, **info}
        return next((_KEYS[key] for key, value in told.items() if was.get(key) != value), None)

    def forget_after(self, step: int | None) -> None:
        """Drop the log's lines about steps that a kill has undone, all but a lesson's for None."""
        path, lesson = self.path / LOG, (self.path / LESSON).exists()
        if not path.exists():
            return
        last = step if step is not None else _LESSON_STEP if lesson else -math.inf
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _logged_step(line) <= last]
        with replacing(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def log(self, record: dict[str, Any]) -> None:
        """Append one JSON line to the run's metrics."""
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _checkpoint(
        self, path: Path, record: dict[str, Any], model: VideoLanguageModel, position: Tensor
    ) -> None:
        init = self.config.init
        told = self.config.model_dump(mode="json", exclude={"model", "output", "init"})
        told["init"] = init and init.name  # not whose folder it was in
        save_checkpoint(
            path,
            self.config.model,
            position,
            model.bridge,
            model.llm,
            {**record, _BEFORE: self._steps_before, "train": told},
            model.reducer,
        )
        carry_weights(self.config.model, self.config.base, path)

    def _info(self, step: int, tensors: Mapping[str, Tensor]) -> dict[str, str]:
        """What a save says of itself."""
        told = {"step": str(step), _BEFORE: str(self._steps_before), **self._identity()}
        return {**told, _SHA256: tensors_sha256(tensors)}

    def _identity(self) -> dict[str, str]:
        """What must not change between the parts of a run; steps, rates and clip counts may."""
        config, init = self.config, self.config.init
        told = {
            "model": config.model.fingerprint(),
            "sources": "-".join(map(source_identity, config.data.sources)),
            "begun": init.name if init else f"named{config.optim.naming_steps}",
            "seed": str(config.seed),
        }
        told["run"] = "-".join(told[part] for part in _PARTS)
        told["files"] = json.dumps([file_identity(source) for source in config.data.sources])
        if self._init is not None:
            told["init"] = self._init
        return told

    def best(self, step: int) -> tuple[Path, float] | None:
        """The numbered checkpoint that did best in validation, the newest of equals; its share.

        Figures of other questions than the newest one's do not count. None where none is kept.

        Args:
            step: the last one; checkpoints of later steps are of a run before it.
        """
        bests = self._bests(step)
        return next(iter(bests.values())) if bests and self.config.keep else None

    def _bests(self, step: int) -> dict[str, tuple[Path, float]]:
        """The one that did best by what was asked, that of the newest figures first."""
        bests: dict[str, tuple[Path, float]] = {}
        for path in reversed([numbered(self.path, number) for number in self._ours(step)]):
            if (found := _validated(path)) is None:
                continue
            share, asked = found
            if asked not in bests or share > bests[asked][1]:
                bests[asked] = path, share
        return bests

    def _ours(self, step: int) -> list[int]:
        return sorted(number for number in _numbered_ones(self.path) if number <= step)

    def _prune(self, step: int) -> None:
        """Drop this run's numbered checkpoints but for the newest few and, with them, the best."""
        ours, keep = self._ours(step), self.config.keep
        best = {path for path, _ in self._bests(step).values()} if keep else set[Path]()
        for number in ours[: max(len(ours) - keep, 0)]:
            if (path := numbered(self.path, number)) not in best:
                shutil.rmtree(path)


def numbered(folder: Path, step: int) -> Path:
    """The checkpoint of a run at a step, beside the newest."""
    return folder / f"{_NUMBERED}{step:06d}"


def _numbered_ones(folder: Path) -> dict[int, Path]:
    """The numbered checkpoints of a run by their steps."""
    paths = ((_number_of(path), path) for path in folder.glob(f"{_NUMBERED}*"))
    return {number: path for number, path in paths if number is not None}


def _number_of(path: Path) -> int | None:
    """The step of a numbered checkpoint; None of what somebody else gave a name like one."""
    digits = path.name.removeprefix(_NUMBERED)
    if not (digits.isdecimal() and path.is_dir() and not path.is_symlink()):
        return None
    return int(digits) if path == numbered(path.parent, int(digits)) else None


def _validated(checkpoint: Path) -> tuple[float, str] | None:
    """The share of right answers in validation, and of which; None where none is written down."""
    try:
        metrics = json.loads((checkpoint / METRICS).read_text(encoding="utf-8"))
        return float(metrics["validation"]["exact_match"]), str(metrics.get("validation_set"))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _logged_step(line: str) -> float:
    """The step of a log line; one that the kill cut off, or no record, belongs to no step."""
    try:
        return float(json.loads(line).get("step", _LESSON_STEP))
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return math.inf
