"""The bridge's first lesson: a row should look like the words for what its code shows.

Rows are compared with the language model's own input embeddings of those words, so that the frozen
model can read them from the first step on. Cheap: the language model itself does not run.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.data.clips import UNNAMED, Vocabulary
from vqedge.model.llm import PromptTokenizer

_SHARPNESS = 30.0  # of the softmax over cosines; a row looks like several words at once
_NOTHING = "background"  # what a row without words looks like


class NamingLoss(nn.Module):
    """How far rows are from the words for what they show.

    Two parts: the cross-entropy of every named code over the words of each group, and the cosine
    distance between a row and the sum of its words' embeddings. The first alone is content with a
    tenth of the row; the rest is noise to the language model. Directions are compared, not lengths.

    Args:
        embeddings: the language model's input embeddings, `[vocab, d]`.
        tokenizer: to find the words.
        vocabulary: the words of every group.
    """

    def __init__(
        self, embeddings: Tensor, tokenizer: PromptTokenizer, vocabulary: Vocabulary
    ) -> None:
        super().__init__()
        self.vocabulary = dict(vocabulary)
        self.groups = tuple(vocabulary)
        for group, words in vocabulary.items():
            rows = torch.stack([_word_embedding(embeddings, tokenizer, word) for word in words])
            self.register_buffer(group, F.normalize(rows - rows.mean(dim=0), dim=1))
            nothing = rows.new_zeros(1, rows.shape[1])  # what UNNAMED, -1, adds to a sum
            self.register_buffer(f"{group}_words", torch.cat([rows, nothing]))
        self.register_buffer("nothing", _word_embedding(embeddings, tokenizer, _NOTHING))

    def forward(self, rows: Tensor, names: Tensor) -> Tensor:
        """Both parts, the first as mean over the groups.

        Args:
            rows: the bridge's tokens `[B, K, d]`.
            names: int64 `[B, K, groups]` from `vqedge.training.dataset.PatchLabels.code_names`.
        """
        wanted = names.flatten(0, 1)
        sums = [
            F.cross_entropy(
                logits.flatten(0, 1), wanted[:, number], ignore_index=UNNAMED, reduction="sum"
            )
            for number, logits in enumerate(self.logits(rows))
        ]
        counts = (wanted != UNNAMED).sum(dim=0)
        means = torch.stack(sums) / counts.clamp(min=1)
        sharp = means.sum() / (counts > 0).sum().clamp(min=1)  # of groups that name something
        return sharp + self.distance(rows, names)

    def distance(self, rows: Tensor, names: Tensor) -> Tensor:
        """Mean cosine distance of rows `[B, K, d]` from the sums of their words."""
        wanted = torch.stack(
            [
                self.get_buffer(f"{group}_words")[names[..., number]]
                for number, group in enumerate(self.groups)
            ]
        ).sum(dim=0)
        unnamed = (names == UNNAMED).all(dim=-1, keepdim=True)
        wanted = torch.where(unnamed, self.get_buffer("nothing"), wanted)
        return (1.0 - F.cosine_similarity(rows, wanted, dim=-1)).mean()

    def logits(self, rows: Tensor) -> list[Tensor]:
        """Similarity of every row to the words of each group, `[B, K, words]` a group."""
        unit = F.normalize(rows, dim=-1) * _SHARPNESS
        return [unit @ self.get_buffer(group).T for group in self.groups]

    @torch.no_grad()
    def right(self, rows: Tensor, names: Tensor) -> dict[str, Tensor]:
        """Whether the likeliest word of each named code is the right one, bool `[n]` by group."""
        found = {}
        for number, logits in enumerate(self.logits(rows)):
            named = names[..., number] != UNNAMED
            found[self.groups[number]] = logits.argmax(-1)[named] == names[..., number][named]
        return found


def _word_embedding(embeddings: Tensor, tokenizer: PromptTokenizer, word: str) -> Tensor:
    """Mean embedding of the word's tokens inside a sentence and at the start of an answer."""
    ids = [
        piece
        for text in (word, f" {word}")
        for piece in tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    return embeddings[ids].float().mean(dim=0)
