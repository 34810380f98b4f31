"""Everything that training reads, in memory: quantised clips by budget, questions, patch labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vqedge.data.cache import QuantizedClips, reversed_clips
from vqedge.data.clips import UNNAMED, Clip, ClipSource, Vocabulary
from vqedge.data.mixture import Mixture, Pick
from vqedge.data.naming import word_table

_MOST_THINGS = 8  # in one clip, for the table of labels


@dataclass(frozen=True)
class TrainingClips:
    """Several sources with their quantised clips.

    Args:
        sources: the clips.
        quantized: of each source, by budget.
        weights: how often each source is drawn.
        frames: T.
        time_reversal: play clips backwards too.
    """

    sources: tuple[ClipSource, ...]
    quantized: tuple[Mapping[int, QuantizedClips], ...]
    weights: tuple[float, ...]
    frames: int
    time_reversal: bool

    def mixture(self, seed: int) -> Mixture:
        """The order that a run sees its clips in."""
        reversible = tuple(
            self.time_reversal and source[0].reversed() is not None for source in self.sources
        )
        return Mixture(tuple(map(len, self.sources)), reversible, self.weights, seed)

    def clip(self, pick: Pick) -> Clip:
        """The clip of a pick."""
        clip = self.sources[pick.source][pick.number]
        turned = clip.reversed() if pick.backwards else clip
        assert turned is not None
        return turned

    def batch(self, picks: Sequence[Pick], budget: int) -> QuantizedClips:
        """Codes and index maps of the picks, stacked."""
        rows = [self._row(pick, budget) for pick in picks]
        return QuantizedClips(
            torch.cat([row.codes for row in rows]), torch.cat([row.indices for row in rows])
        )

    def in_order(self) -> Iterator[Pick]:
        """Every clip once, forwards."""
        for place, source in enumerate(self.sources):
            yield from (Pick(place, number, False) for number in range(len(source)))

    def _row(self, pick: Pick, budget: int) -> QuantizedClips:
        row = self.quantized[pick.source][budget][[pick.number]]
        return reversed_clips(row, self.frames) if pick.backwards else row


@dataclass(frozen=True)
class PatchLabels:
    """What the patches of clips show, as numbers.

    Attributes:
        shown: uint8 `[B, N]`, number of the thing a patch lies on, 0 for none.
        words: int64 `[B, things, groups]`, the word of every thing, row 0 for none.
    """

    shown: Tensor
    words: Tensor

    def code_names(self, indices: Tensor, codes: int) -> Tensor:
        """Words of every code: those of the thing that most of its patches lie on.

        Args:
            indices: integer `[B, N]`.
            codes: K.

        Returns:
            int64 `[B, K, groups]`, `UNNAMED` where no thing has the majority.
        """
        batch, things = indices.shape[0], self.words.shape[1]
        votes = torch.zeros(batch, codes * things, device=indices.device)
        cells = indices.long() * things + self.shown.long()
        votes = votes.scatter_add(1, cells, torch.ones_like(cells, dtype=votes.dtype))
        votes = votes.view(batch, codes, things)
        most, winner = votes[:, :, 1:].max(dim=2)
        named = most > 0.5 * votes.sum(dim=2).clamp(min=1)
        thing = torch.where(named, winner + 1, 0)
        groups = self.words.shape[2]
        return self.words.gather(1, thing[..., None].expand(-1, -1, groups))


def patch_labels(
    clips: Sequence[Clip], frames: int, grid: int, vocabulary: Vocabulary
) -> PatchLabels:
    """Labels of clips, stacked; clips without labels name nothing."""
    shown = np.zeros((len(clips), frames * grid * grid), np.uint8)
    words = np.full((len(clips), _MOST_THINGS + 1, len(vocabulary)), UNNAMED, np.int64)
    for place, clip in enumerate(clips):
        labels = clip.labels(frames, grid)
        if labels is not None and labels.words:
            shown[place] = labels.shown.reshape(-1)
            words[place, 1 : len(labels.words) + 1] = word_table(labels, vocabulary)
    return PatchLabels(torch.from_numpy(shown), torch.from_numpy(words))


def joint_vocabulary(sources: Sequence[ClipSource]) -> dict[str, tuple[str, ...]]:
    """The words of all sources by group, without repeats."""
    joint: dict[str, tuple[str, ...]] = {}
    for source in sources:
        for group, words in source.vocabulary.items():
            joint[group] = tuple(dict.fromkeys([*joint.get(group, ()), *words]))
    return joint
