"""The index file: tables, and how it is opened by several at once."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NAME: Final = ".vqedge-index.sqlite"
VERSION: Final = 2
BUSY_S: Final = 60.0
_RETRY_S: Final = 0.01
BUSY: Final = "database is locked"  # what SQLite says; Python 3.10 does not tell its codes

_TABLES = """
CREATE TABLE files (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, error TEXT NOT NULL,
    judge TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE spaces (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, width INTEGER NOT NULL,
    basis BLOB, trained INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE clips (
    id INTEGER PRIMARY KEY, path BLOB NOT NULL REFERENCES files ON DELETE CASCADE,
    segment INTEGER NOT NULL, start_s REAL NOT NULL, end_s REAL NOT NULL,
    space INTEGER NOT NULL REFERENCES spaces, source TEXT NOT NULL, codes INTEGER NOT NULL,
    weights BLOB NOT NULL, sketch BLOB
);
CREATE INDEX clips_by_path ON clips (path);
CREATE INDEX clips_by_space ON clips (space);
CREATE TABLE codes (
    clip INTEGER PRIMARY KEY REFERENCES clips ON DELETE CASCADE, numbers BLOB NOT NULL,
    map BLOB NOT NULL
);
CREATE TABLE postings (
    space INTEGER NOT NULL, first INTEGER NOT NULL,
    clip INTEGER NOT NULL REFERENCES clips ON DELETE CASCADE, PRIMARY KEY (space, first, clip)
) WITHOUT ROWID;
CREATE INDEX postings_by_clip ON postings (clip);
"""
_STATEMENTS = [statement.strip() for statement in _TABLES.split(";") if statement.strip()]


class Damaged(Exception):
    """The index is no index of this version; what it held is made again."""


def connect(path: Path | str) -> sqlite3.Connection:
    """Open or make an index.

    Raises:
        Damaged: it is another version's.
        sqlite3.Error: it cannot be opened, or is none.
    """
    connection = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA foreign_keys = ON")
        _log_ahead(connection)
        connection.execute("PRAGMA synchronous = NORMAL")
        _make_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction: all of it or nothing, alone among the writers."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


@contextmanager
def reading(connection: sqlite3.Connection) -> Iterator[None]:
    """One view of the index, whatever others write meanwhile."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _log_ahead(connection: sqlite3.Connection) -> None:
    """Turn on write-ahead logging.

    A file that several open for the first time is locked for a moment by one of them; SQLite does
    not wait for this lock as it does for others, however long its timeout.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if str(error) != BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)


def _make_tables(connection: sqlite3.Connection) -> None:
    with writing(connection):
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        query = "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL"
        there = {statement for (statement,) in connection.execute(query)}
        if version == 0 and not there:
            for statement in _STATEMENTS:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")
        elif version != VERSION or there != set(_STATEMENTS):  # a trigger could do anything
            raise Damaged(f"version {version}, {len(there)} tables, indexes and triggers")
