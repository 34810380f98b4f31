"""The bridge's first lesson: a row should look like the words for what its code shows.

Rows are compared with the language model's own input embeddings of those words, so that the frozen
model can read something from the first step on. Cheap: the language model itself does not run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.data.naming import GROUPS, UNNAMED
from vqedge.model.llm import PromptTokenizer


class NamingLoss(nn.Module):
    """Cross-entropy of every named code over the words of each group.

    Args:
        embeddings: the language model's input embeddings, `[vocab, d]`.
        tokenizer: to find the words.
    """

    def __init__(self, embeddings: Tensor, tokenizer: PromptTokenizer) -> None:
        super().__init__()
        for number, words in enumerate(GROUPS):
            rows = torch.stack([_word_embedding(embeddings, tokenizer, word) for word in words])
            self.register_buffer(f"group{number}", rows - rows.mean(dim=0))

    def forward(self, rows: Tensor, names: Tensor) -> Tensor:
        """Mean loss over the groups.

        Args:
            rows: the bridge's tokens `[B, K, d]`.
            names: int64 `[B, K, groups]` from `vqedge.data.naming.code_names`.
        """
        losses = [
            F.cross_entropy(
                logits.flatten(0, 1), names[..., number].flatten(), ignore_index=UNNAMED
            )
            for number, logits in enumerate(self.logits(rows))
        ]
        named = [loss for loss in losses if not loss.isnan()]
        return torch.stack(named).mean() if named else 0.0 * rows.sum()

    def logits(self, rows: Tensor) -> list[Tensor]:
        """Similarity of every row to the words of each group, `[B, K, words]` a group."""
        return [rows @ getattr(self, f"group{number}").T for number in range(len(GROUPS))]

    @torch.no_grad()
    def accuracy(self, rows: Tensor, names: Tensor) -> dict[str, float]:
        """Share of named codes whose likeliest word is the right one, by the group's first word."""
        shares = {}
        for number, logits in enumerate(self.logits(rows)):
            named = names[..., number] != UNNAMED
            right = logits.argmax(-1)[named] == names[..., number][named]
            shares[GROUPS[number][0]] = float(right.float().mean())
        return shares


def _word_embedding(embeddings: Tensor, tokenizer: PromptTokenizer, word: str) -> Tensor:
    """Mean embedding of the word's first token inside a sentence and at the start of an answer."""
    ids = [
        tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"][0]
        for text in (word, f" {word}")
    ]
    return embeddings[ids].float().mean(dim=0)
