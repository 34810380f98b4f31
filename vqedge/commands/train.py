"""`vqedge train`: a YAML file in, a checkpoint out."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vqedge.base.weights import encoder_weights
from vqedge.commands.frames import reader_of
from vqedge.commands.output import json_result, result, say
from vqedge.config import Config
from vqedge.errors import ConfigError
from vqedge.progress import STOP_SIGNALS, Clock
from vqedge.recipe import TrainConfig, read_recipe

if TYPE_CHECKING:
    from vqedge.model.checkpoint import Checkpoint


def run_train(
    config: Path,
    overrides: list[str],
    *,
    resume: bool = False,
    out: Path | None = None,
    minutes: float | None = None,
    print_config: bool = False,
    as_json: bool = False,
) -> None:
    """Train, then trace the encoder so that the checkpoint can be assembled without torch.

    With `print_config` print the whole recipe, defaults and overrides in it, and do no more.

    Raises:
        SystemExit: SIGTERM stopped this process, as a shell tells of that; all is saved and said.
    """
    settings = read_recipe(config, overrides, out)
    if print_config:
        return _print_recipe(settings, as_json)
    from vqedge.training.processes import leave_process_group
    from vqedge_export.onnx_export import write_graph

    clock = Clock(minutes)
    with _stopped_by_signals(clock) as heard:
        checkpoint = _trained(settings, resume, clock)
    leave_process_group()
    if int(os.environ.get("RANK", 0)) == 0:  # the first process of a launcher speaks
        if checkpoint is None:
            say(f"{_why(heard, minutes)}: {_next_step(settings.output)}", always=True)
        else:
            write_graph(checkpoint, encoder_weights(settings.model.encoder, checkpoint.path).path)
        if as_json:
            json_result({"checkpoint": str(settings.output), "finished": checkpoint is not None})
        else:
            result(str(settings.output))
    if checkpoint is None and signal.SIGTERM in heard:
        sys.exit(128 + signal.SIGTERM)


def _why(heard: Sequence[signal.Signals], minutes: float | None) -> str:
    if heard:
        return f"stopped by {heard[0].name}"
    return "stopped, as another process is" if minutes is None else "time is up"


def _next_step(output: Path) -> str:
    from vqedge.training.folder import LESSON, STATE

    if any((output / name).exists() for name in (STATE, LESSON)):
        return f"`--resume` goes on with {output}"
    return f"nothing is saved in {output} yet; begin again, clips that were encoded are kept"


def _print_recipe(settings: TrainConfig, as_json: bool) -> None:
    document = _plain(settings)
    if as_json:
        json_result(document)
    else:
        result(yaml.safe_dump(document, sort_keys=False), end="")


def _plain(part: Any) -> Any:
    """As YAML and JSON have it, with the keys that checkpoints leave out at their defaults."""
    if isinstance(part, Config):
        return {name: _plain(value) for name, value in part}
    if isinstance(part, tuple):
        return [_plain(value) for value in part]
    return str(part) if isinstance(part, Path) else part


def _trained(settings: TrainConfig, resume: bool, clock: Clock) -> Checkpoint | None:
    """The checkpoint, or None if time ran out.

    Raises:
        ConfigError: the GPU's memory does not do; or as `train`.
    """
    from torch import OutOfMemoryError

    from vqedge.train import train

    try:
        return train(settings, reader_of(settings.model.encoder), resume, clock)
    except OutOfMemoryError as error:
        raise ConfigError(
            "the GPU's memory is full; a larger optim.accumulate, here "
            f"{settings.optim.accumulate}, computes a step in more parts, a smaller "
            "optim.naming_clips_per_step does for the naming steps; then --resume goes on"
        ) from error


@contextmanager
def _stopped_by_signals(clock: Clock) -> Iterator[list[signal.Signals]]:
    """What announces a kill means that time is up; those that came."""
    heard: list[signal.Signals] = []

    def stop(number: int, _frame: Any) -> None:
        heard.append(signal.Signals(number))
        clock.stop()

    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
