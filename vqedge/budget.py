"""The budget: the most codes a clip may have, or as many as it needs."""

from __future__ import annotations

from contextlib import suppress
from numbers import Integral
from typing import Final, Literal

from vqedge.errors import ConfigError, UsageError

ADAPTIVE: Final = 0  # what quantizer and graph take for "as many as the clip needs"

Budget = int | Literal["auto"]


def budget_from_text(text: str | None) -> Budget | None:
    """A budget as users write it: a number from 1 up, `auto`, or nothing for the default.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return None
    if text == "auto":
        return "auto"
    with suppress(ValueError):
        if (budget := int(text)) >= 1:
            return budget
    raise UsageError(f"--budget {text}: give a number of tokens from 1 up, or auto")


def codes_from_budget(
    budget: Budget | None,
    codes: int,
    default: int,
    *,
    adapts: bool,
    only_default: bool = False,
    whose: str,
) -> int:
    """The most codes of a clip: the default, or the given number, or `ADAPTIVE`.

    Args:
        budget: what is asked for; None for the default.
        codes: the largest budget.
        default: what is taken where nothing is asked for.
        adapts: there is "auto".
        only_default: there is no other budget.
        whose: it is, as `this bundle`.

    Raises:
        ConfigError: it is no whole number, or out of range, "auto" where nothing adapts, or another
            than the only one.
    """
    if budget is None:
        return default
    if only_default and budget != default:
        raise ConfigError(f"budget {budget}: {whose} has one, {default}; leave it out")
    if budget == "auto":
        if not adapts:
            raise ConfigError(f"budget auto: {whose} has a fixed budget; give a number of tokens")
        return ADAPTIVE
    if isinstance(budget, bool) or not isinstance(budget, Integral):
        raise ConfigError(f"budget {budget!r}: give a whole number of tokens, or 'auto'")
    if not 1 <= budget <= codes:
        raise ConfigError(f"budget {budget}: {whose} takes 1 to {codes} tokens")
    return int(budget)
