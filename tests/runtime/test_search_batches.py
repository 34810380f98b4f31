"""How many files of tokens go into the index together."""

from __future__ import annotations

import numpy as np
import pytest

from vqedge_runtime.search import index
from vqedge_runtime.search.index import Read, Row


def read(size_bytes: int) -> Read:
    none = np.zeros(0, np.float32)
    return Read(b"a", (0, 0), rows=(Row(0, 0.0, 1.0, none, none, bytes(size_bytes)),))


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """Rows whose size was asked for."""
    asked, size = list[Row](), Row.size_bytes.fget  # type: ignore[attr-defined]
    monkeypatch.setattr(Row, "size_bytes", property(lambda row: asked.append(row) or size(row)))
    return asked


def test_a_batch_ends_where_it_has_bytes_or_files_enough(
    summed: list[Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_BATCH_FILES", 3)
    monkeypatch.setattr(index, "_BATCH_BYTES", 9)
    sizes = [4, 4, 4, 1, 1, 1, 9, 1, 1]
    batches = index._batches(map(read, sizes))
    assert [len(batch) for batch in batches] == [3, 3, 2, 1]
    assert len(summed) == len(sizes), "every row once"
