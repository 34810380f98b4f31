"""`vqedge train`: a YAML file in, a checkpoint out."""

from __future__ import annotations

import os
from pathlib import Path

from vqedge.base.weights import encoder_weights
from vqedge.commands.frames import reader_of
from vqedge.commands.output import json_result, result, say
from vqedge.recipe import read_recipe


def run_train(
    config: Path,
    overrides: list[str],
    *,
    resume: bool = False,
    out: Path | None = None,
    minutes: float | None = None,
    as_json: bool = False,
) -> None:
    """Train, then trace the encoder so that the checkpoint can be assembled without torch."""
    from vqedge.train import train
    from vqedge.training.processes import leave_process_group
    from vqedge_export.onnx_export import write_graph

    settings = read_recipe(config, overrides, out)
    checkpoint = train(settings, reader_of(settings.model.encoder), resume, minutes)
    leave_process_group()
    if int(os.environ.get("RANK", 0)) > 0:
        return  # the first process of a launcher speaks
    if checkpoint is None:
        say(f"time is up: `--resume` goes on with {settings.output}")
    else:
        write_graph(checkpoint, encoder_weights(settings.model.encoder, checkpoint.path).path)
    if as_json:
        json_result({"checkpoint": str(settings.output), "finished": checkpoint is not None})
    else:
        result(str(settings.output))
