"""The first minutes of training: the bridge alone learns to name what its codes show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vqedge.data.mixture import Pick, drawn_budget
from vqedge.model.batch import ClipBatch, QuantizedBatch
from vqedge.model.encoder import TrainedBridge
from vqedge.model.hash_dropout import HashDropout
from vqedge.model.naming import NamingLoss
from vqedge.model.rows import Bridged
from vqedge.model.trained_reducer import TrainedReducer, quantized
from vqedge.recipe import OptimConfig
from vqedge.training.ahead import Ahead
from vqedge.training.dataset import PatchLabels, TrainingClips, patch_labels
from vqedge.training.schedule import learning_rate_factor, require_finite


class _Shown(NamedTuple):
    """Clips and what their patches show."""

    clips: ClipBatch  # on the bridge's device
    labels: PatchLabels  # on the CPU
    names: Tensor | None  # of every code, int64 [B, K, groups]; None where codes are made anew


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
        reducer: learns too, where codes are not kept.
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
        reducer: TrainedReducer | None = None,
    ) -> None:
        self.bridge, self.clips, self.loss, self.optim = bridge, clips, loss, optim
        self.budgets, self.seed, self.quantised = budgets, seed, quantised
        self.reducer = reducer
        self.mixture = clips.mixture(seed + 1)
        self.device = next(bridge.parameters()).device
        self.trained = [*bridge.parameters(), *(reducer.parameters() if reducer else ())]
        self.optimizer = torch.optim.AdamW(
            self.trained, betas=(0.9, 0.98), weight_decay=optim.naming_weight_decay
        )

    def run(
        self,
        first: int = 0,
        on_step: Callable[[int, float], bool] = lambda *_: False,
    ) -> bool:
        """All steps that are left.

        Args:
            first: steps that were taken before.
            on_step: told how many steps there were and the last one's loss; says whether to stop.

        Returns:
            whether the lesson came to its end.

        Raises:
            ConfigError: gradients are not finite.
        """
        optim = self.optim
        with Ahead(self._shown_at, optim.naming_steps) as ready:
            for step in range(first, optim.naming_steps):
                torch.manual_seed(self.seed + step)  # a codebook draws rows for its dead entries
                factor = learning_rate_factor(step, optim.warmup_steps, optim.naming_steps)
                for group in self.optimizer.param_groups:
                    group["lr"] = optim.naming_learning_rate * factor
                value = self._step(step, ready)
                if on_step(step + 1, value):
                    return False
        return True

    def _shown_at(self, step: int) -> _Shown:
        """Runs in another thread: reads no weights, draws no numbers of torch."""
        count = self.optim.naming_clips_per_step
        picks = self.mixture.picks(step * count, (step + 1) * count)
        return self._shown(self.clips, picks, drawn_budget(self.budgets, self.seed + 1, step))

    def _shown(self, clips: TrainingClips, picks: Sequence[Pick], budget: int) -> _Shown:
        config, vocabulary = self.bridge.config.encoder, self.loss.vocabulary
        labelled = [clips.clip(pick) for pick in picks]
        labels = patch_labels(labelled, config.frames, config.grid, vocabulary)
        batch, names = clips.batch(picks, budget), None
        if batch.indices is not None:  # codes are kept: what they show is known before the step
            names = self._code_names(labels, batch.indices, batch.rows.shape[1])
        return _Shown(batch.to(self.device), labels, names)

    def _step(self, step: int, ready: Ahead[_Shown]) -> float:
        shown = ready(step)
        clips = quantized(shown.clips, self.reducer)
        names = self._names(shown, clips)
        rows, commitment = self._rows(clips)
        loss = self.loss(rows, names) + self.optim.commitment_weight * commitment
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.optim.max_grad_norm)
        require_finite(float(norm), f"naming step {step + 1}", "optim.naming_learning_rate")
        self.optimizer.step()
        self.optimizer.zero_grad()  # the language model's first step begins without gradients
        return float(loss.item())

    def _rows(self, clips: QuantizedBatch) -> tuple[Tensor, Tensor]:
        """What the bridge says of each code, `[B, K, d]`, and the codebook's own loss."""
        if not self.quantised:
            return self.bridge.unquantised(*clips), clips.codes.new_zeros(())
        bridged: Bridged = self.bridge(*clips)
        return self.bridge.by_code(bridged.tokens), bridged.commitment

    def _names(self, shown: _Shown, coded: QuantizedBatch) -> Tensor:
        """What every code shows, int64 `[B, K, groups]`."""
        if shown.names is not None:
            return shown.names
        return self._code_names(shown.labels, coded.indices.cpu(), coded.codes.shape[1])

    def _code_names(self, labels: PatchLabels, indices: Tensor, codes: int) -> Tensor:
        return labels.code_names(indices, codes, self.optim.naming_share).to(self.device)

    @torch.no_grad()
    def accuracy(self, held_out: TrainingClips, budget: int) -> dict[str, float]:
        """Share of codes of held-out clips that are named right, by group."""
        drawing = [part for part in self.bridge.modules() if isinstance(part, HashDropout)]
        asleep = [*drawing, *([self.reducer] if self.reducer else [])]
        for part in asleep:
            part.eval()
        found: dict[str, list[Tensor]] = {}
        for picks in held_out.parts():
            shown = self._shown(held_out, picks, budget)
            clips = quantized(shown.clips, self.reducer)
            names = self._names(shown, clips)
            for group, right in self.loss.right(self._rows(clips)[0], names).items():
                found.setdefault(group, []).append(right)
        for part in asleep:
            part.train()
        hits = {group: torch.cat(parts).float() for group, parts in found.items()}
        return {group: round(float(all_.mean()), 4) for group, all_ in hits.items() if len(all_)}
