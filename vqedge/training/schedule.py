"""How the learning rate goes, and when it was too high."""

from __future__ import annotations

import math

from vqedge.errors import ConfigError
from vqedge.recipe import TrainConfig

_FINAL = 0.05  # share of the peak that the cosine ends at


def learning_rate_factor(step: int, warmup: int, total: int) -> float:
    """Linear warm-up, then a cosine from 1 to 0.05."""
    if step < warmup:
        return (step + 1) / warmup
    share = min((step - warmup) / max(total - warmup, 1), 1.0)
    return _FINAL + (1 - _FINAL) * 0.5 * (1 + math.cos(math.pi * share))


def other_schedule(done: int, then: int | None, config: TrainConfig) -> str | None:
    """What to say where a run goes on that was to have fewer or more steps; None if it was not.

    Args:
        done: steps that were taken.
        then: how many there were to be at the last save.
        config: the run as it is now.
    """
    optim = config.optim
    if then is None or then == optim.steps or done >= optim.steps:
        return None
    before = learning_rate_factor(max(done - 1, 0), optim.warmup_steps, then)
    after = learning_rate_factor(done, optim.warmup_steps, optim.steps)
    return (
        f"{config.output}: was to have {then} steps, and has {optim.steps} now: its learning rate "
        f"goes from {before:.0%} of the highest to {after:.0%} at once; to train on from its end, "
        f"give init={config.output} and another -o folder"
    )


def require_finite(norm: float, where: str, rate: str) -> None:
    """End a run before weights are lost that the last save still has.

    Args:
        norm: of the step's gradients.
        where: the step.
        rate: the setting that is the likeliest cause.

    Raises:
        ConfigError: it is infinite or no number.
    """
    if not math.isfinite(norm):
        raise ConfigError(
            f"{where}: the gradients are not finite; lower {rate}, then --resume goes on from the "
            "last save"
        )
