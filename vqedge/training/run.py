"""The steps of a run, each a pure function of the configuration, the seed and its number."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from vqedge.base.weights import llm_weights
from vqedge.data.clips import QuestionAnswer
from vqedge.data.mixture import Pick, drawn_budget
from vqedge.data.packing import PackedBatch, pack
from vqedge.data.training import ClipBatch, TrainingClips, joint_vocabulary
from vqedge.errors import ConfigError
from vqedge.model.checkpoint import Checkpoint, start_from
from vqedge.model.codebook import fit_codebook, usage_report
from vqedge.model.encoder import rows_per_code, trained_bridge, trained_reducer
from vqedge.model.llm import (
    PromptTokenizer,
    can_compile,
    compile_blocks,
    llm_from_gguf,
    tokenizer_from_gguf,
    with_lora,
)
from vqedge.model.naming import NamingLoss
from vqedge.model.quantizing import quantized
from vqedge.model.vit import ViT
from vqedge.model.vlm import Scores, VideoLanguageModel
from vqedge.model.word_bridge import WordBridge
from vqedge.progress import Clock, progress
from vqedge.recipe import TrainConfig
from vqedge.training.folder import RunFolder
from vqedge.training.naming_lesson import NamingLesson
from vqedge.training.processes import anyone, leave_out, same_everywhere

logger = logging.getLogger(__name__)

_FINAL_LEARNING_RATE = 0.05  # share of the peak that the cosine schedule ends at
_WORTH_COMPILING = 100  # steps
_CODEBOOK_ROWS = 100_000  # that a learned codebook starts from


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then a cosine from 1 to 0.05."""
    if step < warmup:
        return (step + 1) / warmup
    share = min((step - warmup) / max(total - warmup, 1), 1.0)
    return _FINAL_LEARNING_RATE + (1 - _FINAL_LEARNING_RATE) * 0.5 * (1 + math.cos(math.pi * share))


def compiles(config: TrainConfig, device: torch.device) -> bool:
    """Shall blocks be compiled? Raises ConfigError where that is asked for and cannot be done."""
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


@dataclass(frozen=True)
class _Batch:
    clips: ClipBatch
    packed: PackedBatch
    kinds: list[str]


