"""Answers from a checkpoint in PyTorch: the reference that an exported bundle is compared with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vqedge.base.fetch import fetch
from vqedge.data.suites import Item, Scene
from vqedge.errors import ConfigError, DatasetError
from vqedge.evaluate import Reply
from vqedge.model.checkpoint import Checkpoint
from vqedge.model.llm import tokenizer_from_gguf

_MAX_TOKENS = 16


class CheckpointAnswerer:
    """Evaluates a checkpoint on generated clips, greedy, float32.

    Args:
        checkpoint: what to evaluate.
        budget: most tokens to use; all codes if not given.

    Raises:
        ConfigError: the budget is out of range.
    """

    def __init__(self, checkpoint: Checkpoint, budget: int | None = None) -> None:
        config, codes = checkpoint.config, checkpoint.config.quantizer.codes
        if budget is not None and not 1 <= budget <= codes:
            raise ConfigError(f"--budget {budget}: this checkpoint takes 1 to {codes} tokens")
        self.config, self.budget = config, budget or codes
        self.encoder, self.llm = checkpoint.encoder(), checkpoint.llm()
        self.tokenizer = tokenizer_from_gguf(fetch(config.llm.source).path)
        self._clip: Any = None
        self._rows = torch.empty(0)

    @property
    def backend(self) -> dict[str, str]:
        """What runs where."""
        return {"encoder": "PyTorch CPU fp32", "llm": "transformers CPU fp32"}

    @property
    def tokens_before(self) -> int:
        """Patches of a clip."""
        return self.config.encoder.patches

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.config.encoder.frames

    @torch.inference_mode()
    def reply(self, item: Item) -> Reply:
        """Answer one question about a generated clip.

        Raises:
            DatasetError: the item is about a file; those are for bundles.
        """
        if not isinstance(item.clip, Scene) or item.choices:
            raise DatasetError(
                "--checkpoint evaluates the synthetic suite only; use a bundle (-m) for files"
            )
        if item.clip != self._clip:
            frames = torch.from_numpy(item.clip.frames(self.frames, self.config.encoder.size))
            encoded = self.encoder(frames, torch.tensor(self.budget))
            self._clip, self._rows = item.clip, encoded.tokens[encoded.mask]
        ids = self._generate(self.tokenizer.question(item.question))
        return Reply(self.tokenizer.tokenizer.decode(ids), len(self._rows))

    def _generate(self, question: list[int]) -> list[int]:
        """Greedy ids until the end of the turn."""
        rows = torch.cat(
            [self._embedded(self.tokenizer.before_video), self._rows, self._embedded(question)]
        )
        ids: list[int] = []
        cache = None
        while len(ids) < _MAX_TOKENS:
            output = self.llm(inputs_embeds=rows[None], past_key_values=cache, use_cache=True)
            best = int(output.logits[0, -1].argmax())
            if best == self.tokenizer.end:
                break
            ids.append(best)
            rows, cache = self._embedded([best]), output.past_key_values
        return ids

    def _embedded(self, ids: list[int]) -> Tensor:
        embedded: Tensor = self.llm.get_input_embeddings()(torch.tensor(ids))
        return embedded
