"""How long a recipe takes here, stage by stage, told from a few of its clips and steps.

    python tests/bench/bench_recipe.py RECIPE [--clips 16] [--steps 12] [OVERRIDE ...]

Clips are drawn, encoded, quantised and trained on as `vqedge train` does, but nothing is kept, in
the cache or elsewhere. One JSON document: milliseconds a clip or step of every stage, what that
makes for the whole recipe, in minutes, and their sum. For recipes whose clips are quantised once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from vqedge.commands.frames import reader_of
from vqedge.cores import processor_name, usable_cores
from vqedge.data.clips import ClipSource
from vqedge.data.sources import source_from_config
from vqedge.model.checkpoint import clip_quantizer
from vqedge.model.encoder import ClipQuantizer
from vqedge.model.naming import NamingLoss
from vqedge.model.quantizer import Quantized
from vqedge.recipe import JsonlConfig, SourceConfig, TrainConfig, read_recipe
from vqedge.reducers import has_weights
from vqedge.training.ahead import Ahead
from vqedge.training.cache import QuantizedClips
from vqedge.training.dataset import TrainingClips, joint_vocabulary
from vqedge.training.folder import RunFolder
from vqedge.training.naming_lesson import NamingLesson
from vqedge.training.processes import accelerator_for, workers_of
from vqedge.training.run import Run, compiles

SETTLED = 4  # the first steps compile, and meet shapes for the first time


@dataclass(frozen=True)
class Seconds:
    """What one takes: a clip in the first three stages, a step in the others."""

    draw: float
    encode: float
    quantise: float
    naming: float
    step: float


def minutes_of(took: Seconds, config: TrainConfig, clips: int, workers: int) -> dict[str, float]:
    """The minutes of every stage; clips are drawn beside encoding where there are workers."""
    made = took.encode + took.quantise
    clip = max(took.draw / workers, made) if workers else took.draw + made
    stages = {
        "clips": clips * clip,
        "naming": config.optim.naming_steps * took.naming,
        "steps": config.optim.steps * took.step,
    }
    return {name: round(seconds / 60, 1) for name, seconds in stages.items()}


@torch.inference_mode()
def encoded(
    source: ClipSource, config: TrainConfig, quantizer: ClipQuantizer
) -> tuple[dict[int, QuantizedClips], list[tuple[float, float, float]]]:
    """The clips of a source at all budgets, and what each took to draw, encode and quantise."""
    device, encoder = next(quantizer.vit.parameters()).device, config.model.encoder
    found: list[list[Quantized]] = []
    took = []
    for number in range(len(source)):
        ends = [time.perf_counter()]
        frames = torch.from_numpy(source[number].frames(encoder.frames, encoder.size))
        ends.append(time.perf_counter())
        rows: Tensor = quantizer.patches(frames.to(device)).half().cpu()
        ends.append(time.perf_counter())
        at_budgets = quantizer.quantizer.at_budgets(rows.to(device).float(), config.budgets)
        found.append([Quantized(*(part.cpu() for part in coded)) for coded in at_budgets])
        ends.append(time.perf_counter())
        took.append((ends[1] - ends[0], ends[2] - ends[1], ends[3] - ends[2]))
    stored = {
        budget: QuantizedClips(
            torch.stack([clip[place].codes for clip in found]).half(),
            torch.stack([clip[place].indices for clip in found]).to(torch.uint8),
        )
        for place, budget in enumerate(config.budgets)
    }
    return stored, took[1:]  # the first one meets everything for the first time


def few(entry: SourceConfig, clips: int) -> SourceConfig:
    """The first clips of a source; of a file all."""
    return entry if isinstance(entry, JsonlConfig) else entry.model_copy(update={"clips": clips})


def naming_seconds(run: Run, clips: TrainingClips) -> float:
    """Of a step of the naming lesson, 0 where there is nothing to name."""
    vocabulary, optim = joint_vocabulary(clips.sources), run.config.optim
    if not vocabulary:
        return 0.0
    embeddings = run.model.llm.get_input_embeddings().weight.detach()
    loss = NamingLoss(embeddings, run.batches.tokenizer, vocabulary).to(embeddings.device)
    lesson = NamingLesson(run.model.bridge, clips, loss, optim, run.config.budgets, seed=0)
    ends: list[float] = []
    lesson.run(on_step=lambda *_: bool(ends.append(time.perf_counter())))
    return statistics.median(b - a for a, b in pairwise(ends[1:]))


def step_seconds(run: Run) -> float:
    """Of a training step, once settled."""
    steps = run.config.optim.steps
    with Ahead(run._batches_of, steps) as ready:
        records = [run.step(step, ready) for step in range(steps)]
    return statistics.median(record["seconds"] for record in records[SETTLED:])


def measured(config: TrainConfig, clips: int, steps: int, output: Path) -> Seconds:
    """All stages, on few clips and steps."""
    accelerator = accelerator_for(config)
    quantizer = clip_quantizer(config.model, config.base).to(accelerator.device)
    read = reader_of(config.model.encoder)
    sources = tuple(source_from_config(few(entry, clips), read) for entry in config.data.sources)
    stored, took = zip(*(encoded(source, config, quantizer) for source in sources), strict=True)
    weights = tuple(entry.weight for entry in config.data.sources)
    frames, reverse = config.model.encoder.frames, config.data.time_reversal
    made = TrainingClips(sources, stored, weights, frames, reverse)
    optim = {"steps": steps, "naming_steps": steps}
    short = config.model_copy(
        update={"output": output, "optim": config.optim.model_copy(update=optim)}
    )
    compiled = compiles(config, accelerator.device)
    run = Run(short, RunFolder(short), made, made, quantizer.vit, accelerator, compiled)
    run.model.train()
    each = [statistics.mean(part) for part in zip(*chain(*took), strict=True)]
    return Seconds(*each, naming_seconds(run, made), step_seconds(run))


def main() -> None:
    """Measure, and tell what that makes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--clips", type=int, default=16, help="of every source")
    parser.add_argument("--steps", type=int, default=12)
    arguments = parser.parse_intermixed_args()
    config = read_recipe(arguments.recipe, arguments.overrides)
    if config.model.encoder.trained_blocks or has_weights(config.model.quantizer.kind):
        raise SystemExit("bench: this recipe quantises clips in every step")
    with TemporaryDirectory() as folder:
        took = measured(config, arguments.clips, arguments.steps, Path(folder) / "run")
    entries = (*config.data.sources, *config.validation)
    clips = sum(entry.clips for entry in entries if not isinstance(entry, JsonlConfig))
    minutes = minutes_of(took, config, clips, workers_of(config.data.workers))
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    document = {
        "recipe": arguments.recipe.name,
        "machine": gpu or f"{processor_name()}, {usable_cores()} cores",
        "milliseconds": {name: round(1e3 * value, 1) for name, value in asdict(took).items()},
        "minutes": minutes,
        "total": round(sum(minutes.values()), 1),
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
