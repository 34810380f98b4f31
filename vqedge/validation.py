"""What pydantic found wrong with a file or a flag, in one line."""

from __future__ import annotations

from pydantic import ValidationError


def first_fault(error: ValidationError) -> str:
    """The first problem of a validation in one line, with its place."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    reason = " ".join(fault["msg"].removeprefix("Value error, ").split())
    return f"{place}: {reason}" if place else reason
