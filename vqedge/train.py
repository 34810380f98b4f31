"""Train the bridge and the adapter of the language model on quantised clips of the generated world.

Everything frozen is done once (`vqedge.data.cache`), so a step is only the bridge and the language
model. A run is a pure function of its configuration: batches and questions derive from (seed,
step), so that a killed run resumes at its last save and goes on exactly as if it had not been
killed.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqedge.base.fetch import cache_root, fetch
from vqedge.config import TrainConfig
from vqedge.data.cache import (
    CachedClips,
    cache_folder,
    concatenated,
    fill_shard,
    load_clips,
    missing_shards,
    reversed_clips,
)
from vqedge.data.packing import PackedBatch, pack
from vqedge.data.questions import QuestionAnswer, one_question_per_kind, questions_from_scene
from vqedge.data.world import Scene, reversed_scene, scene_from_seed
from vqedge.errors import CheckpointError
from vqedge.files import replacing
from vqedge.model.checkpoint import Checkpoint, clip_quantizer, save_checkpoint
from vqedge.model.encoder import Bridge, ClipQuantizer
from vqedge.model.llm import PromptTokenizer, llm_from_gguf, tokenizer_from_gguf, with_lora
from vqedge.model.naming import NamingLoss
from vqedge.model.vlm import Scores, VideoLanguageModel
from vqedge.warmup import teach_names

logger = logging.getLogger(__name__)

STATE, LOG = "training.safetensors", "metrics.jsonl"
_ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
_FINAL_LEARNING_RATE = 0.05  # share of the peak that the cosine schedule ends at


def train(config: TrainConfig, resume: bool = False) -> Checkpoint:
    """Train to the configured number of steps and write a checkpoint.

    Args:
        config: the run.
        resume: go on from the last save in `config.output`, or begin if there is none.

    Raises:
        CheckpointError: the output folder holds another run.
        FetchError: base weights are not there and cannot be downloaded.
    """
    if not resume:
        _refuse_old_run(config.output)
    torch.manual_seed(config.seed)
    quantizer = clip_quantizer(config.model)
    clips = cached_clips(config, quantizer, config.data.seed, config.data.clips)
    if config.data.time_reversal:
        clips = concatenated(clips, reversed_clips(clips, config.model.encoder.frames))
    held_out = cached_clips(config, quantizer, config.validation_seed, config.validation_clips)
    run = _Run(config, clips, quantizer.vit.position)
    first = run.restore() if resume else run.start()
    with _progress() as progress:
        task = progress.add_task("training", total=config.optim.steps, completed=first)
        for step in range(first, config.optim.steps):
            record = run.step(step)
            progress.update(task, advance=1, description=_summary(record))
            due = (step + 1) % config.save_every == 0 or step + 1 == config.optim.steps
            if due:
                record["validation"] = run.validate(held_out)
            run.log(record)  # before the save: lines past the last save are dropped on resume
            if due:
                run.save(step + 1, record)
    return Checkpoint(config.output, config.model)


def cached_clips(
    config: TrainConfig, quantizer: ClipQuantizer, seed: int, clips: int
) -> CachedClips:
    """Quantised clips of a world seed, encoding those that the cache does not hold yet."""
    model = config.model
    folder = cache_folder(cache_root(), model.encoder, model.quantizer, seed)
    missing = missing_shards(folder, clips)
    if not missing:
        return load_clips(folder, clips)
    with _progress() as progress:
        for shard in progress.track(missing, description=f"encoding clips of world {seed}"):
            fill_shard(folder, shard, quantizer, seed)
    return load_clips(folder, clips)


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then a cosine from 1 to 0.05."""
    if step < warmup:
        return (step + 1) / warmup
    share = min((step - warmup) / max(total - warmup, 1), 1.0)
    return _FINAL_LEARNING_RATE + (1 - _FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass(frozen=True)
class _Batch:
    codes: Tensor
    indices: Tensor
    packed: PackedBatch
    kinds: list[str]


class _Run:
    """The state of one training run."""

    def __init__(self, config: TrainConfig, clips: CachedClips, position: Tensor) -> None:
        self.config, self.clips, self.position = config, clips, position
        gguf = fetch(config.model.llm.source).path
        self.tokenizer: PromptTokenizer = tokenizer_from_gguf(gguf)
        precision = "bf16" if config.precision == "bf16" else "no"
        self.accelerator = Accelerator(mixed_precision=precision)
        llm = with_lora(llm_from_gguf(gguf), config.model.llm)
        self.model = VideoLanguageModel(Bridge(config.model), llm).to(self.accelerator.device)
        self.trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimizer = self._optimizer()

    def _optimizer(self) -> torch.optim.AdamW:
        optim = self.config.optim
        lora = [p for p in self.model.llm.parameters() if p.requires_grad]
        groups = [
            {"params": list(self.model.bridge.parameters()), "peak": optim.bridge_learning_rate},
            {"params": lora, "peak": optim.learning_rate},
        ]
        return torch.optim.AdamW(
            groups, lr=optim.learning_rate, betas=(0.9, 0.98), weight_decay=optim.weight_decay
        )

    def step(self, step: int) -> dict[str, Any]:
        """One optimiser step; returns its record for the log."""
        began = time.monotonic()
        optim = self.config.optim
        factor = learning_rate_factor(step, optim.warmup_steps, optim.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        scores = self._forward(self._batch(step))
        self.accelerator.backward(scores.loss)
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), optim.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return {
            "step": step + 1,
            "loss": round(scores.loss.item(), 5),
            "exact_match": round(scores.correct.float().mean().item(), 4),
            "gradient_norm": round(float(norm), 4),
            "learning_rate": optim.learning_rate * factor,
            "seconds": round(time.monotonic() - began, 3),
        }

    @torch.no_grad()
    def validate(self, clips: CachedClips) -> dict[str, float]:
        """Exact match on held-out clips, over all questions and per kind."""
        right: dict[str, list[bool]] = {}
        for start in range(0, len(clips), 16):
            numbers = list(range(start, min(start + 16, len(clips))))
            seed = self.config.validation_seed
            asked = [_validation_questions(seed, number) for number in numbers]
            batch = self._assemble(clips, numbers, asked)
            correct = self._forward(batch).correct.tolist()
            for kind, hit in zip(batch.kinds, correct, strict=True):
                right.setdefault(kind, []).append(hit)
        total = [hit for hits in right.values() for hit in hits]
        means = {kind: float(np.mean(hits)) for kind, hits in sorted(right.items())}
        return {"exact_match": float(np.mean(total)), **means}

    def _forward(self, batch: _Batch) -> Scores:
        with self.accelerator.autocast():
            scores: Scores = self.model(batch.codes, batch.indices, batch.packed)
        return scores

    def _batch(self, step: int) -> _Batch:
        """The clips and questions of a step: epochs are shuffled, questions are new every time."""
        data, seed = self.config.data, self.config.seed
        numbers = _clips_of_step(step, self.config.optim.clips_per_step, len(self.clips), seed)
        rng = np.random.default_rng([seed, step])
        scenes = (self._scene(number) for number in numbers)
        asked = [questions_from_scene(scene, rng, data.questions_per_clip) for scene in scenes]
        return self._assemble(self.clips, numbers, asked)

    def _scene(self, number: int) -> Scene:
        """What training clip `number` shows; those past the cached ones are played backwards."""
        data = self.config.data
        scene = scene_from_seed(data.seed, number % data.clips)
        return scene if number < data.clips else reversed_scene(scene)

    def _assemble(
        self, clips: CachedClips, numbers: list[int], asked: list[list[QuestionAnswer]]
    ) -> _Batch:
        device = self.accelerator.device
        codes = clips.codes[numbers].float().to(device)
        packed = pack(self.tokenizer, asked, self.config.model.quantizer.codes)
        packed = PackedBatch(
            *(part.to(device) for part in (packed.ids, packed.segment, packed.targets))
        )
        kinds = [item.kind for questions in asked for item in questions]
        return _Batch(codes, clips.indices[numbers].long().to(device), packed, kinds)

    def start(self) -> int:
        """Begin a new run."""
        self.config.output.mkdir(parents=True, exist_ok=True)
        self.name_codes()
        self.save(0, {"step": 0})
        return 0

    def name_codes(self) -> None:
        """The bridge's first lesson, without the language model."""
        optim = self.config.optim
        if not optim.naming_steps:
            return
        embeddings = self.model.llm.get_input_embeddings().weight.detach()
        with _progress() as progress:
            task = progress.add_task("naming codes", total=optim.naming_steps)
            teach_names(
                self.model.bridge,
                self.clips,
                (self._scene(number) for number in range(len(self.clips))),
                NamingLoss(embeddings, self.tokenizer).to(self.accelerator.device),
                optim,
                lambda step: learning_rate_factor(step, optim.warmup_steps, optim.naming_steps),
                torch.Generator().manual_seed(self.config.seed),
                lambda loss: progress.update(
                    task, advance=1, description=f"naming codes  loss {loss:.3f}"
                ),
            )

    def save(self, step: int, record: dict[str, Any]) -> None:
        """Write weights and optimiser moments, so that the run can go on after a kill."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.trained.items():
            tensors[f"weight.{name}"] = parameter.detach().cpu()
            state = self.optimizer.state.get(parameter, {})
            for moment in _ADAM_MOMENTS:
                if moment in state:
                    tensors[f"{moment}.{name}"] = state[moment].cpu()
            if "step" in state:
                tensors[f"step.{name}"] = torch.as_tensor(state["step"]).reshape(1)
        with replacing(self.config.output / STATE) as path:
            # step and identity travel inside the file: one rename, nothing that could disagree
            save_file(tensors, path, {"step": str(step), "run": self._identity()})
        self.checkpoint(record)

    def restore(self) -> int:
        """Load the last save; returns the number of steps done."""
        output = self.config.output
        if not (output / STATE).exists():
            return self.start()
        with safe_open(output / STATE, framework="pt") as file:
            info = file.metadata()
        if info["run"] != self._identity():
            raise CheckpointError(
                f"{output}: was written with another model configuration or data seed"
            )
        tensors = load_file(output / STATE)
        for name, parameter in self.trained.items():
            parameter.data.copy_(tensors[f"weight.{name}"])
            if f"step.{name}" in tensors:  # none yet right after the naming steps
                moments = {m: tensors[f"{m}.{name}"].to(parameter.device) for m in _ADAM_MOMENTS}
                self.optimizer.state[parameter] = {"step": tensors[f"step.{name}"][0], **moments}
        self._forget_after(int(info["step"]))
        return int(info["step"])

    def _identity(self) -> str:
        """What must not change between the parts of a run; steps, rates and clip count may."""
        return f"{self.config.model.fingerprint()}-{self.config.data.seed}"

    def log(self, record: dict[str, Any]) -> None:
        """Append one JSON line to the run's metrics."""
        with (self.config.output / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def _forget_after(self, step: int) -> None:
        """Drop the log's lines about steps that a kill has undone."""
        path = self.config.output / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _logged_step(line) <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def checkpoint(self, record: dict[str, Any]) -> Checkpoint:
        """Write the deployable checkpoint."""
        metrics = {
            **record,
            "train": self.config.model_dump(mode="json", exclude={"model", "output"}),
        }
        return save_checkpoint(
            self.config.output,
            self.config.model,
            self.position,
            self.model.bridge,
            self.model.llm,
            metrics,
        )


def _clips_of_step(step: int, count: int, clips: int, seed: int) -> list[int]:
    """Clip numbers of a step: position in an endless sequence of shuffled epochs."""
    numbers = []
    for position in range(step * count, (step + 1) * count):
        epoch, place = divmod(position, clips)
        numbers.append(int(_epoch_order(epoch, clips, seed)[place]))
    return numbers


def _epoch_order(epoch: int, clips: int, seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng([seed, epoch, clips]).permutation(clips)


def _refuse_old_run(output: Path) -> None:
    """Before any work: a folder that holds a run is not overwritten."""
    if (output / STATE).exists():
        raise CheckpointError(f"{output}: holds a run already; pass --resume or another -o folder")


def _logged_step(line: str) -> float:
    """The step of a log line; a line that the kill cut off belongs to no step."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf


def _validation_questions(seed: int, number: int) -> list[QuestionAnswer]:
    return one_question_per_kind(
        scene_from_seed(seed, number), np.random.default_rng([seed, number])
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _summary(record: dict[str, Any]) -> str:
    return f"loss {record['loss']:.3f}  exact match {record['exact_match']:.1%}"
