"""How alike two codes can be at most, told from 33 numbers instead of all of them.

A centroid of length 1 is split into its part within 32 directions and the length of the rest. The
cosine of two is the product of their parts, plus at most the product of the rests. That holds for
any directions; those in which the folder's centroids are longest make the bound close.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vqedge_runtime.search.measure import Floats

DIRECTIONS = 32
SLACK = np.float32(2e-3)  # more than half precision can round away
_ROUNDS = 3


def basis_from_values(values: Floats) -> Floats:
    """Directions `[width, d]`, orthonormal, in which rows of length 1 `[n, width]` are longest.

    Subspace iteration from a fixed start: nearly the best directions, for any width.
    """
    width = values.shape[1]
    start = np.random.default_rng(0).standard_normal((width, min(DIRECTIONS, width)))
    basis: Floats = start.astype(np.float32)
    for _ in range(_ROUNDS):
        wide = (values.T @ (values @ basis)).astype(np.float64)
        basis = np.linalg.qr(wide).Q.astype(np.float32)  # orthonormal even where `wide` is all zero
    return np.ascontiguousarray(basis)


def split(values: Floats, basis: Floats) -> Floats:
    """Rows `[k, width]` in `[k, d + 1]` numbers: their part, and the length of the rest."""
    part = values @ basis
    rest = np.sqrt(np.maximum(0, (values**2).sum(1) - (part**2).sum(1)))
    both: Floats = np.column_stack((part, rest)).astype(np.float32)
    return both


def most_alike(sketches: npt.NDArray[np.float16], of: Floats) -> Floats:
    """The most that rows, split and rounded `[n, d + 1]`, can match others `[m, d + 1]`."""
    most: Floats = sketches.astype(np.float32) @ of.T + SLACK
    return most
