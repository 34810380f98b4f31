"""What a run has before its first step: another checkpoint's weights, or the naming lesson."""

from __future__ import annotations

import torch
from accelerate import Accelerator

from vqedge.model.checkpoint import start_from
from vqedge.model.codebook import fit_codebook
from vqedge.model.llm import PromptTokenizer
from vqedge.model.naming import NamingLoss
from vqedge.model.vlm import VideoLanguageModel
from vqedge.model.word_bridge import WordBridge
from vqedge.progress import Clock, progress
from vqedge.recipe import TrainConfig
from vqedge.training.dataset import TrainingClips, joint_vocabulary
from vqedge.training.folder import RunFolder
from vqedge.training.naming_lesson import NamingLesson
from vqedge.training.processes import anyone

_CODEBOOK_ROWS = 100_000  # that a learned codebook starts from
_PAST_CODEBOOK, _NAMING = "naming", "naming codes"


class Beginning:
    """Gives a model what it begins with.

    Args:
        config: the run.
        folder: of the run; lessons are saved in it as they go on.
        model: on its device.
        tokenizer: of its language model.
        clips: what it is trained on.
        held_out: what it is looked at with.
        accelerator: the processes, which all do the same.
        clock: when to save and stop.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        model: VideoLanguageModel,
        tokenizer: PromptTokenizer,
        clips: TrainingClips,
        held_out: TrainingClips,
        accelerator: Accelerator,
        clock: Clock,
    ) -> None:
        self.config, self.folder, self.model, self.tokenizer = config, folder, model, tokenizer
        self.clips, self.held_out = clips, held_out
        self.accelerator, self.clock = accelerator, clock
        self.device = next(model.parameters()).device

    def begin(self) -> dict[str, float] | None:
        """All of it, or the rest where a lesson was saved.

        Returns:
            how many codes are named right by group of words, if there was a lesson; None if time
            ran out on the way.
        """
        saved = self.folder.lesson()
        torch.manual_seed(self.config.seed)
        codebook = self.model.bridge.codebook
        narrows = codebook is not None and codebook.narrow is not None
        if not narrows:
            self._fit_codebook()
        init, parts = self.config.init, (self.model.bridge, self.model.llm, self.model.reducer)
        if init is not None and start_from(init, self.config.model, *parts):
            return {}
        if narrows and (saved is None or saved[0] == _PAST_CODEBOOK):
            # its tables are of features that are learned first
            if not self._name_codes(_PAST_CODEBOOK, saved):
                return None
            saved = None
            self._fit_codebook()
        if not self._name_codes(_NAMING, saved):
            return None
        return self._accuracy()

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

    def _name_codes(self, name: str, saved: tuple[str, int] | None) -> bool:
        """The bridge's first lesson, without the language model, from where it was saved.

        Returns:
            whether it came to its end.
        """
        lesson, optim = self._lesson(quantised=name == _NAMING), self.config.optim
        if lesson is None:
            return True
        first = 0
        if saved is not None:
            first = saved[1]
            self.folder.restore_lesson(self.model, lesson.optimizer)
        speaks, unit = self.accelerator.is_main_process, ("clips", optim.naming_clips_per_step)
        with progress(name, optim.naming_steps, first, speaks, unit) as advance:

            def on_step(step: int, loss: float) -> bool:
                advance(f"loss {loss:.3f}")
                stop = anyone(self.clock.is_up(), self.accelerator)
                due = step % self.config.save_every == 0
                if speaks and (stop or due):
                    self.folder.save_lesson(name, step, self.model, lesson.optimizer)
                if speaks and due:  # after the save, so that no step is logged twice
                    self.folder.log({"lesson": name, "lesson_step": step, "loss": round(loss, 5)})
                return stop

            return lesson.run(first, on_step)

    def _accuracy(self) -> dict[str, float]:
        lesson = self._lesson()
        budget = self.config.model.quantizer.default_budget
        return {} if lesson is None else lesson.accuracy(self.held_out.labelled(), budget)

    def _lesson(self, quantised: bool = True) -> NamingLesson | None:
        """None where there is nothing to name; not quantised, it goes past the codebook.

        Clips without labels take no part: all that they show would be named "background".
        """
        optim, vocabulary = self.config.optim, joint_vocabulary(self.clips.sources)
        if not optim.naming_steps or not vocabulary:
            return None
        embeddings = self.model.llm.get_input_embeddings().weight.detach()
        return NamingLesson(
            self.model.bridge,
            self.clips.labelled(),
            NamingLoss(embeddings, self.tokenizer, vocabulary).to(self.device),
            optim,
            self.config.budgets,
            self.config.seed,
            quantised,
            self.model.reducer,
        )
