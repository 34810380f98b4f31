"""The budget a user asks for, as a bundle's encoder takes it."""

from __future__ import annotations

from vqedge.budget import Budget, codes_from_budget
from vqedge.bundle import QuantizerRecord


def checked_budget(quantizer: QuantizerRecord, budget: Budget | None) -> int:
    """The most codes of a clip, see `codes_from_budget`.

    Raises:
        ConfigError: the bundle does not take this budget.
    """
    return codes_from_budget(
        budget,
        quantizer.codes,
        quantizer.default_budget,
        adapts=quantizer.adaptive_error is not None,
        only_default=quantizer.per_question,
        whose="this bundle",
    )
