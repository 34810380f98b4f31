"""Many continuations of one prompt, read together by a language model in PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vqedge.model.llm import decoder_of


class Continuations:
    """Texts that a causal model has read so far, one a row, each as if it were read alone.

    Rows of a batch are padded at their ends; what is padding is never attended to and takes no
    position, so that a row's numbers are those of reading it alone, up to rounding.

    Args:
        llm: a causal model without adapter, or with it merged.
    """

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self._cache: Any = None
        self._read = torch.ones(1, 0, dtype=torch.bool, device=llm.device)

    def fork(self, rows: Sequence[int]) -> Continuations:
        """New continuations that begin with what these rows have read; a row may occur again."""
        index = torch.tensor(rows, dtype=torch.int64, device=self._read.device)
        other = Continuations(self.llm)
        other._cache, other._read = copy.deepcopy(self._cache), self._read[index]
        if other._cache is not None:
            other._cache.batch_select_indices(index)
        return other

    def read(self, rows: Sequence[Tensor]) -> list[Tensor]:
        """Read on.

        Args:
            rows: embeddings `[n, d]` for every row, n at least 1 and not alike.

        Returns:
            last hidden states `[n, d]` of every row, after the final norm.
        """
        lengths = [len(row) for row in rows]
        embeddings = pad_sequence(list(rows), batch_first=True)
        columns = torch.arange(embeddings.shape[1], device=embeddings.device)
        fresh = columns < torch.tensor(lengths, device=embeddings.device)[:, None]
        before = self._read.sum(dim=1, keepdim=True)
        self._read = torch.cat([self._read, fresh], dim=1)
        output = decoder_of(self.llm)(
            inputs_embeds=embeddings,
            attention_mask=self._read.long(),
            position_ids=before + columns,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._cache = output.past_key_values
        states = output.last_hidden_state
        return [row[:length] for row, length in zip(states, lengths, strict=True)]

    def log_probabilities(self, states: Tensor) -> Tensor:
        """Log-probabilities of the next token after states `[n, d]`: float64 `[n, vocabulary]`."""
        scores: Tensor = self.llm.get_output_embeddings()(states)
        return scores.double().log_softmax(-1)
