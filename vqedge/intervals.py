"""How sure a share of right answers is, and the difference between two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


def wilson_interval(right: int, total: int, design_effect: float = 1.0) -> tuple[float, float]:
    """95 % Wilson score interval of a share, as of `design_effect` times fewer questions."""
    share, z2, n = right / total, Z95 * Z95, total / design_effect
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(center - half, 0.0), min(center + half, 1.0)


def paired_interval(
    ours: Sequence[int], theirs: Sequence[int], asked: Sequence[int]
) -> tuple[float, float, float]:
    """How much larger a share of right answers is than another on the same questions.

    Each clip is a cluster (Cochran, Sampling Techniques, 3rd ed., 3.12), and the spread over few of
    them is itself uncertain: Student's t. One clip says nothing of others.

    Args:
        ours: right answers by clip.
        theirs: those of the other, clips in the same order.
        asked: questions by clip.

    Returns:
        the difference in [-1, 1], and its 95 % interval.

    Raises:
        ValueError: not the same clips.
    """
    triples = list(zip(ours, theirs, asked, strict=True))
    total, clips = sum(asked), len(asked)
    difference = (sum(ours) - sum(theirs)) / total
    if clips < 2:
        return difference, -1.0, 1.0
    squares = sum((a - b - difference * n) ** 2 for a, b, n in triples)
    half = t95(clips - 1) * math.sqrt(squares * clips / (clips - 1)) / total
    return difference, max(difference - half, -1.0), min(difference + half, 1.0)


@cache
def t95(degrees: int) -> float:
    """Two-sided 95 % of Student's t distribution with so many degrees of freedom, at least 1."""
    low, high = Z95, 13.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < 0.95 else (low, middle)
    return high


def _within(t: float, degrees: int) -> float:
    """Share of Student's t distribution from -t to t (Abramowitz and Stegun, 26.7.3, 26.7.4)."""
    angle, odd = math.atan2(t, math.sqrt(degrees)), degrees % 2
    cosine = math.cos(angle)
    term, total = cosine**odd, 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    share = math.sin(angle) * total
    return 2 / math.pi * (angle + share) if odd else share
