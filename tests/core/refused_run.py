"""A run of a video that cannot be read, by all processes of a launcher.

`torchrun refused_run.py FOLDER` trains on the folder's `mine.jsonl`; what each process raises is in
`told-NUMBER.txt` then.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tiny_run import BUDGETS, config_for, tiny_training

from vqedge.errors import VideoError, VqedgeError
from vqedge.recipe import DataConfig, JsonlConfig
from vqedge.train import train
from vqedge.training.processes import leave_process_group


def refuse(path: Path, *_: object) -> Any:
    raise VideoError(f"{path}: is damaged")


def main(folder: Path) -> None:
    source = JsonlConfig(kind="jsonl", path=folder / "mine.jsonl")
    data = DataConfig(sources=(source,), budgets=BUDGETS, workers=0)
    with tiny_training(Path(os.environ["VQEDGE_CACHE"])):
        try:
            train(config_for(folder / "run", data=data), refuse)
        except VqedgeError as error:
            (folder / f"told-{os.environ['RANK']}.txt").write_text(str(error))
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
