"""Questions to an index: which clips are alike, which are the same, what is new.

Every answer is the one that comparing with all clips would give; but clips of a learned codebook
that share no id of the first level with the query, and so have similarity 0, are no answers. A clip
is compared only if the bound on its similarity says that it could be among the answers: for
centroids from their sketches, for ids from the postings of their first level.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqedge_runtime.search.blobs import (
    basis_from_blob,
    codes_from_blobs,
    numbers_from_blob,
    sketches_from_blob,
    weights_from_blob,
)
from vqedge_runtime.search.bounds import most_alike, split
from vqedge_runtime.search.measure import (
    Features,
    Floats,
    alignment,
    comparable,
    features_from_codes,
    matches,
    similarity,
)
from vqedge_runtime.tokens import Codes
from vqedge_runtime.vqt.header import NO_SHA256

_AT_ONCE = 64  # clips read and compared between two looks at the bounds
_CHUNK = 1024  # clips bounded at once
_ROUNDING = 1e-5  # of sums in single precision


@dataclass(frozen=True)
class Hit:
    """A clip that was found.

    Attributes:
        path: name of its file, from the folder on.
        segment: number of its segment.
        start_s, end_s: its span.
        similarity: to the query, at most 1.
        alignment: the same at the same place and time; None where it was not asked for.
        same_source: both were made from one file, byte for byte.
    """

    path: bytes
    segment: int
    start_s: float
    end_s: float
    similarity: float
    alignment: float | None = None
    same_source: bool = False


@dataclass(frozen=True)
class Novelty:
    """A code of the query and the nearest to it in the folder.

    Attributes:
        code: its number.
        share: of the query's patches.
        match: the best match of it, at most 1; of ids 0 where no code shares the first; -1 where
            there is nothing to compare.
        path: the file that has the best match; None where no code matches.
    """

    code: int
    share: float
    match: float
    path: bytes | None


@dataclass(frozen=True)
class Query:
    """A clip to compare with.

    Attributes:
        codes: its codes.
        space: what it can be compared with.
        source: sha256 of the file it was made from; zeros if it was none.
        path: its file's name in the folder, if that lies there.
        segment: its number in that file: it is not compared with itself.
    """

    codes: Codes
    space: str
    source: str = NO_SHA256
    path: bytes | None = None
    segment: int = 0

    @property
    def features(self) -> Features:
        """What of it is compared."""
        return features_from_codes(self.codes)


def similar(connection: sqlite3.Connection, query: Query, count: int) -> list[Hit]:
    """The clips most like a query, the most like it first; equals in order of their names."""
    reader, found = _Reader(connection, query), list[tuple[float, int]]()
    for ranks, bound in reader.best_first():
        if len(found) == count and bound < found[-1][0]:
            break
        both = [*found, *reader.similarities(ranks)]
        found = sorted(both, key=lambda item: (-item[0], item[1]))[:count]
    return [Hit(*reader.place(rank), score) for score, rank in found]


def duplicates(connection: sqlite3.Connection, query: Query, least: float, count: int) -> list[Hit]:
    """Clips that show the same at the same places and times, the most alike first.

    Both similarity and alignment are `least` or more.
    """
    reader, found = _Reader(connection, query), list[Hit]()
    for ranks, bound in reader.best_first():
        if bound < least:
            break
        alike = (item for item in reader.similarities(ranks) if item[0] >= least)
        hits = (reader.aligned(rank, score) for score, rank in alike)
        found += [hit for hit in hits if hit.alignment is not None and hit.alignment >= least]
    return sorted(found, key=lambda hit: (-(hit.alignment or 0), hit.path, hit.segment))[:count]


def novel(connection: sqlite3.Connection, query: Query) -> list[Novelty]:
    """How well each code of a query is known in the folder, in the order of their numbers."""
    reader = _Reader(connection, query)
    best, where = reader.best_matches()
    shares = query.codes.patch_counts / query.codes.index_map.size
    return [
        Novelty(code, float(shares[code]), float(best[code]), where[code])
        for code in range(query.codes.count)
    ]


@dataclass(frozen=True)
class _Clips:
    """The clips that a query can be compared with, `n` of them, in order of their names.

    A clip's rank is its place here.
    """

    ids: npt.NDArray[np.int64]
    bounds: Floats  # of similarity, [n]
    code_bounds: Floats  # of each of the query's codes, [n, k]


class _Reader:
    """What of an index concerns a query."""

    def __init__(self, connection: sqlite3.Connection, query: Query) -> None:
        self._connection, self._query = connection, query
        self._features = query.features
        found = connection.execute(
            "SELECT id, kind, width, basis FROM spaces WHERE name = ?", (query.space,)
        ).fetchone()
        self._space: int
        self._kind: str
        self._space, self._kind, width, basis = found or (-1, "kmeans", 1, None)
        self._basis = None if basis is None else basis_from_blob(basis, width)
        self._clips = self._bounded()

    def best_first(self) -> Iterator[tuple[list[int], float]]:
        """Ranks in portions, and the most that any of the portion and later ones can reach."""
        order = np.argsort(-self._clips.bounds, kind="stable")
        for start in range(0, len(order), _AT_ONCE):
            part = order[start : start + _AT_ONCE]
            yield part.tolist(), float(self._clips.bounds[part[0]]) + _ROUNDING

    def similarities(self, ranks: Sequence[int]) -> list[tuple[float, int]]:
        """Each clip's similarity and rank."""
        return [
            (similarity(self._features, features), rank)
            for rank, features in self._features_of(ranks)
        ]

    def best_matches(self) -> tuple[Floats, list[bytes | None]]:
        """Each code's best match and the file that has it."""
        count = len(self._features.weights)
        least = 0 if self._kind == "codebook" and self._has_clips() else -1  # of any match
        best, owner = np.full(count, least, np.float32), np.full(count, -1, np.int64)
        bounds, seen = self._clips.code_bounds, np.zeros(len(self._clips.ids), np.bool_)
        while len(bounds):
            ahead = np.where(seen, -np.inf, (bounds - best).max(1)) + _ROUNDING
            part = np.argsort(-ahead, kind="stable")[:_AT_ONCE]
            part = part[ahead[part] > 0]
            if not len(part):
                break
            seen[part] = True
            for rank, features in self._features_of(part.tolist()):
                found = matches(self._features.values, features.values).max(1)
                better = found > best
                best[better], owner[better] = found[better], rank
        return best, [None if rank < 0 else self.place(rank)[0] for rank in owner.tolist()]

    def aligned(self, rank: int, score: float) -> Hit:
        """A hit with its alignment."""
        numbers, packed, count, source = self._connection.execute(
            "SELECT numbers, map, codes, source FROM codes JOIN clips ON clip = id WHERE id = ?",
            (int(self._clips.ids[rank]),),
        ).fetchone()
        codes = codes_from_blobs(numbers, packed, self._kind, count)
        same = source == self._query.source != NO_SHA256
        return Hit(*self.place(rank), score, alignment(self._query.codes, codes), same)

    def place(self, rank: int) -> tuple[bytes, int, float, float]:
        """File, segment and span of a clip.

        Raises:
            ValueError: the index names no file there.
        """
        clip = int(self._clips.ids[rank])
        query = "SELECT path, segment, start_s, end_s FROM clips WHERE id = ?"
        path, segment, start_s, end_s = self._connection.execute(query, (clip,)).fetchone()
        if not (isinstance(path, bytes) and isinstance(segment, int)):
            raise ValueError("a clip of no file")
        return path, segment, float(start_s), float(end_s)

    def _features_of(self, ranks: Sequence[int]) -> Iterator[tuple[int, Features]]:
        rank_of = dict(zip(self._clips.ids[ranks].tolist(), ranks, strict=True))
        rows = self._connection.execute(
            "SELECT id, numbers, weights, codes FROM codes JOIN clips ON clip = id"
            f" WHERE id IN ({','.join('?' * len(rank_of))})",
            tuple(rank_of),
        )
        for clip, numbers, weights, count in rows:
            values = comparable(numbers_from_blob(numbers, self._kind, count))
            yield rank_of[clip], Features(values, weights_from_blob(weights))

    def _bounded(self) -> _Clips:
        """Bound the query's similarity to every clip that there is."""
        none = np.zeros((0, len(self._features.weights)), np.float32)
        parts = [_Clips(np.zeros(0, np.int64), none[:, 0], none)]
        rows = self._learned_rows() if self._kind == "codebook" else self._sketched_rows()
        while chunk := rows.fetchmany(_CHUNK):
            parts.append(self._bounds_of(chunk))
        return _Clips(
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.bounds for part in parts]),
            np.concatenate([part.code_bounds for part in parts]),
        )

    def _sketched_rows(self) -> sqlite3.Cursor:
        """All clips but those that somebody is just adding to a new space."""
        return self._connection.execute(
            "SELECT id, codes, weights, sketch FROM clips WHERE space = ?"
            " AND NOT (path IS ? AND segment = ?) AND sketch IS NOT NULL ORDER BY path, segment",
            (self._space, self._query.path, self._query.segment),
        )

    def _has_clips(self) -> bool:
        """Whether there is any to compare with, like the query or not."""
        query = "SELECT 1 FROM clips WHERE space = ? AND NOT (path IS ? AND segment = ?) LIMIT 1"
        own = self._query.path, self._query.segment
        return self._connection.execute(query, (self._space, *own)).fetchone() is not None

    def _learned_rows(self) -> sqlite3.Cursor:
        """Clips that share an id of the first level."""
        firsts = np.unique(self._features.values[:, 0]).astype(int).tolist()
        marks = ",".join("?" * len(firsts))
        return self._connection.execute(
            "SELECT id, codes, weights, numbers FROM clips JOIN codes ON codes.clip = id"
            f" WHERE id IN (SELECT clip FROM postings WHERE space = ? AND first IN ({marks}))"
            " AND NOT (path IS ? AND segment = ?) ORDER BY path, segment",
            (self._space, *firsts, self._query.path, self._query.segment),
        )

    def _bounds_of(self, rows: Sequence[tuple[int, int, bytes, bytes]]) -> _Clips:
        ids, counts, weights, blobs = zip(*rows, strict=True)
        starts = np.cumsum((0, *counts[:-1]))
        most = self._most_alike(b"".join(blobs))
        per_code = np.maximum.reduceat(most, starts, axis=0)
        there = per_code @ self._features.weights
        back = np.add.reduceat(most.max(1) * weights_from_blob(b"".join(weights)), starts)
        bounds = ((there + back) / 2).astype(np.float32)
        return _Clips(np.array(ids, np.int64), bounds, per_code)

    def _most_alike(self, blob: bytes) -> Floats:
        """Bounds between codes of many clips, one after the other, and the query's, `[n, k]`."""
        values = self._features.values
        if self._basis is None:
            ids = np.frombuffer(blob, "<u2").reshape(-1, values.shape[1])
            return matches(ids.astype(np.int32), values)
        of = split(values.astype(np.float32, copy=False), self._basis)
        return most_alike(sketches_from_blob(blob, of.shape[1]), of)
