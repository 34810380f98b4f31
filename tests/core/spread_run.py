"""Runs of seconds by all processes of a launcher, the language model whole and spread.

`accelerate launch --use_fsdp ... spread_run.py OUTPUT` leaves a folder for each kind of tokens. In
it are the folders `whole`, `spread` and `killed`, which was killed and went on, and in `held.json`
how many numbers of the language model the first process held in each.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny_run import MODELS, config_for, kill_at, run, tiny_training
from torch.distributed.tensor import DTensor

from vqedge.recipe import OptimConfig, TrainConfig
from vqedge.training import run as run_module
from vqedge.training.processes import leave_process_group

PRECISIONS: dict[str, Literal["fp32", "bf16"]] = {"codes": "fp32", "words": "bf16"}
OPTIM = OptimConfig(steps=4, clips_per_step=4, warmup_steps=2, naming_steps=1, accumulate=2)


def spread_config(output: Path, kind: str, precision: Literal["fp32", "bf16"]) -> TrainConfig:
    return config_for(output, model=MODELS[kind], optim=OPTIM, precision=precision)


def held_here(llm: torch.nn.Module) -> int:
    """How many numbers of a language model are in this process."""
    own = (p.to_local() if isinstance(p, DTensor) else p for p in llm.parameters())
    return sum(part.numel() for part in own)


def train_each_way(output: Path, kind: str) -> None:
    held = []
    prepared = run_module.prepared
    precision = PRECISIONS[kind]

    def noting(model: Any, *others: Any) -> Any:
        held.append(held_here(model.llm))
        return prepared(model, *others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")  # the launcher has GPUs in mind
        patch.setattr(run_module, "prepared", noting)
        with pytest.MonkeyPatch.context() as plain:
            plain.setenv("ACCELERATE_USE_FSDP", "false")
            run(spread_config(output / "whole", kind, precision))
        run(spread_config(output / "spread", kind, precision))
        kill_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            run(spread_config(output / "killed", kind, precision))
        torch.manual_seed(99)  # a new process has another random state
        run(spread_config(output / "killed", kind, precision), resume=True)
    if os.environ["RANK"] == "0":
        (output / "held.json").write_text(json.dumps(held))


def main(output: Path) -> None:
    with tiny_training(Path(os.environ["VQEDGE_CACHE"])):
        for kind in PRECISIONS:
            train_each_way(output / kind, kind)
            AcceleratorState._reset_state()  # it remembers the first one's precision
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
