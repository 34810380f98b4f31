"""Answers from a checkpoint in PyTorch: the reference that an exported bundle is compared with."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vqedge.base.weights import llm_weights
from vqedge.budget import Budget, codes_from_budget
from vqedge.config import QuantizerConfig
from vqedge.data.jsonl import FrameReader
from vqedge.data.suites import Item, frames_of
from vqedge.evaluate import Answerer, Reply
from vqedge.model.checkpoint import Checkpoint
from vqedge.model.continuations import Continuations
from vqedge.model.llm import mean_embeddings, tokenizer_from_gguf
from vqedge.model.vit import exact_float32
from vqedge.prompt import question_text
from vqedge.reducers import follows_question, reducer_of

MAX_TOKENS = 64  # as on the device
_TOGETHER = 8  # questions: each holds its own copy of what is read of the clip


class CheckpointAnswerer:
    """Evaluates a checkpoint in float32, by the rules of the device.

    Answers are greedy and never empty; of given choices the one with the largest log-likelihood,
    its end of turn included, is the answer.

    Args:
        checkpoint: what to evaluate.
        read: how files are decoded.
        budget: most tokens to use, or "auto"; the checkpoint's default if not given.

    Raises:
        ConfigError: the checkpoint does not take this budget.
    """

    def __init__(
        self, checkpoint: Checkpoint, read: FrameReader, budget: Budget | None = None
    ) -> None:
        self.config, self.read = checkpoint.config, read
        self.budget = checked_budget(self.config.quantizer, budget)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            exact_float32()
        self.encoder = checkpoint.encoder().to(self.device)
        self.llm = checkpoint.llm().to(self.device)
        gguf = llm_weights(self.config.llm, checkpoint.path).path
        self.tokenizer = tokenizer_from_gguf(gguf, self.config.llm.system)
        self.shuffled = self.blind = False

    @property
    def backend(self) -> dict[str, str]:
        """What runs where."""
        device = self.device.type.upper()
        return {"encoder": f"PyTorch {device} fp32", "llm": f"transformers {device} fp32"}

    @property
    def tokens_before(self) -> int:
        """Patches of a clip."""
        return self.config.encoder.patches

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.config.encoder.frames

    def perturbed(self) -> dict[str, Answerer]:
        """The same weights, shown less: what an answer needs becomes visible without training."""
        shuffled, blind = copy.copy(self), copy.copy(self)
        shuffled.shuffled, blind.blind = True, True
        return {"shuffled frames": shuffled, "blind": blind}

    @torch.inference_mode()
    def replies(self, items: Sequence[Item]) -> Iterator[Reply]:
        """Answer questions about one clip: it is encoded and read once, and they go together.

        Where tokens follow the question, it is encoded and read for each of them.

        Raises:
            VideoError: the clip is a file that cannot be decoded.
            PromptError: a question is empty.
        """
        for item in items:
            question_text(item.question)
        alone = follows_question(self.config.quantizer.kind)
        for group in [[item] for item in items] if alone else [items]:
            yield from self._replies(group)

    def _replies(self, items: Sequence[Item]) -> Iterator[Reply]:
        """Answers to questions that share what is read of the clip."""
        questions = [self._embedded(self.tokenizer.question(item.question)) for item in items]
        rows = self._rows(items[0])
        context = Continuations(self.llm)
        context.read([torch.cat([self._embedded(self.tokenizer.before_video), rows])])
        for first in range(0, len(items), _TOGETHER):
            part = slice(first, first + _TOGETHER)
            for text in self._answers(context, items[part], questions[part]):
                yield Reply(text, len(rows))

    def _answers(
        self, context: Continuations, items: Sequence[Item], questions: Sequence[Tensor]
    ) -> list[str]:
        """Answers to a batch of questions after one prefix."""
        asked = context.fork([0] * len(items))
        last = torch.stack([states[-1] for states in asked.read(questions)])
        free = [row for row, item in enumerate(items) if not item.choices]
        found = dict(zip(free, self._generated(asked, free, last), strict=True))
        for row, item in enumerate(items):
            if item.choices:
                found[row] = self._likeliest(asked, row, last[row], item.choices)
        return [found[row] for row in range(len(items))]

    def _rows(self, item: Item) -> Tensor:
        """The clip's tokens, float `[K, d]`."""
        if self.blind:
            return self._embedded([])
        size = self.config.encoder.size
        frames = frames_of(item.clip, self.frames, size, self.read, self.shuffled)
        budget = torch.tensor(self.budget, device=self.device)
        return self.encoder(
            torch.from_numpy(frames).to(self.device), budget, self.text_of(item)
        ).read

    def text_of(self, item: Item) -> Tensor | None:
        """An item's question as tokens follow it, float32 `[d]`; None where they do not."""
        if not follows_question(self.config.quantizer.kind):
            return None
        ids = torch.tensor([self.tokenizer.words(item.question)], device=self.device)
        return mean_embeddings(self.llm, ids)[0]

    def _generated(self, asked: Continuations, rows: Sequence[int], last: Tensor) -> list[str]:
        """Greedy texts until the ends of their turns, after hidden states `last [B, d]`."""
        texts = {row: list[int]() for row in rows}
        running, asked = list(rows), asked.fork(rows)
        scores = asked.log_probabilities(last[running])
        scores[:, self.tokenizer.end] = -torch.inf  # an answer is never empty
        while running:
            best = dict(zip(running, scores.argmax(dim=1).tolist(), strict=True))
            for row in running:
                if best[row] != self.tokenizer.end:
                    texts[row].append(best[row])
            going = [row for row in running if self._goes_on(best[row], texts[row])]
            if going != running:
                asked = asked.fork([running.index(row) for row in going])
                running = going
            if running:
                states = asked.read([self._embedded([best[row]]) for row in running])
                scores = asked.log_probabilities(torch.cat(states))
        return [self.tokenizer.tokenizer.decode(tokens).lstrip() for tokens in texts.values()]

    def _goes_on(self, last: int, text: Sequence[int]) -> bool:
        return last != self.tokenizer.end and len(text) < MAX_TOKENS

    def _likeliest(
        self, asked: Continuations, row: int, last: Tensor, choices: Sequence[str]
    ) -> str:
        """The choice with the largest log-likelihood after a row of questions, first of equals."""
        answers = [self.tokenizer.answer(choice.strip()) for choice in choices]
        spoken = asked.fork([row] * len(choices))
        states = spoken.read([self._embedded(ids[:-1]) for ids in answers])
        totals = []
        for ids, after in zip(answers, states, strict=True):
            scores = spoken.log_probabilities(torch.cat([last[None], after]))
            wanted = torch.tensor(ids, device=self.device)[:, None]
            totals.append(float(scores.gather(1, wanted).sum()))
        return choices[totals.index(max(totals))]

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        """Input embeddings, `[n, d]`."""
        embedded: Tensor = self.llm.get_input_embeddings()(
            torch.tensor(ids, dtype=torch.int64, device=self.device)
        )
        return embedded


def checked_budget(
    quantizer: QuantizerConfig, budget: Budget | None, whose: str = "this checkpoint"
) -> int:
    """The most codes of a clip, see `codes_from_budget`.

    Raises:
        ConfigError: the checkpoint does not take this budget.
    """
    return codes_from_budget(
        budget,
        quantizer.codes,
        quantizer.default_budget,
        adapts=reducer_of(quantizer.kind) is None,  # a reducer cannot tell how many a clip needs
        only_default=follows_question(quantizer.kind),
        whose=whose,
    )
