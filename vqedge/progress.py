"""Progress on stderr, and how long a command may run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Clock:
    """Tells when a command's time is up; without a limit, never."""

    def __init__(self, minutes: float | None) -> None:
        self._end = None if minutes is None else time.monotonic() + 60.0 * minutes

    def is_up(self) -> bool:
        """Is it time to save and stop?"""
        return self._end is not None and time.monotonic() >= self._end


@contextmanager
def progress(what: str, total: int, completed: int = 0) -> Iterator[Callable[[str], None]]:
    """A bar with the time that is left; call the result after every step with a remark.

    Nothing is shown if there is nothing to do.
    """
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=total <= completed,
    ) as bar:
        task = bar.add_task(what, total=total, completed=completed)
        yield lambda remark: bar.update(task, advance=1, description=f"{what}  {remark}".rstrip())
