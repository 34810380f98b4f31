"""Which clips a training step sees: several sources, mixed by weight, each in shuffled epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Pick:
    """A clip of a step: which source, which of its clips, and whether it is played backwards."""

    source: int
    number: int
    backwards: bool


@dataclass(frozen=True)
class Mixture:
    """An endless order of clips, a pure function of its fields.

    Args:
        sizes: clips of each source.
        reversible: whether the clips of a source may be played backwards too.
        weights: how often each source is drawn.
        seed: of the order.
    """

    sizes: tuple[int, ...]
    reversible: tuple[bool, ...]
    weights: tuple[float, ...]
    seed: int

    def picks(self, first: int, last: int) -> list[Pick]:
        """The clips at positions `first` to `last - 1` of the order."""
        sources, places = _order(self.weights, self.seed, 1 << max(last - 1, 0).bit_length())
        return [
            self._pick(int(source), int(place))
            for source, place in zip(sources[first:last], places[first:last], strict=True)
        ]

    def _pick(self, source: int, place: int) -> Pick:
        """The clip at a place in the shuffled epochs of one source."""
        size = self.sizes[source]
        views = size * (2 if self.reversible[source] else 1)
        epoch, position = divmod(place, views)
        order = _epoch_order(self.seed, source, epoch, views)
        return Pick(source, int(order[position]) % size, bool(order[position] >= size))


@lru_cache(maxsize=4)
def _order(
    weights: tuple[float, ...], seed: int, count: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The source of each of the first `count` clips, and its place in that source.

    Kept, and asked for powers of two only, as the whole past is drawn to know where sources are.
    """
    shares = np.asarray(weights) / sum(weights)
    sources = np.random.default_rng([seed, 0]).choice(len(shares), size=count, p=shares)
    places = np.zeros(count, np.int64)
    for source in range(len(shares)):
        mine = sources == source
        places[mine] = np.arange(mine.sum())
    return sources, places


@lru_cache(maxsize=64)
def _epoch_order(seed: int, source: int, epoch: int, views: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng([seed, 1, source, epoch]).permutation(views)


def drawn_budget(budgets: Sequence[int], seed: int, step: int) -> int:
    """The number of codes that a step trains with."""
    return int(np.random.default_rng([seed, 2, step]).choice(np.asarray(budgets)))
