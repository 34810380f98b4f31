"""A training run of seconds: a tiny language model, no backbone, random clips in the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import (
    CODE_WIDTH,
    CODES,
    CONFIG,
    FRAMES,
    GRID,
    random_codes,
    random_maps,
    tiny_llm,
    tiny_tokenizer,
)
from torch import Tensor

from vqedge.config import LlmConfig, ModelConfig
from vqedge.data.clips import ClipSource
from vqedge.data.generated import GeneratedClips
from vqedge.model.checkpoint import MODEL, load_tensors
from vqedge.progress import Clock
from vqedge.recipe import DataConfig, OptimConfig, TrainConfig, WorldConfig
from vqedge.train import train
from vqedge.training.cache import ClipCache
from vqedge.training.features import FeatureCache, save_features
from vqedge.training.folder import LOG, STATE
from vqedge.training.run import Run

STEPS, CLIPS, BUDGETS = 4, 3, (3, CODES)
LEARNED = CONFIG.model_copy(
    update={
        "quantizer": CONFIG.quantizer.model_copy(
            update={"kind": "codebook", "levels": 2, "entries": 6}
        )
    }
)
IN_WORDS = CONFIG.model_copy(
    update={
        "quantizer": LEARNED.quantizer.model_copy(update={"codebook_width": 7}),
        "attention": CONFIG.attention.model_copy(update={"hash": "tokens", "depth": 0}),
    }
)
OTHER = CONFIG.model_copy(
    update={"quantizer": CONFIG.quantizer.model_copy(update={"iterations": 3})}
)
LESSONS = OptimConfig(steps=1, clips_per_step=2, warmup_steps=2, naming_steps=3)
MODELS = {"codes": CONFIG, "words": IN_WORDS}


def _no_backbone(_config: ModelConfig, _folder: Path) -> Any:
    position = torch.randn(1, 1 + 64, 384, generator=torch.Generator().manual_seed(5))
    quantizer = SimpleNamespace(vit=SimpleNamespace(position=position))
    quantizer.to = lambda _device: quantizer
    return quantizer


def _llm_file(config: LlmConfig, _folder: Path) -> Any:
    return SimpleNamespace(path=Path(config.source))


TINY_PARTS: dict[str, Any] = {
    "vqedge.train.clip_quantizer": _no_backbone,
    "vqedge.training.inputs.llm_weights": _llm_file,
    "vqedge.training.run.llm_weights": _llm_file,
    "vqedge.training.run.tokenizer_from_gguf": lambda _path, _system: tiny_tokenizer(),
    "vqedge.training.run.llm_from_gguf": lambda _path: tiny_llm(),
}
"""What takes the place of the real parts of training."""


@contextmanager
def tiny_training(cache: Path) -> Iterator[None]:
    """Trainings of seconds, on what a cache holds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQEDGE_CACHE", str(cache))
        for name, part in TINY_PARTS.items():
            patch.setattr(name, part)
        yield


def fill_cache(
    root: Path, config: ModelConfig, seed: int, source: ClipSource | None = None
) -> None:
    """Random clips of a world seed, or of another source, at all budgets."""
    source = source or GeneratedClips(seed, CLIPS)
    cache = ClipCache(root, config.encoder, config.quantizer, source, BUDGETS)
    for budget in BUDGETS:
        codes = random_codes(CLIPS, seed)[:, :budget].half().contiguous()
        indices = random_maps(CLIPS, seed, used=budget).to(torch.uint8)
        cache.folder(budget).mkdir(parents=True, exist_ok=True)
        save_file(
            {"codes": codes, "indices": indices}, cache.folder(budget) / "clips-00000.safetensors"
        )


def fill_features(root: Path, config: ModelConfig, seed: int) -> None:
    """Random features of the clips of a world seed."""
    made = FeatureCache(root, config.encoder, GeneratedClips(seed, CLIPS))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(CLIPS, FRAMES * GRID**2, CODE_WIDTH, generator=generator)
    save_features(made.folder, 0, rows.half())


def no_files(*_: object) -> Any:
    raise AssertionError("these runs read no video files")


def run(config: TrainConfig, resume: bool = False, minutes: float | None = None) -> Any:
    return train(config, no_files, resume, Clock(minutes))


def log_of(output: Path) -> list[dict[str, Any]]:
    """What a run wrote down of its steps."""
    return [json.loads(line) for line in (output / LOG).read_text().splitlines()]


def kill_at(monkeypatch: pytest.MonkeyPatch, fatal: int) -> None:
    """The next run dies before this step, once."""
    step = Run.step

    def dying(self: Run, number: int, *others: Any) -> dict[str, Any]:
        if number == fatal:
            monkeypatch.setattr(Run, "step", step)
            raise KeyboardInterrupt
        return step(self, number, *others)

    monkeypatch.setattr(Run, "step", dying)


def reducer_weights(folder: Path) -> dict[str, Tensor]:
    """What a run has saved of a reducer that was trained."""
    return {
        name: value for name, value in load_tensors(folder / MODEL).items() if "reducer" in name
    }


def killed_and_resumed(
    monkeypatch: pytest.MonkeyPatch, config: TrainConfig, fatal: int = 3
) -> dict[str, Tensor]:
    """The last save of a run that dies before a step and goes on in what might be a new process."""
    kill_at(monkeypatch, fatal)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    torch.manual_seed(99)  # a new process has another random state
    run(config, resume=True)
    return load_file(config.output / STATE)


def config_for(output: Path, steps: int = STEPS, **changes: Any) -> TrainConfig:
    optim = OptimConfig(steps=steps, clips_per_step=2, warmup_steps=2, naming_steps=1)
    values: dict[str, Any] = {
        "model": CONFIG,
        "data": DataConfig(
            sources=(WorldConfig(clips=CLIPS),), questions_per_clip=2, budgets=BUDGETS
        ),
        "optim": optim,
        "output": output,
        "save_every": 2,
        "validation": (WorldConfig(seed=2, clips=2),),
    }
    return TrainConfig(**values | changes)
