"""A folder's index: opened, brought up to date, asked; made again if it is damaged."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from vqedge.errors import SearchError, printable
from vqedge.files import locked
from vqedge_runtime.search.index import Refresh, refresh, stamps_below
from vqedge_runtime.search.schema import BUSY, NAME, Damaged, connect, reading

T = TypeVar("T")

MEMORY = ":memory:"
# What the user can do something about, by what SQLite says: Python 3.10 does not tell its codes.
# Any other error means that the index itself is wrong.
_CAUSES = {
    BUSY: "somebody else has been writing it for a minute; try again",
    "database table is locked": "somebody else has been writing it for a minute; try again",
    "disk I/O error": "it cannot be read or written; check the disk",
}
# Where it may not be written, by the same.
_NOT_OURS = {
    "unable to open database": "may not be written",
    "attempt to write a readonly database": "may not be written",
    "access permission denied": "may not be written",
    "database or disk is full": "cannot be written, the disk is full",
}
_DAMAGE = (sqlite3.Error, Damaged, ValueError, TypeError, IndexError, zlib.error)


def ask_folder(
    folder: Path,
    question: Callable[[sqlite3.Connection], T],
    on_note: Callable[[str], None] = lambda _: None,
) -> tuple[Refresh, T]:
    """Bring a folder's index up to date and ask it.

    Args:
        folder: of `.vqt` files; its index lies in it, or in memory where it cannot be written.
        question: what to ask, as a function of the index.
        on_note: told in a line what the user should know.

    Raises:
        SearchError: no such folder, one without a `.vqt`, or its index cannot be used.
    """
    require_folder(folder)
    path = folder / NAME
    try:
        return _asked(path, folder, question)
    except _DAMAGE as error:
        if cause := _told_of(error, _CAUSES):
            raise SearchError(f"{printable(str(path))}: {cause}") from error
        if why := _told_of(error, _NOT_OURS):
            on_note(printable(f"{folder}: {why}; the index is made in memory"))
            return _asked(MEMORY, folder, question)
        on_note(printable(f"{path}: damaged or of another version ({error}); it is made again"))
    _remove(path)
    try:
        return _asked(path, folder, question)
    except _DAMAGE as error:
        raise SearchError(f"{printable(str(path))}: {error}; delete it and try again") from error


def _told_of(error: Exception, told: dict[str, str]) -> str:
    """The line for what SQLite says; "" if there is none."""
    return next((line for words, line in told.items() if str(error).startswith(words)), "")


def require_folder(folder: Path) -> None:
    """See that there is something to ask, so that no other folder gets an index.

    Raises:
        SearchError: no such folder, or one without a `.vqt` that never had any.
    """
    name = printable(str(folder))
    if not folder.is_dir():
        raise SearchError(f"{name}: no such folder; give one of .vqt files")
    if not (folder / NAME).exists() and not any(stamps_below(folder)):
        raise SearchError(
            f"{name}: no .vqt files in it; make them with: vqedge encode FOLDER -o TOKENS/"
        )


def _asked(
    path: Path | str, folder: Path, question: Callable[[sqlite3.Connection], T]
) -> tuple[Refresh, T]:
    with closing(connect(path)) as connection:
        state = refresh(connection, folder)
        with reading(connection):
            return state, question(connection)


def _remove(path: Path) -> None:
    """Delete an index, unless somebody has made it again already."""
    with locked(path.with_name(f"{NAME}-lock")):
        try:
            with closing(connect(path)) as connection:
                (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if state == "ok":
                    _forget(connection)
                    return
        except _DAMAGE:
            pass
        for end in ("", "-wal", "-shm"):
            path.with_name(NAME + end).unlink(missing_ok=True)


def _forget(connection: sqlite3.Connection) -> None:
    """Empty an index whose pages are whole: what is wrong is what stands in them."""
    connection.execute("DELETE FROM files")
    connection.execute("DELETE FROM spaces")
