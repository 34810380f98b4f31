"""Whatever lies where a folder's search index does, the folder is searched, or one line says why.

An input is the SQLite file. Its folder holds four small `.vqt` files of two spaces.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from tiny_vqt import header, segment, tiny_file

from vqedge.errors import SearchError
from vqedge_runtime.search import Query, ask_folder, duplicates, novel, similar, space_of
from vqedge_runtime.search.schema import NAME

MAX_BYTES = 1 << 17
MAKER = "vqedge_runtime.search.index.basis_from_values"
QUERY = Query(segment().codes, space_of(header()))


def one_input(data: bytes) -> None:
    """Put it there, ask all three questions, once more from what is there then."""
    with tempfile.TemporaryDirectory() as name:
        folder = _filled(Path(name))
        (folder / NAME).write_bytes(data)
        for _ in range(2):
            try:
                ask_folder(folder, _asked)
            except SearchError as error:
                line = str(error)
                assert line.isprintable() and len(line) < 600, line


def _asked(index: sqlite3.Connection) -> None:
    similar(index, QUERY, 3), duplicates(index, QUERY, 0.5, 3), novel(index, QUERY)


def _filled(folder: Path) -> Path:
    for number in range(4):
        file = folder / f"{number}.vqt"
        file.write_bytes(tiny_file(number % 2 == 1, 1 + number // 2))
        os.utime(file, (0, 0))  # the index holds the time, and seeds are the same at every run
    return folder


def _axes(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """For as few numbers as `tiny_vqt` has, directions as good as any."""
    return np.eye(values.shape[1], dtype=np.float32)


def seeds() -> list[bytes]:
    """The index of the folder, with directions that are of the same bits on every kind of CPU."""
    with patch(MAKER, _axes), tempfile.TemporaryDirectory() as name:
        ask_folder(_filled(Path(name)), _asked)
        return [(Path(name) / NAME).read_bytes()]
