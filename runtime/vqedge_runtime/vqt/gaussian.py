"""Numbers as bits, each dimension alone: TokenBridge's quantisation (arXiv 2503.16430) for codes.

A dimension is brought to mean 0 and variance 1, cut at three standard deviations, and becomes the
number of its nearest level; levels are the means of equally likely pieces of a normal distribution.
The paper's constants fit the latents of its own autoencoder; codes of a clip bring theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

MIN_BITS, MAX_BITS = 2, 8
_CUT = 3.0  # standard deviations
_LEAST = 2.0**-14  # spread of a dimension that does not vary: the least normal float16

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.integer]


@dataclass(frozen=True)
class GaussianCodec:
    """Levels for every dimension of codes of one kind.

    Attributes:
        bits: a number takes, 2 to 8.
        mean, spread: float32 `[D]`, of every dimension.
    """

    bits: int
    mean: Floats
    spread: Floats

    def encode(self, codes: Floats) -> Indices:
        """Codes float `[K, D]` as levels, uint8 `[K, D]`; halfway goes to the lower."""
        z = np.clip((codes.astype(np.float64) - self.mean) / self.spread, -_CUT, _CUT)
        level = levels(self.bits)
        halfway = (level[1:] + level[:-1]) / 2
        return np.searchsorted(halfway, z, side="left").astype(np.uint8)

    def decode(self, indices: Indices) -> Floats:
        """What levels uint8 `[K, D]` stand for, float32 `[K, D]`."""
        values = levels(self.bits)[indices] * self.spread + self.mean
        return values.astype(np.float32)


def fitted(codes: Floats, bits: int) -> GaussianCodec:
    """A codec for codes like these, float `[K, D]`, finite.

    Raises:
        ValueError: bits are not 2 to 8, or there is nothing to fit.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"bits must be {MIN_BITS} to {MAX_BITS}, got {bits}")
    if codes.ndim != 2 or not len(codes) or not np.isfinite(codes).all():
        raise ValueError(f"want finite codes [K >= 1, D], got {codes.shape}")
    mean = codes.mean(axis=0, dtype=np.float64).astype(np.float32)
    spread = codes.std(axis=0, dtype=np.float64).astype(np.float32)
    return GaussianCodec(bits, mean, np.maximum(spread, np.float32(_LEAST)))


def levels(bits: int) -> npt.NDArray[np.float64]:
    """Means of the 2^bits equally likely pieces of a normal distribution cut at 3, ascending."""
    normal, count = NormalDist(), 1 << bits
    inner = [normal.inv_cdf(place / count) for place in range(1, count)]
    bounds = np.clip([-_CUT, *inner, _CUT], -_CUT, _CUT)
    density = np.array([normal.pdf(bound) for bound in bounds])
    below = np.array([normal.cdf(bound) for bound in bounds])
    pieces: npt.NDArray[np.float64] = -np.diff(density) / np.diff(below)
    return pieces
