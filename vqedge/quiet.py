"""`--quiet`: whether commands leave out what they say on stderr beside errors and warnings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_QUIET = ContextVar("quiet", default=False)


def is_quiet() -> bool:
    """Whether no talk and no progress is wanted."""
    return _QUIET.get()


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Within, `is_quiet` says this."""
    before = _QUIET.set(quiet)
    try:
        yield
    finally:
        _QUIET.reset(before)
