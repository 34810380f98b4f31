"""How the learning rate goes."""

from __future__ import annotations

import math

_FINAL = 0.05  # share of the peak that the cosine ends at


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then a cosine from 1 to 0.05."""
    if step < warmup:
        return (step + 1) / warmup
    share = min((step - warmup) / max(total - warmup, 1), 1.0)
    return _FINAL + (1 - _FINAL) * 0.5 * (1 + math.cos(math.pi * share))
