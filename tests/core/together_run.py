"""Runs of seconds by all processes of a launcher, and one that is refused.

`torchrun together_run.py OUTPUT` leaves a run's folder for each kind of tokens. It trains on
`mine.jsonl` of OUTPUT too, whose video cannot be read; what each process raises is in
`told-NUMBER.txt` then.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tiny_run import BUDGETS, MODELS, config_for, run, tiny_training

from vqedge.errors import VideoError, VqedgeError
from vqedge.recipe import DataConfig, JsonlConfig
from vqedge.train import train
from vqedge.training.processes import leave_process_group


def refuse(path: Path, *_: object) -> Any:
    raise VideoError(f"{path}: is damaged")


def main(output: Path) -> None:
    source = JsonlConfig(kind="jsonl", path=output / "mine.jsonl")
    data = DataConfig(sources=(source,), budgets=BUDGETS, workers=0)
    with tiny_training(Path(os.environ["VQEDGE_CACHE"])):
        for kind, model in MODELS.items():
            run(config_for(output / kind, model=model))
        try:
            train(config_for(output / "refused", data=data), refuse)
        except VqedgeError as error:
            (output / f"told-{os.environ['RANK']}.txt").write_text(str(error))
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
