"""How alike two index maps are when their codes have other numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]


def matched_share(a: Ids, b: Ids) -> float:
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
