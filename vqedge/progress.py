"""Progress on stderr, and how long a command may run."""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from vqedge.quiet import is_quiet

STOP_SIGNALS = tuple(  # of docker and spot machines; of Slurm, where it is asked
    signal.Signals[name] for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name)
)
_LINES_APART_S = 30.0
_RATE_OVER = 20  # steps, the latest


class Clock:
    """Tells when a command's time is up; without a limit, never, unless it is stopped.

    Attributes:
        stopped: time was up at once; a kill may follow in seconds.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.stopped = False
        self._end = None if minutes is None else time.monotonic() + 60.0 * minutes

    def stop(self) -> None:
        """Time is up now."""
        self.stopped = True

    def is_up(self) -> bool:
        """Is it time to save and stop?"""
        return self.stopped or (self._end is not None and time.monotonic() >= self._end)


def tell(line: str, *, always: bool = False) -> None:
    """One line of talk; with `--quiet` nothing, unless it is a warning (`always`)."""
    if always or not is_quiet():
        sys.stderr.write(f"{line}\n")


def bar_of(done: ProgressColumn, console: Console, shown: bool = True) -> Progress:
    """A bar under a description that is not markup; none with `--quiet`.

    What is printed meanwhile becomes part of it at a terminal only: else it is for somebody else.

    Args:
        done: how it tells what is done.
        console: on stderr.
        shown: or not at all.
    """
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        done,
        TimeRemainingColumn(),
        console=console,
        redirect_stdout=sys.stdout.isatty(),
        disable=is_quiet() or not shown,
    )


@contextmanager
def progress(
    what: str,
    total: int,
    completed: int = 0,
    shown: bool = True,
    unit: tuple[str, int] | None = None,
) -> Iterator[Callable[[str], None]]:
    """A bar with the time that is left; call the result after every step with a remark.

    A line now and then where stderr is no terminal; nothing if there is nothing to do, or if it is
    not to be shown, as with `--quiet`.

    Args:
        what: is done.
        total: steps.
        completed: steps that were done before.
        shown: or not at all.
        unit: what a step does and how many of them, `("clips", 64)`, to tell how many a second.
    """
    console = Console(stderr=True)
    wanted, rate = shown and total > completed and not is_quiet(), _Rate(unit)
    if wanted and not console.is_terminal:
        lines = _Lines(what, total, completed)
        yield lambda remark: lines(rate.after_step(remark))
        return
    with bar_of(MofNCompleteColumn(), console, shown=wanted) as bar:
        task = bar.add_task(what, total=total, completed=completed)
        yield lambda remark: bar.update(
            task, advance=1, description=f"{what}  {rate.after_step(remark)}".rstrip()
        )


@contextmanager
def byte_progress() -> Iterator[Callable[[str, int, int], None]]:
    """Bars of bytes that come; call the result with what is done, the bytes done, and all.

    A line once where stderr is no terminal, or it is not known how many bytes there are, which is
    0. What is told next begins where the one before is done.
    """
    console = Console(stderr=True)
    bar = bar_of(DownloadColumn(), console)
    bars: dict[str, TaskID] = {}
    told: set[str] = set()

    def show(what: str, done_bytes: int, total_bytes: int) -> None:
        if total_bytes and console.is_terminal:
            if what not in bars:
                for before in bar.tasks:
                    bar.update(before.id, completed=before.total)
                bar.start()
                bars[what] = bar.add_task(what, total=total_bytes)
            bar.update(bars[what], completed=done_bytes)
        elif what not in told:
            told.add(what)
            tell(what)

    try:
        yield show
    finally:
        if bars:
            bar.stop()


class _Rate:
    """How fast the latest steps were."""

    def __init__(self, unit: tuple[str, int] | None) -> None:
        self._unit = unit
        self._ends = deque([time.monotonic()], maxlen=1 + _RATE_OVER)

    def after_step(self, remark: str) -> str:
        """The remark on a step that just ended, and the rate."""
        self._ends.append(time.monotonic())
        took = self._ends[-1] - self._ends[0]
        if self._unit is None or not took:
            return remark
        name, count = self._unit
        return f"{remark}  {count * (len(self._ends) - 1) / took:.1f} {name}/s".lstrip()


class _Lines:
    """How far it is and how long it will take, for a log that is read later."""

    def __init__(self, what: str, total: int, completed: int) -> None:
        self._what, self._total, self._done, self._first = what, total, completed, completed
        self._began = self._told = time.monotonic()

    def __call__(self, remark: str) -> None:
        self._done += 1
        now = time.monotonic()
        if now - self._told < _LINES_APART_S:
            return
        self._told = now
        left = (now - self._began) / (self._done - self._first) * (self._total - self._done)
        share = f"{self._done}/{self._total}, {timedelta(seconds=round(left))} left"
        sys.stderr.write(f"{self._what}: {share}  {remark}".rstrip() + "\n")
