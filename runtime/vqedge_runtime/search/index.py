"""An index of the `.vqt` files of a folder: what they hold, and what each of them looked like.

It holds nothing that the files do not: whoever doubts it deletes it.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqedge import __version__
from vqedge.errors import VqtError, printable
from vqedge_runtime.search.blobs import basis_from_blob, numbers_from_blob
from vqedge_runtime.search.bounds import basis_from_values, split
from vqedge_runtime.search.measure import comparable, space_of, weights_from_patches
from vqedge_runtime.search.schema import writing
from vqedge_runtime.tokens import Values
from vqedge_runtime.vqt import Segment, open_vqt, vqt_files
from vqedge_runtime.vqt.file import VqtFile, vqt_errors

_BATCH_FILES, _BATCH_BYTES = 256, 64 << 20
_MOST_BYTES = 512 << 20  # that one file may add
_MOST_SEGMENT_BYTES = 64 << 20  # of the codes of one segment
_SAMPLE = 512  # clips that a basis is made from
_GROWTH = 4  # so many times more clips ask for a new one
_MOST_NUMBER = (1 << 63) - 1  # that SQLite holds; a time of the year 2300 is more

Stamp = tuple[int, int]  # size in bytes, time of the last change in nanoseconds


@dataclass(frozen=True)
class Row:
    """A segment as it goes into the index."""

    segment: int
    start_s: float
    end_s: float
    weights: npt.NDArray[np.float32]
    numbers: Values
    packed_map: bytes

    @property
    def size_bytes(self) -> int:
        """Roughly, of what is held and stored of it."""
        return self.numbers.nbytes + len(self.packed_map)


@dataclass(frozen=True)
class Read:
    """A file that was read, or why it could not be.

    Attributes:
        path: its name, from the folder on.
        stamp: what it looked like just before.
        space: name, kind and width of what its clips can be compared with.
        source: sha256 of what it was made from.
        rows: its segments.
        error: why there are none, without the file's name.
        judge: the vqedge that found the error in what the file holds; a later one may read it.
            Empty if the system did not let it be read: it may do so any time.
    """

    path: bytes
    stamp: Stamp
    space: tuple[str, str, int] = ("", "", 0)
    source: str = ""
    rows: tuple[Row, ...] = ()
    error: str = ""
    judge: str = ""

    @property
    def size_bytes(self) -> int:
        """Roughly, of the rows."""
        return sum(row.size_bytes for row in self.rows)


@dataclass(frozen=True)
class Refresh:
    """What an index went through to be up to date.

    Attributes:
        read: files that were new or changed.
        gone: files that are no longer there.
        files: in the folder now.
        clips: segments in them.
        bad: names and errors of those that cannot be read.
    """

    read: int
    gone: int
    files: int
    clips: int
    bad: tuple[tuple[bytes, str], ...]


def refresh(connection: sqlite3.Connection, folder: Path) -> Refresh:
    """Read what is new or changed in a folder, forget what is gone.

    A file that holds what cannot be read is left alone until it, or vqedge, changes.
    """
    known = {
        path: (size, mtime_ns)
        for path, size, mtime_ns in connection.execute("SELECT path, size, mtime_ns FROM files")
    }
    there = dict(stamps_below(folder))  # later: what others add meanwhile is not known, so not gone
    query = "SELECT path FROM files WHERE error != '' AND judge != ?"
    failed = {path for (path,) in connection.execute(query, (__version__,))}
    gone = [path for path in known if path not in there]
    with writing(connection):
        connection.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in gone])
    new = [path for path, stamp in there.items() if known.get(path) != stamp]
    retried = failed.difference(new)  # readable by now, maybe
    again = [path for path in there if path in retried]
    for batch in _batches(_read(folder, path, there[path]) for path in new + again):
        with writing(connection):
            for item in batch:
                _store(connection, item)
    _train(connection)
    (clips,) = connection.execute("SELECT count(*) FROM clips").fetchone()
    rows = connection.execute("SELECT path, error FROM files WHERE error != '' ORDER BY path")
    bad = tuple((path, f"{_told(folder, path)}: {error}") for path, error in rows)
    return Refresh(len(new), len(gone), len(there), clips, bad)


def _told(folder: Path, path: bytes) -> str:
    """A file's name as errors tell it."""
    return printable(str(folder / os.fsdecode(path)))


def stamps_below(folder: Path) -> Iterator[tuple[bytes, Stamp]]:
    """Every `.vqt` below a folder, by its name from there."""
    for path in vqt_files(folder):
        try:
            status = path.stat()
        except OSError:
            continue  # gone since
        changed_ns = status.st_mtime_ns & _MOST_NUMBER  # as different as before
        yield os.fsencode(path.relative_to(folder)), (status.st_size, changed_ns)


def _batches(items: Iterator[Read]) -> Iterator[list[Read]]:
    batch, size_bytes = list[Read](), 0
    for item in items:
        batch.append(item)
        size_bytes += item.size_bytes
        if len(batch) == _BATCH_FILES or size_bytes > _BATCH_BYTES:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _read(folder: Path, path: bytes, stamp: Stamp) -> Read:
    """Read a file of which nothing is known to be right."""
    whole = folder / os.fsdecode(path)
    try:
        file = open_vqt(whole)
        with vqt_errors(whole):
            rows = tuple(_rows(file))
    except VqtError as error:
        judge = __version__ if isinstance(error.__cause__, VqtError) else ""
        said = str(error).removeprefix(f"{_told(folder, path)}: ")
        return Read(path, stamp, error=said, judge=judge)
    header = file.header
    space = (space_of(header), header.kind, header.width)
    return Read(path, stamp, space, header.origin.sha256, rows)


