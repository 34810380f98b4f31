"""The budget: the most codes a clip may have, or as many as it needs."""

from __future__ import annotations

from contextlib import suppress
from typing import Final, Literal

from vqedge.errors import UsageError

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
