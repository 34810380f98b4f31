"""Answers from a checkpoint in PyTorch: the reference that an exported bundle is compared with."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vqedge.base.weights import llm_weights
from vqedge.budget import ADAPTIVE, Budget
from vqedge.config import QuantizerConfig
from vqedge.data.jsonl import FrameReader
from vqedge.data.suites import Item, frames_of
from vqedge.errors import ConfigError
from vqedge.evaluate import Answerer, Reply
from vqedge.model.checkpoint import Checkpoint
from vqedge.model.llm import tokenizer_from_gguf
from vqedge.reducers import reducer_of

_MAX_TOKENS = 64  # as on the device


class CheckpointAnswerer:
    """Evaluates a checkpoint in float32, by the rules of the device.

    Answers are greedy and never empty; of given choices the one with the largest log-likelihood,
    its end of turn included, is the answer.

    Args:
        checkpoint: what to evaluate.
        read: how files are decoded.
        budget: most tokens to use, or "auto"; the checkpoint's default if not given.

    Raises:
        ConfigError: the budget is out of range.
    """

    def __init__(
        self, checkpoint: Checkpoint, read: FrameReader, budget: Budget | None = None
    ) -> None:
        self.config, self.read = checkpoint.config, read
        self.budget = checked_budget(self.config.quantizer, budget)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.encoder = checkpoint.encoder().to(self.device)
        self.llm = checkpoint.llm().to(self.device)
        gguf = llm_weights(self.config.llm, checkpoint.path).path
        self.tokenizer = tokenizer_from_gguf(gguf, self.config.llm.system)
        self.shuffled = self.blind = False
        self._clip: Any = None
        self._context = _Context(self.llm)
        self._prefix = self._tokens = 0

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
        shuffled, blind = self._unread(), self._unread()
        shuffled.shuffled, blind.blind = True, True
        return {"shuffled frames": shuffled, "blind": blind}

    @torch.inference_mode()
    def reply(self, item: Item) -> Reply:
        """Answer one question; a clip is encoded and read once.

        Raises:
            VideoError: the clip is a file that cannot be decoded.
            PromptError: the question is empty.
        """
        question = self.tokenizer.question(item.question)
        if item.clip != self._clip:
            self._read_clip(item)
        first = self._context.read(self._embedded(question))[-1]
        text = self._likeliest(item.choices, first) if item.choices else self._generated(first)
        self._context.forget_after(self._prefix)
        return Reply(text, self._tokens)

    def _unread(self) -> CheckpointAnswerer:
        """A copy that shares the models and has read nothing."""
        other = copy.copy(self)
        other._clip = None
        return other

    def _read_clip(self, item: Item) -> None:
        """Begin a new context with the template and the clip's rows."""
        before, rows = self._embedded(self.tokenizer.before_video), self._rows(item)
        self._context = _Context(self.llm)
        self._context.read(torch.cat([before, rows]))
        self._clip, self._prefix = item.clip, self._context.length
        self._tokens = len(rows)

    def _rows(self, item: Item) -> Tensor:
        """The clip's tokens, float `[K, d]`."""
        if self.blind:
            return self._embedded([])
        size = self.config.encoder.size
        frames = frames_of(item.clip, self.frames, size, self.read, self.shuffled)
        budget = torch.tensor(self.budget, device=self.device)
        encoded = self.encoder(torch.from_numpy(frames).to(self.device), budget)
        return encoded.tokens[encoded.mask if encoded.row_mask is None else encoded.row_mask]

    def _generated(self, scores: Tensor) -> str:
        """Greedy text until the end of the turn."""
        ids: list[int] = []
        scores[self.tokenizer.end] = -torch.inf  # an answer is never empty
        while len(ids) < _MAX_TOKENS and (best := int(scores.argmax())) != self.tokenizer.end:
            ids.append(best)
            scores = self._context.read(self._embedded([best]))[-1]
        text: str = self.tokenizer.tokenizer.decode(ids)
        return text

    def _likeliest(self, choices: Sequence[str], first: Tensor) -> str:
        """The choice with the largest log-likelihood, the first of equals."""
        asked = self._context.length
        totals = []
        for choice in choices:
            ids = torch.tensor(self.tokenizer.answer(choice.strip()), device=self.device)
            scores = self._context.read(self._embedded(ids[:-1].tolist()), keep=len(ids) - 1)
            scores = torch.cat([first[None], scores])
            totals.append(float(scores.gather(1, ids[:, None]).sum()))
            self._context.forget_after(asked)
        return choices[totals.index(max(totals))]

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        """Input embeddings, `[n, d]`."""
        embedded: Tensor = self.llm.get_input_embeddings()(
            torch.tensor(ids, dtype=torch.int64, device=self.device)
        )
        return embedded


class _Context:
    """A language model and what it has read so far."""

    def __init__(self, llm: Any) -> None:
        self.llm, self.length = llm, 0
        self._cache: Any = None

    def read(self, rows: Tensor, keep: int = 1) -> Tensor:
        """Read embeddings `[n, d]`; log-probabilities after the last `keep`, float64."""
        output = self.llm(
            inputs_embeds=rows[None],
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=keep,
        )
        self._cache, self.length = output.past_key_values, self.length + len(rows)
        scores: Tensor = output.logits[0].double().log_softmax(-1)
        return scores

    def forget_after(self, length: int) -> None:
        """Keep the first `length` positions only."""
        self._cache.crop(length)
        self.length = length


def checked_budget(quantizer: QuantizerConfig, budget: Budget | None) -> int:
    """The budget as the encoder takes it: the default one, or the given one if it can work.

    Raises:
        ConfigError: it is out of range, or "auto" where nothing adapts.
    """
    if budget is None:
        return quantizer.default_budget
    if budget == "auto":
        if reducer_of(quantizer.kind) is not None:  # it cannot tell how many codes a clip needs
            raise ConfigError(f"--budget auto: the quantizer {quantizer.kind!r} needs a number")
        return ADAPTIVE
    if not 1 <= budget <= quantizer.codes:
        raise ConfigError(f"--budget {budget}: this checkpoint takes 1 to {quantizer.codes} tokens")
    return budget
