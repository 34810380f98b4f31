"""The steps of a run, each a pure function of the configuration, the seed and its number."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from vqedge.base.weights import llm_weights
from vqedge.data.mixture import Pick, drawn_budget
from vqedge.errors import ConfigError
from vqedge.model.checkpoint import Checkpoint
from vqedge.model.encoder import Bridge, trained_bridge, trained_reducer
from vqedge.model.hash_dropout import HashDropout
from vqedge.model.llm import (
    PromptTokenizer,
    can_compile,
    compile_blocks,
    llm_from_gguf,
    tokenizer_from_gguf,
    with_lora,
)
from vqedge.model.vit import ViT
from vqedge.model.vlm import Scores, VideoLanguageModel
from vqedge.progress import Clock, progress, tell
from vqedge.recipe import TrainConfig
from vqedge.training.ahead import Ahead
from vqedge.training.batches import Batch, Batches
from vqedge.training.beginning import Beginning
from vqedge.training.dataset import TrainingClips
from vqedge.training.folder import RunFolder, numbered
from vqedge.training.held_out import codebook_usage, exact_match
from vqedge.training.processes import anyone, leave_out, same_everywhere, spreads_llm
from vqedge.training.questions import identity_of, questions_of
from vqedge.training.schedule import learning_rate_factor, other_schedule, require_finite
from vqedge.training.sharding import prepared, spread

logger = logging.getLogger(__name__)

_WORTH_COMPILING = 100  # steps


def compiles(config: TrainConfig, device: torch.device) -> bool:
    """Shall the language model's blocks be compiled?

    Raises:
        ConfigError: that is asked for and cannot be done.
    """
    wanted = config.optim.compile
    if wanted is None:
        wanted = config.optim.steps >= _WORTH_COMPILING
    if not wanted or can_compile(device):
        return wanted
    told = "torch.compile finds no C++ compiler (CXX names one), or no Triton for the GPU"
    if config.optim.compile:
        raise ConfigError(f"optim.compile: {told}; install one or leave it out")
    logger.warning("%s: steps take twice as long as with one", told)
    return False


def tokenizer_of(config: TrainConfig) -> PromptTokenizer:
    """That of the run's language model."""
    gguf = llm_weights(config.model.llm, config.base).path
    return tokenizer_from_gguf(gguf, config.model.llm.system)


class _Part(NamedTuple):
    """What one part of a step gave."""

    loss: float  # sum over its answer tokens
    right: int  # questions
    gradient_norm: float  # of the whole step, 0 before its last part