def _rows(file: VqtFile) -> Iterator[Row]:
    header = file.header
    if header.kind == "kmeans" and 2 * header.codes * header.width > _MOST_SEGMENT_BYTES:
        most = f"{_MOST_SEGMENT_BYTES >> 20} MiB of codes"
        raise VqtError(f"a segment may hold more than {most}; encode it with fewer")
    size_bytes = 0
    for number in range(len(file.spans_us)):
        row = _row(number, file.segment(number))
        size_bytes += row.size_bytes
        if size_bytes > _MOST_BYTES:
            raise VqtError(f"holds more than {_MOST_BYTES >> 20} MiB of codes and maps; split it")
        yield row


def _row(number: int, segment: Segment) -> Row:
    codes = segment.codes
    packed = zlib.compress(codes.index_map.astype("<u2").tobytes(), 1)
    weights = weights_from_patches(codes.patch_counts)
    span = segment.start_us / 1e6, segment.end_us / 1e6
    return Row(number, *span, weights, codes.values, packed)


def _store(connection: sqlite3.Connection, item: Read) -> None:
    """Put a file in place of what the index had of it."""
    connection.execute("DELETE FROM files WHERE path = ?", (item.path,))
    error = item.error.encode("utf-8", "replace").decode()
    values = (item.path, *item.stamp, error, item.judge)
    connection.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?)", values)
    if not item.rows:
        return
    space, basis = _space(connection, item)
    for row in item.rows:
        clip = _insert(connection, item, row, space, basis)
        if item.space[1] == "codebook":
            firsts = [(space, int(first), clip) for first in np.unique(row.numbers[:, 0])]
            connection.executemany("INSERT INTO postings VALUES (?, ?, ?)", firsts)


def _space(
    connection: sqlite3.Connection, item: Read
) -> tuple[int, npt.NDArray[np.float32] | None]:
    """The number of the clips' space, and its basis if it has one by now."""
    connection.execute(
        "INSERT OR IGNORE INTO spaces (name, kind, width) VALUES (?, ?, ?)", item.space
    )
    query = "SELECT id, basis FROM spaces WHERE name = ?"
    number, basis = connection.execute(query, item.space[:1]).fetchone()
    return number, None if basis is None else basis_from_blob(basis, item.space[2])


def _insert(
    connection: sqlite3.Connection,
    item: Read,
    row: Row,
    space: int,
    basis: npt.NDArray[np.float32] | None,
) -> int:
    short = None if basis is None else _sketch_blob(row.numbers, basis)
    weights = row.weights.astype("<f4").tobytes()
    place = (item.path, row.segment, row.start_s, row.end_s)
    cursor = connection.execute(
        "INSERT INTO clips (path, segment, start_s, end_s, space, source, codes, weights, sketch)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*place, space, item.source, len(row.weights), weights, short),
    )
    clip = cursor.lastrowid
    assert clip is not None
    numbers = row.numbers.astype("<f2" if item.space[1] == "kmeans" else "<u2").tobytes()
    connection.execute("INSERT INTO codes VALUES (?, ?, ?)", (clip, numbers, row.packed_map))
    return clip


def _sketch_blob(values: Values, basis: npt.NDArray[np.float32]) -> bytes:
    unit = comparable(values)
    return split(unit.astype(np.float32, copy=False), basis).astype("<f2").tobytes()


def _train(connection: sqlite3.Connection) -> None:
    """Give every space of centroids a basis, a new one when it has grown; sketch its clips."""
    with writing(connection):
        spaces = connection.execute(
            "SELECT id, trained, (SELECT count(*) FROM clips WHERE space = spaces.id)"
            " FROM spaces WHERE kind = 'kmeans'"
        ).fetchall()
        for space, trained, clips in spaces:
            if clips >= max(1, _GROWTH * trained):
                _train_space(connection, space, clips)


def _train_space(connection: sqlite3.Connection, space: int, clips: int) -> None:
    query = "SELECT id FROM clips WHERE space = ? ORDER BY id"
    numbers = [clip for (clip,) in connection.execute(query, (space,))]
    sample = numbers[:: -(-clips // _SAMPLE)]
    units = [comparable(each).astype(np.float32) for each in _values_of(connection, sample)]
    basis = basis_from_values(np.concatenate(units))
    for clip, values in zip(numbers, _values_of(connection, numbers), strict=True):
        short = _sketch_blob(values, basis)
        connection.execute("UPDATE clips SET sketch = ? WHERE id = ?", (short, clip))
    connection.execute(
        "UPDATE spaces SET basis = ?, trained = ? WHERE id = ?",
        (basis.astype("<f4").tobytes(), clips, space),
    )


def _values_of(connection: sqlite3.Connection, clips: Sequence[int]) -> Iterator[Values]:
    """Centroids of clips, each when it is asked for."""
    for clip in clips:
        blob, count = connection.execute(
            "SELECT numbers, codes FROM codes JOIN clips ON clip = id WHERE clip = ?", (clip,)
        ).fetchone()
        yield numbers_from_blob(blob, "kmeans", count)
