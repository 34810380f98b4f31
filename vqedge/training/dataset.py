"""Everything that training reads: clips, quantised or as features, questions, patch labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from vqedge.data.clips import UNNAMED, Clip, ClipSource, Vocabulary
from vqedge.data.mixture import Mixture, Pick
from vqedge.data.naming import word_table
from vqedge.model.batch import ClipBatch
from vqedge.training.cache import QuantizedClips, reversed_clips
from vqedge.training.features import FeatureClips

PART = 16  # clips
_KEPT_CLIPS = 1 << 16  # of 2 kB
_MOST_THINGS = 8  # in one clip, for the table of labels


@dataclass(frozen=True)
class TrainingClips:
    """Several sources with their clips.

    Args:
        sources: the clips.
        stored: of each source, quantised clips by budget; or features, to be quantised in training.
        weights: how often each source is drawn.
        frames: T.
        time_reversal: play clips backwards too.
    """

    sources: tuple[ClipSource, ...]
    stored: tuple[Mapping[int, QuantizedClips] | FeatureClips, ...]
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
        """The clip of a pick; kept, as every epoch asks for it again."""
        return self._kept(pick)

    @cached_property
    def _kept(self) -> Callable[[Pick], Clip]:
        return lru_cache(_KEPT_CLIPS)(self._made)

    def _made(self, pick: Pick) -> Clip:
        clip = self.sources[pick.source][pick.number]
        turned = clip.reversed() if pick.backwards else clip
        assert turned is not None
        return turned

    def batch(self, picks: Sequence[Pick], budget: int) -> ClipBatch:
        """The picks, stacked."""
        rows = [self._row(pick, budget) for pick in picks]
        maps = [row.indices for row in rows if row.indices is not None]
        return ClipBatch(
            torch.cat([row.rows for row in rows]), torch.cat(maps) if maps else None, budget
        )

    def labelled(self) -> TrainingClips:
        """Those of the sources whose clips have labels."""
        places = [place for place, source in enumerate(self.sources) if source.vocabulary]
        if len(places) == len(self.sources):
            return self
        return replace(
            self,
            sources=tuple(self.sources[place] for place in places),
            stored=tuple(self.stored[place] for place in places),
            weights=tuple(self.weights[place] for place in places),
        )

    def codes(self, budget: int) -> Tensor:
        """Codes of all quantised clips at a budget, one after another, float16 `[M, D]`."""
        parts = [clips for clips in self.stored if not isinstance(clips, FeatureClips)]
        return torch.cat([clips[budget].codes.flatten(0, 1) for clips in parts])

    def in_order(self) -> Iterator[Pick]:
        """Every clip once, forwards."""
        for place, source in enumerate(self.sources):
            yield from (Pick(place, number, False) for number in range(len(source)))

    def parts(self) -> Iterator[list[Pick]]:
        """The same in lists of a few, for what looks at all of them."""
        picks = self.in_order()
        while part := list(islice(picks, PART)):
            yield part

    def _row(self, pick: Pick, budget: int) -> ClipBatch:
        """A pick as a batch of one."""
        stored = self.stored[pick.source]
        if isinstance(stored, FeatureClips):
            features = stored[pick.number]
            if pick.backwards:  # the backbone sees one frame at a time
                frames = features.reshape(self.frames, -1, features.shape[1])
                features = frames.flip(0).flatten(0, 1)
            return ClipBatch(features[None], None, budget)
        found = stored[budget][[pick.number]]
        found = reversed_clips(found, self.frames) if pick.backwards else found
        return ClipBatch(found.codes, found.indices, budget)


@dataclass(frozen=True)
class PatchLabels:
    """What the patches of clips show, as numbers.

    Attributes:
        shown: uint8 `[B, N]`, number of the thing a patch lies on, 0 for none.
        words: int64 `[B, things, groups]`, the word of every thing, row 0 for none.
    """

    shown: Tensor
    words: Tensor

    def code_names(self, indices: Tensor, codes: int, share: float = 0.5) -> Tensor:
        """Words of every code: those of the thing that most of its patches on things lie on.

        Args:
            indices: integer `[B, N]`.
            codes: K.
            share: of a code's patches, that has to be on its thing, and more.

        Returns:
            int64 `[B, K, groups]`, `UNNAMED` where no thing has that share.
        """
        thing, groups = self.code_things(indices, codes, share), self.words.shape[2]
        return self.words.gather(1, thing[..., None].expand(-1, -1, groups))

    def code_things(self, indices: Tensor, codes: int, share: float = 0.5) -> Tensor:
        """Number of the thing that names every code, int64 `[B, K]`, 0 for none.

        Args:
            indices: integer `[B, N]`.
            codes: K.
            share: see `code_names`.
        """
        batch, things = indices.shape[0], self.words.shape[1]
        votes = torch.zeros(batch, codes * things, device=indices.device)
        cells = indices.long() * things + self.shown.long()
        votes = votes.scatter_add(1, cells, torch.ones_like(cells, dtype=votes.dtype))
        votes = votes.view(batch, codes, things)
        most, winner = votes[:, :, 1:].max(dim=2)
        named = most > share * votes.sum(dim=2).clamp(min=1)
        return torch.where(named, winner + 1, 0)


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