class Run:
    """The state of one training run."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        tokenizer: PromptTokenizer,
        clips: TrainingClips,
        held_out: TrainingClips,
        vit: ViT,
        accelerator: Accelerator,
        compiled: bool,
    ) -> None:
        self.config, self.folder, self.position = config, folder, vit.position
        self.clips, self.held_out, self.accelerator = clips, held_out, accelerator
        self.mixture = clips.mixture(config.seed)
        self.batches = Batches(config, tokenizer, accelerator.device)
        gguf = llm_weights(config.model.llm, config.base).path
        llm = with_lora(llm_from_gguf(gguf), config.model.llm)
        # gradients repeat on a GPU (`repeatable_kernels`), and a CPU's steps take a sixth less
        llm.get_base_model().set_attn_implementation("eager")
        if compiled:
            compile_blocks(llm, fall_back=config.optim.compile is None)
        if spreads_llm(accelerator):
            spread(llm, accelerator)
        bridge, reducer = trained_bridge(config.model), trained_reducer(config.model, vit)
        if isinstance(bridge, Bridge):
            optim = config.optim
            bridge.attention.dropout = HashDropout(optim.frame_dropout, optim.hash_dropout)
        self.model = VideoLanguageModel(bridge, llm, reducer).to(accelerator.device)
        if bridge.codebook is not None and bridge.codebook.narrow is not None:
            # it learns in the naming lesson alone
            leave_out(self.model, bridge.codebook.narrow.parameters())
        self.optimizer = self._optimizer()
        self.replica, self.stepper = prepared(self.model, self.optimizer, accelerator)

    def to_the_end(self, resume: bool, clock: Clock) -> Checkpoint | None:
        """All steps that are left; None if time ran out before the last."""
        config, speaks = self.config, self.accelerator.is_main_process
        first = self.folder.restore(self.model, self.optimizer) if resume else None
        if speaks:
            self.folder.forget_after(first)
        if first is None:
            if not self.start(clock):
                return None
            first = 0
        elif speaks and (line := other_schedule(first, self.folder.steps_then(), config)):
            tell(line, always=True)
        same_everywhere(self.model, self.accelerator)
        self.model.train()
        unit = ("clips", config.optim.clips_per_step)
        with (
            progress("training", config.optim.steps, first, speaks, unit) as advance,
            Ahead(self._batches_of, config.optim.steps) as ready,
        ):
            for step in range(first, config.optim.steps):
                record = self.step(step, ready)
                advance(_summary(record))
                last = step + 1 == config.optim.steps
                due = last or (step + 1) % config.save_every == 0
                is_over = partial(self._is_over, clock, last)
                stop = is_over()
                if due and not stop:
                    found = self.validated(is_over)
                    record |= found
                    stop = not found
                self.save(step + 1, record, due or stop)
                if stop and not last:
                    return None
        done = max(first, config.optim.steps)
        best = self.folder.best(done) if speaks else None
        if best is not None and best[0] != numbered(config.output, done):
            tell(f"{best[0]}: did best in validation, {best[1]:.1%}")
        return Checkpoint(config.output, config.model)

    def _is_over(self, clock: Clock, last: bool) -> bool:
        """Is it time to save at once? After the last step a signal says so, no limit does."""
        return anyone(clock.stopped if last else clock.is_up(), self.accelerator)

    def _optimizer(self) -> torch.optim.AdamW:
        optim, reducer = self.config.optim, self.model.reducer
        lora = [p for p in self.model.llm.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": list(self.model.bridge.parameters()), "peak": optim.bridge_learning_rate},
            {"params": lora, "peak": optim.learning_rate},
        ]
        if reducer is not None:
            rate = reducer.learning_rate(optim)
            groups.append({"params": list(reducer.parameters()), "peak": rate})
        return torch.optim.AdamW(
            groups, lr=optim.learning_rate, betas=(0.9, 0.98), weight_decay=optim.weight_decay
        )

    def start(self, clock: Clock) -> bool:
        """Begin a new run, up to its first save; False if time ran out before."""
        beginning = Beginning(
            self.config,
            self.folder,
            self.model,
            self.batches.tokenizer,
            self.clips,
            self.held_out,
            self.accelerator,
            clock,
        )
        named = beginning.begin()
        if named is None:
            return False
        self.save(0, {"step": 0, "naming": named}, due=True)
        return True

    def step(self, step: int, ready: Ahead[list[Batch]]) -> dict[str, Any]:
        """One optimiser step on its batches; returns its record for the log."""
        began, optim = time.monotonic(), self.config.optim
        torch.manual_seed(self.config.seed + step)  # a codebook draws rows for its dead entries
        factor = learning_rate_factor(step, optim.warmup_steps, optim.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        batches = ready(step)
        tokens, questions, shares = self._everywhere(
            sum(batch.answer_tokens for batch in batches),
            sum(len(batch.kinds) for batch in batches),
            len(batches),
        )
        parts = [
            self._part(step, batch, batch.answer_tokens * shares / tokens) for batch in batches
        ]
        loss, right = self._everywhere(
            sum(part.loss for part in parts), sum(part.right for part in parts)
        )
        seconds = time.monotonic() - began
        return {
            "step": step + 1,
            "loss": round(loss / tokens, 5),
            "exact_match": round(right / questions, 4),
            "gradient_norm": round(parts[-1].gradient_norm, 4),
            "learning_rate": optim.learning_rate * factor,
            "budget": batches[0].clips.budget,
            "seconds": round(seconds, 3),
            "clips_per_s": round(optim.clips_per_step / seconds, 3),
        }

    def _batches_of(self, step: int) -> list[Batch]:
        """A step's parts. Runs in another thread: reads no weights, draws no numbers of torch."""
        budget = drawn_budget(self.config.budgets, self.config.seed, step)
        made = self.batches.of_step
        return [made(self.clips, picks, budget, step) for picks in self._picks(step)]

    def _everywhere(self, *values: float) -> list[float]:
        """Sums over all processes."""
        if self.accelerator.num_processes == 1:
            return [*values]
        told = torch.tensor(values, dtype=torch.float32, device=self.accelerator.device)
        total: torch.Tensor = self.accelerator.reduce(told, "sum")
        return [float(value) for value in total.tolist()]

    def _part(self, step: int, batch: Batch, weight: float) -> _Part:
        """Forward and backward of one part of a step; the last part updates the weights.

        Args:
            step: its number.
            batch: the part.
            weight: of its loss, the mean over its own answer tokens; parts and processes are
                averaged with equal weights, and a step's loss is the mean over all its tokens.

        Raises:
            ConfigError: gradients are not finite.
        """
        norm = 0.0
        with self.accelerator.accumulate(self.replica):
            scores: Scores = self.replica(batch.clips, batch.packed)
            commitment = self.config.optim.commitment_weight * scores.commitment
            self.accelerator.backward(weight * scores.loss + commitment)
            if self.accelerator.sync_gradients:
                limit = self.config.optim.max_grad_norm
                norm = float(self.accelerator.clip_grad_norm_(self.replica.parameters(), limit))
                require_finite(norm, f"step {step + 1}", "optim.learning_rate")
            self.stepper.step()
            self.stepper.zero_grad(set_to_none=True)
        return _Part(scores.loss.item() * batch.answer_tokens, int(scores.correct.sum()), norm)

    def _picks(self, step: int) -> list[list[Pick]]:
        """This process's clips of a step, in as many parts as gradients are accumulated."""
        optim, world = self.config.optim, self.accelerator.num_processes
        count = optim.clips_per_step
        picks = self.mixture.picks(step * count, (step + 1) * count)
        mine = picks[self.accelerator.process_index :: world]
        size = math.ceil(len(mine) / optim.accumulate)
        return [mine[place : place + size] for place in range(0, len(mine), size)]

    def validated(self, is_over: Callable[[], bool]) -> dict[str, Any]:
        """What the log says of held-out clips, and of the entries that the run's clips use.

        Args:
            is_over: shall it end at once, with nothing said?
        """
        quantizer, clips = self.config.model.quantizer, self.held_out
        asked = questions_of(clips, self.config.data.validation_questions)
        share = exact_match(self.model, clips, asked, self.batches, self.accelerator, is_over)
        if share is None:
            return {}
        identity = identity_of(clips, asked)
        usage = codebook_usage(self.model, self.clips, quantizer.default_budget, quantizer.entries)
        return {"validation": share, "validation_set": identity} | usage

    def save(self, step: int, record: dict[str, Any], due: bool) -> None:
        """Log a step and, if due, save so that the run can go on after a kill."""
        if not self.accelerator.is_main_process:
            return
        self.folder.log(record)  # before the save: lines past the last save are dropped on resume
        if due:
            self.folder.save(step, record, self.model, self.optimizer, self.position)


def _summary(record: dict[str, Any]) -> str:
    return f"loss {record['loss']:.3f}  exact match {record['exact_match']:.1%}"
