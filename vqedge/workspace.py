"""A folder beside what is made, to make it in. It goes at the end; after a kill, the next time."""

from __future__ import annotations

import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vqedge.files import locked, try_lock

OLD = "old"
_LOCK = "lock"


@contextmanager
def workspace_beside(out: Path) -> Iterator[Path]:
    """A folder on the filesystem of `out`, removed at the end; first those of killed processes.

    What lies in one as `OLD` is moved back to `out` if nothing is there.

    Args:
        out: what is made; its missing parents are made now.

    Raises:
        OSError: the folder cannot be made, or its filesystem has no locks.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with turn_at(out):
        _tidy_after_killed(out)
    workspace, lock = _locked_folder(out)
    try:
        yield workspace
    finally:
        _discard(workspace, out, lock)


@contextmanager
def turn_at(out: Path) -> Iterator[None]:
    """Wait until no other process is at this point with the same `out`, and keep others waiting.

    Raises:
        OSError: the lock file beside `out` cannot be made, or its filesystem has no locks.
    """
    with locked(out.parent / f".{out.name}.{_LOCK}", stays=False):
        yield


def set_aside(out: Path) -> Path | None:
    """Where a command that was killed left what was at `out`; None if nothing is to be found."""
    return next(out.parent.glob(f"{_workspaces(out)}/{OLD}"), None) if out.name else None


def _workspaces(out: Path) -> str:
    return f".{glob.escape(out.name)}.*.partial"


def _tidy_after_killed(out: Path) -> None:
    for workspace in out.parent.glob(_workspaces(out)):
        with suppress(OSError):
            if not (workspace / _LOCK).exists():
                workspace.rmdir()  # killed before it made the lock, so it is empty
            elif (lock := try_lock(workspace / _LOCK, create=False)) is not None:
                _discard(workspace, out, lock)


def _locked_folder(out: Path) -> tuple[Path, int]:
    """Tidying by others may take the folder before we hold its lock."""
    while True:
        workspace = out.parent / f".{out.name}.{secrets.token_hex(4)}.partial"
        workspace.mkdir()
        with suppress(FileNotFoundError):
            lock = try_lock(workspace / _LOCK)
            if lock is not None and (workspace / _LOCK).exists():
                return workspace, lock
            if lock is not None:
                os.close(lock)


def _discard(workspace: Path, out: Path, lock: int) -> None:
    """Remove a workspace whose lock we hold, after moving back what was set aside."""
    try:
        if (workspace / OLD).exists() and not os.path.lexists(out):
            os.rename(workspace / OLD, out)
        shutil.rmtree(workspace, ignore_errors=True)
    finally:
        os.close(lock)
