"""What a search tells apart: places from things, equals by their names, models from models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vqt

from vqedge_runtime.search import Hit, Query, ask_folder, duplicates, similar, space_of
from vqedge_runtime.tokens import Codes
from vqedge_runtime.vqt import Segment, vqt_bytes

LEFT_AND_RIGHT = np.array([[[0, 1]]], np.int32)
KINDS: list[tuple[dict[str, Any], list[list[int]]]] = [
    ({"width": 2}, [[1, 0], [0, 1]]),
    (tiny_vqt.LEARNED, [[1, 2], [3, 4]]),
]


@pytest.mark.parametrize(("kind", "things"), KINDS, ids=["kmeans", "codebook"])
def test_the_same_things_at_other_places_are_alike_and_no_duplicates(
    tmp_path: Path, kind: dict[str, Any], things: list[list[int]]
) -> None:
    head = tiny_vqt.header(**kind, frames=1, grid_height=1, grid_width=2)
    values = np.array(things, np.int32 if head.levels else np.float16)
    clip, mirrored = (Codes(LEFT_AND_RIGHT, part) for part in (values, values[::-1]))

    def write(name: str, codes: Codes) -> None:
        (tmp_path / name).write_bytes(vqt_bytes(head, [Segment(0, 1, (0,), codes)]))

    def found() -> tuple[list[Hit], list[Hit]]:
        query = Query(clip, space_of(head))
        _, both = ask_folder(
            tmp_path, lambda index: (similar(index, query, 5), duplicates(index, query, 0.9, 5))
        )
        return both

    write("c.vqt", mirrored)
    alike, same = found()
    assert [hit.path for hit in alike] == [b"c.vqt"] and same == []
    assert alike[0].similarity == pytest.approx(1)
    write("b.vqt", clip)
    found()
    write("a.vqt", clip)  # the last in the index
    alike, same = found()
    assert [hit.path for hit in alike] == [b"a.vqt", b"b.vqt", b"c.vqt"], "equals by their names"
    assert [hit.path for hit in same] == [b"a.vqt", b"b.vqt"]


@pytest.mark.parametrize("learned", [False, True])
def test_clips_of_one_codebook_are_comparable_whatever_the_bridge(learned: bool) -> None:
    head = tiny_vqt.header(**(tiny_vqt.LEARNED if learned else {}))
    assert (space_of(replace(head, bridge_sha256="ab" * 32)) == space_of(head)) == learned
    if learned:
        assert space_of(replace(head, codebook_sha256="ab" * 32)) != space_of(head)
