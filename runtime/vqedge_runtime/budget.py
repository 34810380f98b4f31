"""The budget a user asks for, as an encoder takes it."""

from __future__ import annotations

from numbers import Integral

from vqedge.budget import ADAPTIVE, Budget
from vqedge.bundle import QuantizerRecord
from vqedge.errors import ConfigError


def codes_from_budget(budget: Budget | None, quantizer: QuantizerRecord) -> int:
    """The most codes of a clip: the bundle's default, or the given number, or `ADAPTIVE`.

    Raises:
        ConfigError: it is no whole number, or out of range, "auto" where the bundle has a fixed
            one, or another than the only one.
    """
    if budget is None:
        return quantizer.default_budget
    if quantizer.per_question and budget != quantizer.default_budget:
        raise ConfigError(
            f"budget {budget}: this bundle has one, {quantizer.default_budget}; leave it out"
        )
    if budget == "auto":
        if quantizer.adaptive_error is None:
            raise ConfigError(
                "budget auto: this bundle has a fixed budget; give a number of tokens"
            )
        return ADAPTIVE
    if isinstance(budget, bool) or not isinstance(budget, Integral):
        raise ConfigError(f"budget {budget!r}: give a whole number of tokens, or 'auto'")
    if not 1 <= budget <= quantizer.codes:
        raise ConfigError(f"budget {budget}: this bundle takes 1 to {quantizer.codes} tokens")
    return int(budget)
