"""What pydantic found wrong with a file or a flag, in one line."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from vqedge.errors import printable

_MOST_LETTERS = 200


@dataclass(frozen=True)
class Fault:
    """A problem that a validation found; `str` is one line, with its place.

    The place may be a key out of a stranger's file, however long: it is cut.

    Attributes:
        place: the keys and numbers that lead there.
        kind: pydantic's name for such problems.
        reason: what is wrong.
    """

    place: tuple[str | int, ...]
    kind: str
    reason: str

    def __str__(self) -> str:
        place = ".".join(map(str, self.place))
        return f"{_cut(place)}: {_cut(self.reason)}" if place else _cut(self.reason)


def fault_from_error(error: ValidationError) -> Fault:
    """The first problem of a validation."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[0]
    reason = " ".join(found["msg"].removeprefix("Value error, ").split())
    return Fault(found["loc"], found["type"], reason)


def first_fault(error: ValidationError) -> str:
    """The first problem of a validation in one line, with its place."""
    return str(fault_from_error(error))


def _cut(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _MOST_LETTERS else f"{shown[:_MOST_LETTERS]}..."
