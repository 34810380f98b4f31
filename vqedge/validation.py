"""What pydantic found wrong with a file or a flag, in one line."""

from __future__ import annotations

from pydantic import ValidationError

from vqedge.errors import printable

_MOST_LETTERS = 200


def first_fault(error: ValidationError) -> str:
    """The first problem of a validation in one line, with its place.

    The place may be a key out of a stranger's file, however long: it is cut.
    """
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in fault["loc"])
    reason = " ".join(fault["msg"].removeprefix("Value error, ").split())
    return f"{_cut(place)}: {_cut(reason)}" if place else _cut(reason)


def _cut(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _MOST_LETTERS else f"{shown[:_MOST_LETTERS]}..."