class Run:
    """The state of one training run."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        clips: TrainingClips,
        held_out: TrainingClips,
        vit: ViT,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.folder, self.position = config, folder, vit.position
        self.clips, self.held_out, self.accelerator = clips, held_out, accelerator
        self.mixture = clips.mixture(config.seed)
        gguf = llm_weights(config.model.llm, config.base).path
        self.tokenizer: PromptTokenizer = tokenizer_from_gguf(gguf, config.model.llm.system)
        llm = with_lora(llm_from_gguf(gguf), config.model.llm)
        if accelerator.device.type == "cpu":  # steps take a sixth less than with fused attention
            llm.get_base_model().set_attn_implementation("eager")
        if compiles(config, accelerator.device):
            compile_blocks(llm, fall_back=config.optim.compile is None)
        bridge, reducer = trained_bridge(config.model), trained_reducer(config.model, vit)
        self.model = VideoLanguageModel(bridge, llm, reducer).to(accelerator.device)
        if bridge.codebook is not None and bridge.codebook.narrow is not None:
            leave_out(self.model, bridge.codebook.narrow)  # it learns in the naming lesson alone
        self.optimizer = self._optimizer()
        self.replica, self.stepper = accelerator.prepare(self.model, self.optimizer)

    def to_the_end(self, resume: bool, clock: Clock) -> Checkpoint | None:
        """All steps that are left; None if time ran out before the last."""
        config = self.config
        first = self.folder.restore(self.model, self.optimizer) if resume else None
        if first is None:
            first = self.start()
        elif self.accelerator.is_main_process:
            self.folder.forget_after(first)
        same_everywhere(self.model, self.accelerator)
        self.model.train()
        with progress("training", config.optim.steps, first) as advance:
            for step in range(first, config.optim.steps):
                record = self.step(step)
                advance(_summary(record))
                last = step + 1 == config.optim.steps
                stop = anyone(clock.is_up(), self.accelerator) and not last
                due = last or stop or (step + 1) % config.save_every == 0
                if due:
                    record["validation"] = self.validate()
                    record |= self.codebook_usage()
                self.save(step + 1, record, due)
                if stop:
                    return None
        return Checkpoint(config.output, config.model)

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

    def start(self) -> int:
        """Begin a new run: another checkpoint's weights or the naming lesson; the first save."""
        torch.manual_seed(self.config.seed)
        codebook = self.model.bridge.codebook
        narrows = codebook is not None and codebook.narrow is not None
        if not narrows:
            self.fit_codebook()
        init, parts = self.config.init, (self.model.bridge, self.model.llm, self.model.reducer)
        named = {}
        if init is None or not start_from(init, self.config.model, *parts):
            if narrows:  # its tables are of features that are learned first
                self.name_codes(quantised=False)
                self.fit_codebook()
            named = self.name_codes()
        self.save(0, {"step": 0, "naming": named}, due=True)
        return 0

    def fit_codebook(self) -> None:
        """Tables of a learned codebook from the codes that there are."""
        codebook, quantizer = self.model.bridge.codebook, self.config.model.quantizer
        if codebook is None:
            return
        codes = self.clips.codes(quantizer.default_budget)
        drawn = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))
        rows = codes[drawn[:_CODEBOOK_ROWS]].float()
        with torch.no_grad():  # tables are made on the CPU: the same in all processes
            seen = codebook.seen(rows.to(self.accelerator.device)).cpu()
        tables = fit_codebook(seen, quantizer.levels, quantizer.entries, seed=self.config.seed)
        codebook.tables.data.copy_(tables)
        if isinstance(self.model.bridge, WordBridge):
            self.model.bridge.name_entries()

    def name_codes(self, quantised: bool = True) -> dict[str, float]:
        """The bridge's first lesson, without the language model; its accuracy by group of words.

        Not quantised, it goes past the learned codebook.
        """
        optim, vocabulary = self.config.optim, joint_vocabulary(self.clips.sources)
        if not optim.naming_steps or not vocabulary:
            return {}
        embeddings = self.model.llm.get_input_embeddings().weight.detach()
        loss = NamingLoss(embeddings, self.tokenizer, vocabulary).to(self.accelerator.device)
        lesson = NamingLesson(
            self.model.bridge,
            self.clips,
            loss,
            optim,
            self.config.data.budgets,
            self.config.seed,
            quantised,
            self.model.reducer,
        )
        schedule: Callable[[int], float] = lambda step: learning_rate_factor(  # noqa: E731
            step, optim.warmup_steps, optim.naming_steps
        )
        with progress("naming codes" if quantised else "naming", optim.naming_steps) as advance:
            lesson.run(schedule, lambda value: advance(f"loss {value:.3f}"))
        return lesson.accuracy(self.held_out, self.config.model.quantizer.default_budget)

    def step(self, step: int) -> dict[str, Any]:
        """One optimiser step; returns its record for the log."""
        began, optim = time.monotonic(), self.config.optim
        torch.manual_seed(self.config.seed + step)  # a codebook draws rows for its dead entries
        factor = learning_rate_factor(step, optim.warmup_steps, optim.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        budget = drawn_budget(self.config.data.budgets, self.config.seed, step)
        parts = [self._part(picks, budget, step) for picks in self._picks(step)]
        seconds = time.monotonic() - began
        return {
            "step": step + 1,
            "loss": round(float(np.mean([part["loss"] for part in parts])), 5),
            "exact_match": round(float(np.mean([part["exact_match"] for part in parts])), 4),
            "gradient_norm": round(parts[-1]["gradient_norm"], 4),
            "learning_rate": optim.learning_rate * factor,
            "budget": budget,
            "seconds": round(seconds, 3),
            "clips_per_s": round(optim.clips_per_step / seconds, 3),
        }

    def _part(self, picks: list[Pick], budget: int, step: int) -> dict[str, float]:
        """Forward and backward of one part of a step; the last part updates the weights."""
        batch = self._batch(picks, budget, step)
        norm = 0.0
        with self.accelerator.accumulate(self.replica):
            scores: Scores = self.replica(batch.clips, batch.packed)
            weight = self.config.optim.commitment_weight
            self.accelerator.backward(scores.loss + weight * scores.commitment)
            if self.accelerator.sync_gradients:
                limit = self.config.optim.max_grad_norm
                norm = float(self.accelerator.clip_grad_norm_(self.replica.parameters(), limit))
            self.stepper.step()
            self.stepper.zero_grad(set_to_none=True)
        exact = scores.correct.float().mean().item()
        return {"loss": scores.loss.item(), "exact_match": exact, "gradient_norm": norm}

    def _picks(self, step: int) -> list[list[Pick]]:
        """This process's clips of a step, in as many parts as gradients are accumulated."""
        optim, world = self.config.optim, self.accelerator.num_processes
        count = optim.clips_per_step
        picks = self.mixture.picks(step * count, (step + 1) * count)
        mine = picks[self.accelerator.process_index :: world]
        size = math.ceil(len(mine) / optim.accumulate)
        return [mine[place : place + size] for place in range(0, len(mine), size)]

    def _batch(self, picks: list[Pick], budget: int, step: int) -> _Batch:
        """Clips of a step with their questions, a pure function of seed, step and clips."""
        asked = []
        for pick in picks:
            key = [self.config.seed, step, pick.source, pick.number, pick.backwards]
            rng = np.random.default_rng(key)
            asked.append(self.clips.clip(pick).questions(rng, self.config.data.questions_per_clip))
        return self._assemble(self.clips, picks, budget, asked)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Exact match by teacher forcing on held-out clips at the default budget, by kind."""
        budget = self.config.model.quantizer.default_budget
        hits: dict[str, list[float]] = {}
        self.model.eval()
        for part in self.held_out.parts():
            asked = [
                self.held_out.clip(pick).one_question_per_kind(
                    np.random.default_rng([pick.source, pick.number, 1])
                )
                for pick in part
            ]
            batch = self._assemble(self.held_out, part, budget, asked)
            with self.accelerator.autocast():
                scores = self.model(batch.clips, batch.packed)
            for kind, hit in zip(batch.kinds, scores.correct.tolist(), strict=True):
                hits.setdefault(kind, []).append(hit)
        self.model.train()
        every = [hit for kind in hits.values() for hit in kind]
        shares = {kind: round(float(np.mean(hits[kind])), 4) for kind in sorted(hits)}
        return {"exact_match": round(float(np.mean(every)), 4), **shares}

    @torch.no_grad()
    def codebook_usage(self) -> dict[str, Any]:
        """How evenly held-out clips use a learned codebook; empty if there is none."""
        quantizer = self.config.model.quantizer
        if self.model.bridge.codebook is None:
            return {}
        self.model.eval()
        found = []
        for part in self.held_out.parts():
            clips = self.held_out.batch(part, quantizer.default_budget)
            coded = quantized(clips.to(self.accelerator.device), self.model.reducer)
            found.append(self.model.bridge(*coded).ids)
        self.model.train()
        return {"codebook": usage_report(torch.cat(found), quantizer.entries)}

    def _assemble(
        self,
        clips: TrainingClips,
        picks: list[Pick],
        budget: int,
        asked: list[list[QuestionAnswer]],
    ) -> _Batch:
        device = self.accelerator.device
        packed = pack(self.tokenizer, asked, budget * rows_per_code(self.config.model))
        packed = PackedBatch(
            *(part.to(device) for part in (packed.ids, packed.segment, packed.targets))
        )
        kinds = [item.kind for questions in asked for item in questions]
        return _Batch(clips.batch(picks, budget).to(device), packed, kinds)

    def save(self, step: int, record: dict[str, Any], due: bool) -> None:
        """Log a step and, if due, save so that the run can go on after a kill."""
        if not self.accelerator.is_main_process:
            return
        self.folder.log(record)  # before the save: lines past the last save are dropped on resume
        if due:
            self.folder.save(step, record, self.model, self.optimizer, self.position)


def _summary(record: dict[str, Any]) -> str:
    return (
        f"loss {record['loss']:.3f}  exact match {record['exact_match']:.1%}  "
        f"{record['clips_per_s']:.1f} clips/s"
    )
