"""What a run has before its first step: another checkpoint's weights, or the naming lesson."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vqedge.data.training import TrainingClips, joint_vocabulary
from vqedge.model.checkpoint import start_from
from vqedge.model.codebook import fit_codebook
from vqedge.model.llm import PromptTokenizer
from vqedge.model.naming import NamingLoss
from vqedge.model.vlm import VideoLanguageModel
from vqedge.model.word_bridge import WordBridge
from vqedge.progress import progress
from vqedge.recipe import TrainConfig
from vqedge.training.naming_lesson import NamingLesson
from vqedge.training.schedule import learning_rate_factor

_CODEBOOK_ROWS = 100_000  # that a learned codebook starts from


class Beginning:
    """Gives a model what it begins with.

    Args:
        config: the run.
        model: on its device.
        tokenizer: of its language model.
        clips: what it is trained on.
        held_out: what it is looked at with.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: VideoLanguageModel,
        tokenizer: PromptTokenizer,
        clips: TrainingClips,
        held_out: TrainingClips,
    ) -> None:
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.clips, self.held_out = clips, held_out
        self.device = next(model.parameters()).device

    def begin(self) -> dict[str, float]:
        """All of it; how many codes are named right by group of words, if there was a lesson."""
        torch.manual_seed(self.config.seed)
        codebook = self.model.bridge.codebook
        narrows = codebook is not None and codebook.narrow is not None
        if not narrows:
            self._fit_codebook()
        init, parts = self.config.init, (self.model.bridge, self.model.llm, self.model.reducer)
        if init is not None and start_from(init, self.config.model, *parts):
            return {}
        if narrows:  # its tables are of features that are learned first
            self._name_codes(quantised=False)
            self._fit_codebook()
        return self._name_codes()

    def _fit_codebook(self) -> None:
        """Tables of a learned codebook from the codes that there are."""
        codebook, quantizer = self.model.bridge.codebook, self.config.model.quantizer
        if codebook is None:
            return
        codes = self.clips.codes(quantizer.default_budget)
        drawn = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))
        rows = codes[drawn[:_CODEBOOK_ROWS]].float()
        with torch.no_grad():  # tables are made on the CPU: the same in all processes
            seen = codebook.seen(rows.to(self.device)).cpu()
        tables = fit_codebook(seen, quantizer.levels, quantizer.entries, seed=self.config.seed)
        codebook.tables.data.copy_(tables)
        if isinstance(self.model.bridge, WordBridge):
            self.model.bridge.name_entries()

    def _name_codes(self, quantised: bool = True) -> dict[str, float]:
        """The bridge's first lesson, without the language model; its accuracy by group of words.

        Not quantised, it goes past the learned codebook.
        """
        optim, vocabulary = self.config.optim, joint_vocabulary(self.clips.sources)
        if not optim.naming_steps or not vocabulary:
            return {}
        embeddings = self.model.llm.get_input_embeddings().weight.detach()
        lesson = NamingLesson(
            self.model.bridge,
            self.clips,
            NamingLoss(embeddings, self.tokenizer, vocabulary).to(self.device),
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
