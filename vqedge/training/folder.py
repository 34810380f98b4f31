"""The folder of a training run: checkpoint, state to resume from, metrics, curves."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqedge.base.weights import carry_weights
from vqedge.errors import CheckpointError
from vqedge.files import replacing
from vqedge.model.checkpoint import save_checkpoint
from vqedge.model.vlm import VideoLanguageModel
from vqedge.recipe import TrainConfig
from vqedge.training.curves import CURVES, draw_curves

STATE, LOG = "training.safetensors", "metrics.jsonl"
_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
_USAGE = "codebook.usage"  # how often entries were picked lately
_NUMBERED = "step-"


class RunFolder:
    """Reads and writes what a run leaves behind."""

    def __init__(self, config: TrainConfig) -> None:
        self.config, self.path = config, config.output

    def refuse_old_run(self) -> None:
        """Before any work: a folder that holds a run is not overwritten.

        Raises:
            CheckpointError: it does.
        """
        if (self.path / STATE).exists():
            raise CheckpointError(
                f"{self.path}: holds a run already; pass --resume or another -o folder"
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
        tensors: dict[str, Tensor] = {}
        for name, parameter in _trained(model).items():
            tensors[f"weight.{name}"] = parameter.detach().cpu()
            state = optimizer.state.get(parameter, {})
            for moment in _ADAM_MOMENTS:
                if moment in state:
                    tensors[f"{moment}.{name}"] = state[moment].cpu()
            if "step" in state:
                tensors[f"step.{name}"] = torch.as_tensor(state["step"]).reshape(1).cpu()
        for name, buffer in _fitted(model).items():
            tensors[f"buffer.{name}"] = buffer.cpu()
        if model.bridge.codebook is not None:
            tensors[_USAGE] = model.bridge.codebook.usage.cpu()
        self._checkpoint(self.path, record, model, position)
        if self.config.keep and step:
            self._checkpoint(self.path / f"{_NUMBERED}{step:06d}", record, model, position)
        with replacing(self.path / STATE) as path:
            # the last file: after a kill before it, the same steps write all of them again;
            # step and identity travel inside it: one rename, nothing that could disagree
            save_file(tensors, path, {"step": str(step), "run": self._identity()})
        self._prune()
        draw_curves(self.path / LOG, self.path / CURVES)

    def restore(self, model: VideoLanguageModel, optimizer: torch.optim.Optimizer) -> int | None:
        """Load the last save; returns the number of steps done, None if there is no save.

        Raises:
            CheckpointError: the save belongs to another run.
        """
        if not (self.path / STATE).exists():
            return None
        with safe_open(self.path / STATE, framework="pt") as file:
            info = file.metadata()
        if info["run"] != self._identity():
            raise CheckpointError(
                f"{self.path}: was written with another model, other data or another seed"
            )
        tensors = load_file(self.path / STATE)
        for name, parameter in _trained(model).items():
            parameter.data.copy_(tensors[f"weight.{name}"])
            if f"step.{name}" in tensors:  # none yet right after the naming steps
                moments = {m: tensors[f"{m}.{name}"].to(parameter.device) for m in _ADAM_MOMENTS}
                optimizer.state[parameter] = {"step": tensors[f"step.{name}"][0], **moments}
        for name, buffer in _fitted(model).items():
            buffer.copy_(tensors[f"buffer.{name}"])
        if model.bridge.codebook is not None:
            model.bridge.codebook.usage.copy_(tensors[_USAGE])
        return int(info["step"])

    def forget_after(self, step: int) -> None:
        """Drop the log's lines about steps that a kill has undone."""
        path = self.path / LOG
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _logged_step(line) <= step]
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
        told = self.config.model_dump(mode="json", exclude={"model", "output", "init"})
        told["init"] = self.config.init and self.config.init.name  # not whose folder it was in
        save_checkpoint(
            path,
            self.config.model,
            position,
            model.bridge,
            model.llm,
            {**record, "train": told},
            model.reducer,
        )
        carry_weights(self.config.model, self.config.base, path)

    def _identity(self) -> str:
        """What must not change between the parts of a run; steps, rates and clip counts may."""
        kinds = [entry.kind for entry in self.config.data.sources]
        return f"{self.config.model.fingerprint()}-{'-'.join(kinds)}-{self.config.seed}"

    def _prune(self) -> None:
        """Drop all numbered checkpoints but the newest few."""
        numbered = sorted(self.path.glob(f"{_NUMBERED}*"))
        for old in numbered[: max(len(numbered) - self.config.keep, 0)]:
            shutil.rmtree(old)


def _trained(model: VideoLanguageModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _fitted(model: VideoLanguageModel) -> dict[str, Tensor]:
    """Buffers of the bridge that a checkpoint holds: what was fitted, not trained."""
    kept = model.bridge.state_dict().keys()
    return {name: buffer for name, buffer in model.bridge.named_buffers() if name in kept}


def _logged_step(line: str) -> float:
    """The step of a log line; a line that the kill cut off belongs to no step."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf
