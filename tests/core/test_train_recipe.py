"""What a recipe says arrives where it matters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from tiny_run import BUDGETS, CLIPS, LEARNED, config_for, run

from vqedge.data.mixture import Pick
from vqedge.model.encoder import Bridge
from vqedge.model.vlm import VideoLanguageModel
from vqedge.progress import Clock
from vqedge.recipe import DataConfig, OptimConfig, TrainConfig, WorldConfig
from vqedge.training import processes
from vqedge.training.clips import training_clips
from vqedge.training.dataset import TrainingClips
from vqedge.training.inputs import sources_of
from vqedge.training.naming_lesson import NamingLesson
from vqedge.training.run import Run

pytestmark = pytest.mark.usefixtures("train_cache")


def kept(monkeypatch: pytest.MonkeyPatch, made: type) -> list[Any]:
    """Every object of a class that is made from now on."""
    found: list[Any] = []
    begin = made.__init__  # type: ignore[misc]

    def keeping(self: Any, *words: Any, **named: Any) -> None:
        found.append(self)
        begin(self, *words, **named)

    monkeypatch.setattr(made, "__init__", keeping)
    return found


def optim_of(**changes: Any) -> OptimConfig:
    usual = {"steps": 1, "clips_per_step": 2, "warmup_steps": 1, "naming_steps": 0}
    return OptimConfig.model_validate(usual | changes)


def run_of(monkeypatch: pytest.MonkeyPatch, config: TrainConfig) -> Run:
    found = kept(monkeypatch, Run)
    run(config)
    made: Run = found[0]
    return made


def test_rates_decay_and_dropout_arrive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rates = {"learning_rate": 1e-3, "bridge_learning_rate": 1e-2, "weight_decay": 0.125}
    optim = optim_of(frame_dropout=0.25, hash_dropout=0.75, **rates)
    made = run_of(monkeypatch, config_for(tmp_path, optim=optim))
    assert isinstance(made.model.bridge, Bridge)
    dropout = made.model.bridge.attention.dropout
    assert (dropout.frames, dropout.clips) == (0.25, 0.75)
    groups = made.optimizer.param_groups
    assert [group["lr"] for group in groups] == [1e-2, 1e-3]
    assert [group["weight_decay"] for group in groups] == [0.125] * 2
    assert made.model.llm.config._attn_implementation == "eager"


@pytest.mark.parametrize(("precision", "mixed"), [("bf16", "bf16"), ("fp32", "no")])
def test_precision_and_parts_arrive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str, mixed: str
) -> None:
    told: list[dict[str, Any]] = []
    plain = Accelerator()
    monkeypatch.setattr(processes, "Accelerator", lambda **words: told.append(words) or plain)
    config = config_for(tmp_path, optim=optim_of(accumulate=2), precision=precision)
    processes.accelerator_for(config)
    assert told[0]["mixed_precision"] == mixed and told[0]["gradient_accumulation_steps"] == 2


def test_clips_come_with_weights_and_backwards(tmp_path: Path) -> None:
    sources = (WorldConfig(clips=CLIPS, weight=2.0), WorldConfig(seed=3, clips=CLIPS))
    for backwards in (True, False):
        data = DataConfig(sources=sources, budgets=BUDGETS, time_reversal=backwards)
        config = config_for(tmp_path, data=data)
        shown = sources_of(sources, read=lambda *_: None)  # type: ignore[arg-type,return-value]
        quantizer: Any = None  # all clips are kept
        clips = training_clips(config, sources, shown, quantizer, Accelerator(), Clock())
        assert clips is not None and clips.weights == (2.0, 1.0)
        assert clips.time_reversal is backwards


def test_questions_are_as_many_as_wanted_and_others_in_every_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = DataConfig(sources=(WorldConfig(clips=CLIPS),), questions_per_clip=3, budgets=BUDGETS)
    made = run_of(monkeypatch, config_for(tmp_path, data=data, optim=optim_of()))
    picks = [Pick(0, 0, False), Pick(0, 1, False)]
    first, again, later = (made.batches.of_step(made.clips, picks, 3, step) for step in (0, 0, 1))
    assert len(first.kinds) == len(later.kinds) == 2 * 3
    assert torch.equal(first.packed.ids, again.packed.ids)
    assert first.packed.ids.tolist() != later.packed.ids.tolist()


@pytest.mark.parametrize("lesson", [False, True])
def test_gradients_are_cut_and_a_codebooks_loss_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lesson: bool
) -> None:
    limits, losses = [], []
    clip = torch.nn.utils.clip_grad_norm_
    backward = torch.Tensor.backward

    def noted(parameters: Any, limit: float, *others: Any, **named: Any) -> Any:
        limits.append(limit)
        return clip(parameters, limit, *others, **named)

    def counted(self: torch.Tensor, *words: Any, **named: Any) -> None:
        losses.append(float(self.detach()))
        backward(self, *words, **named)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", noted)
    monkeypatch.setattr(torch.Tensor, "backward", counted)
    steps = {"naming_steps": 1} if lesson else {}
    for name, weight in (("none", 0.0), ("much", 1e6)):
        optim = optim_of(max_grad_norm=0.375, commitment_weight=weight, **steps)
        run(config_for(tmp_path / name, model=LEARNED, optim=optim))
    assert limits == [0.375] * len(losses) and len(losses) == 2 * (1 + lesson)
    for plain, much in zip(losses[: 1 + lesson], losses[1 + lesson :], strict=True):
        assert much > plain + 10


def test_a_lesson_decays_and_names_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shares = []
    names = NamingLesson._code_names

    def noted(self: NamingLesson, labels: Any, indices: Any, codes: int) -> Any:
        share_of = type(labels).code_names

        def told(each: Any, found: Any, count: int, share: float) -> Any:
            shares.append(share)
            return share_of(each, found, count, share)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(labels), "code_names", told)
            return names(self, labels, indices, codes)

    monkeypatch.setattr(NamingLesson, "_code_names", noted)
    lessons = kept(monkeypatch, NamingLesson)
    optim = optim_of(naming_steps=1, naming_weight_decay=0.0625, naming_share=0.125)
    run(config_for(tmp_path, optim=optim))
    assert lessons[0].optimizer.param_groups[0]["weight_decay"] == 0.0625
    assert shares and set(shares) == {0.125}


def test_validation_is_of_the_held_out_clips_at_the_default_budget(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = config_for(tmp_path, steps=1)
    named: list[TrainingClips] = []
    accuracy = NamingLesson.accuracy

    def noted(self: NamingLesson, clips: TrainingClips, budget: int) -> dict[str, float]:
        named.append(clips)
        assert budget == config.model.quantizer.default_budget
        return accuracy(self, clips, budget)

    budgets = []
    forward = VideoLanguageModel.forward

    def seen(self: VideoLanguageModel, clips: Any, batch: Any) -> Any:
        if not self.training:
            budgets.append((len(clips.rows), clips.budget))
        return forward(self, clips, batch)

    monkeypatch.setattr(NamingLesson, "accuracy", noted)
    monkeypatch.setattr(VideoLanguageModel, "forward", seen)
    made = run_of(monkeypatch, config)
    [held_out] = config.validation
    for clips in (*named, made.held_out):
        assert [source.fingerprint for source in clips.sources] == [
            source.fingerprint
            for source in sources_of(config.validation, None)  # type: ignore[arg-type]
        ]
    assert named and budgets == [(held_out.clips, config.model.quantizer.default_budget)]  # type: ignore[union-attr]
