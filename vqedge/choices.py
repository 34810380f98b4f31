"""An option's text as one of the words that it takes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from vqedge.errors import UsageError

Choice = TypeVar("Choice", bound=str)


def chosen(option: str, text: str, offered: Collection[Choice]) -> Choice:
    """The text, if it is one of those that an option takes.

    Raises:
        UsageError: it is none.
    """
    for choice in offered:
        if choice == text:
            return choice
    raise UsageError(f"{option} {text}: choose one of {', '.join(offered)}")
