"""What two computations of one encoder are compared by, wherever each of them ran."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

SAFE_MARGIN: Final = 1e-3
"""A choice of a code by less than this may turn when sums are rounded in another order."""


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log-likelihoods of what logits `[..., n]` are of, in nats."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return found


def row_cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The cosine of each row of `a` `[n, width]` and that of `b`, `[n]`; 0 of a row of zeros."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: npt.NDArray[np.float64] = (left * right).sum(axis=1) / np.maximum(lengths, 1e-12)
    return cosines


def patch_cosine(
    a: npt.NDArray[np.float32],
    map_a: npt.NDArray[np.int32],
    b: npt.NDArray[np.float32],
    map_b: npt.NDArray[np.int32],
) -> float:
    """The mean over patches of the cosine between the rows that tell of a patch in `a` and in `b`.

    The order of rows does not matter, nor does it much which of two like rows a patch has.

    Args:
        a: rows `[k, width]`.
        map_a: the row of each patch, of any shape.
        b: rows `[l, width]`.
        map_b: of the shape of `map_a`.
    """
    pairs, places = np.unique(np.stack([map_a.ravel(), map_b.ravel()]), axis=1, return_inverse=True)
    return float(row_cosines(a[pairs[0]], b[pairs[1]])[places.ravel()].mean())


def matched_share(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> float:
    """Share of patches with the same id, after ids were renamed: largest overlaps first.

    Args:
        a: ids from 0, of any shape.
        b: of the same shape.
    """
    a, b = a.reshape(-1), b.reshape(-1)
    overlap = np.zeros((a.max() + 1, b.max() + 1), np.int64)
    np.add.at(overlap, (a, b), 1)
    same = 0
    for _ in range(min(overlap.shape)):
        row, column = np.unravel_index(overlap.argmax(), overlap.shape)
        same += int(overlap[row, column])
        overlap[row, :], overlap[:, column] = 0, 0
    return same / len(a)


def chance_of_loss(ours: Sequence[int], theirs: Sequence[int]) -> float:
    """How likely two equals are to be at least as far apart: an exact sign-flip test over clips.

    Answers about one clip go together, so clips are what is flipped.

    Args:
        ours: right answers by clip.
        theirs: those of the other to the same questions.

    Returns:
        the probability that ours fall behind as far as they do; 0.5 and more where they do not.

    Raises:
        ValueError: not the same clips.
    """
    behind = [there - here for here, there in zip(ours, theirs, strict=True)]
    chances = {0: 1.0}
    for size in behind:
        after: defaultdict[int, float] = defaultdict(float)
        for total, chance in chances.items():
            after[total + size] += chance / 2
            after[total - size] += chance / 2
        chances = after
    return sum(chance for total, chance in chances.items() if total >= sum(behind))
