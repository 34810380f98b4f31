"""The first minutes of training: the bridge alone learns to name what its codes show."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vqedge.config import OptimConfig
from vqedge.data.cache import QuantizedClips
from vqedge.data.mixture import Pick, drawn_budget
from vqedge.data.training import PatchLabels, TrainingClips, patch_labels
from vqedge.model.encoder import TrainedBridge
from vqedge.model.naming import NamingLoss
from vqedge.model.rows import Bridged

logger = logging.getLogger(__name__)


class NamingLesson:
    """Teaches a bridge to name the codes of labelled clips.

    Args:
        bridge: what learns, on its device.
        clips: what it learns from.
        loss: the naming loss, on the bridge's device.
        optim: steps, clips per step, learning rate.
        budgets: how many codes a step may have.
        seed: of the order and the budgets.
        quantised: through the learned codebook, if there is one; else past it, so that what it is
            to compare codes by is learned before it has entries.
    """

    def __init__(
        self,
        bridge: TrainedBridge,
        clips: TrainingClips,
        loss: NamingLoss,
        optim: OptimConfig,
        budgets: Sequence[int],
        seed: int,
        quantised: bool = True,
    ) -> None:
        self.bridge, self.clips, self.loss, self.optim = bridge, clips, loss, optim
        self.budgets, self.seed, self.quantised = budgets, seed, quantised
        self.mixture = clips.mixture(seed + 1)
        self.device = next(bridge.parameters()).device
        self.optimizer = torch.optim.AdamW(
            bridge.parameters(), betas=(0.9, 0.98), weight_decay=optim.naming_weight_decay
        )

    def run(
        self, schedule: Callable[[int], float], on_step: Callable[[float], None] = lambda _: None
    ) -> float:
        """All steps; `schedule` is the factor of the learning rate. Returns the last loss."""
        value = float("nan")
        for step in range(self.optim.naming_steps):
            for group in self.optimizer.param_groups:
                group["lr"] = self.optim.naming_learning_rate * schedule(step)
            value = self._step(step)
            on_step(value)
        logger.info("named codes: loss %.4f after %d steps", value, self.optim.naming_steps)
        return value

    def _step(self, step: int) -> float:
        count = self.optim.naming_clips_per_step
        picks = self.mixture.picks(step * count, (step + 1) * count)
        budget = drawn_budget(self.budgets, self.seed + 1, step)
        batch = self.clips.batch(picks, budget)
        names = self._labels(self.clips, picks).code_names(batch.indices, budget).to(self.device)
        rows, commitment = self._rows(batch)
        loss = self.loss(rows, names) + self.optim.commitment_weight * commitment
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.bridge.parameters(), self.optim.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()  # the language model's first step begins without gradients
        return float(loss.item())

    def _rows(self, batch: QuantizedClips) -> tuple[Tensor, Tensor]:
        """What the bridge says of each code, `[B, K, d]`, and the codebook's own loss."""
        codes, indices = batch.codes.float().to(self.device), batch.indices.long().to(self.device)
        if not self.quantised:
            return self.bridge.unquantised(codes, indices), codes.new_zeros(())
        bridged: Bridged = self.bridge(codes, indices)
        return self.bridge.by_code(bridged.tokens), bridged.commitment

    def _labels(self, clips: TrainingClips, picks: Sequence[Pick]) -> PatchLabels:
        config = self.bridge.config.encoder
        labelled = [clips.clip(pick) for pick in picks]
        return patch_labels(labelled, config.frames, config.grid, self.loss.vocabulary)

    @torch.no_grad()
    def accuracy(self, held_out: TrainingClips, budget: int) -> dict[str, float]:
        """Share of codes of held-out clips that are named right, by group."""
        picks = list(held_out.in_order())
        batch = held_out.batch(picks, budget)
        names = self._labels(held_out, picks).code_names(batch.indices, budget).to(self.device)
        shares = self.loss.accuracy(self._rows(batch)[0], names)
        return {group: round(share, 4) for group, share in shares.items()}
