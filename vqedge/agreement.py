"""What two computations of one encoder are compared by, wherever each of them ran."""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

SAFE_MARGIN: Final = 1e-3
"""A choice of a code by less than this may turn when sums are rounded in another order."""


def row_cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The cosine of each row of `a` `[n, width]` and that of `b`, `[n]`; 0 of a row of zeros."""
    left, right = a.astype(np.float64), b.astype(np.float64)
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines: npt.NDArray[np.float64] = (left * right).sum(axis=1) / np.maximum(lengths, 1e-12)
    return cosines
