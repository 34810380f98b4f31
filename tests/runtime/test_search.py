"""Searching `.vqt` files: answers are those of comparing with all, the index keeps up."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import bench_search as bench
import numpy as np
import pytest
import tiny_vqt
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vqedge.errors import SearchError, VqtError
from vqedge_runtime.search import Query, ask_folder, duplicates, novel, similar, space_of
from vqedge_runtime.search import index as index_module
from vqedge_runtime.search.blobs import basis_from_blob, codes_from_blobs
from vqedge_runtime.search.bounds import basis_from_values, most_alike, split
from vqedge_runtime.search.measure import (
    Features,
    alignment,
    comparable,
    features_from_codes,
    matches,
    similarity,
)
from vqedge_runtime.search.schema import BUSY_S, NAME, connect
from vqedge_runtime.tokens import Codes
from vqedge_runtime.vqt import Header, Segment, vqt_bytes
from vqedge_runtime.vqt.file import VqtFile

CLIPS = 40  # 19 is 18, a little changed


@pytest.fixture(scope="module", params=["kmeans", "codebook"])
def made(request: pytest.FixtureRequest) -> bench.Made:
    return bench.made(request.param, CLIPS)


@pytest.fixture
def folder(made: bench.Made, tmp_path: Path) -> Path:
    for number in range(CLIPS):
        write(tmp_path / f"{number:06d}.vqt", made.header, made.codes[number])
    return tmp_path


def write(path: Path, header: Header, *clips: Codes) -> None:
    times = tuple(range(header.frames))
    segments = [Segment(i * 1_000_000, 1_000_000, times, codes) for i, codes in enumerate(clips)]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(vqt_bytes(header, segments))


def names(folder: Path, query: Query, count: int = 5) -> list[str]:
    _, hits = ask_folder(folder, lambda index: similar(index, query, count))
    return [os.fsdecode(hit.path) for hit in hits]


# ---- the measure


def test_a_clip_is_most_like_itself(made: bench.Made) -> None:
    own, other = (features_from_codes(codes) for codes in made.codes[:2])
    assert similarity(own, own) == pytest.approx(1.0, abs=1e-5)
    assert similarity(own, other) == pytest.approx(similarity(other, own), abs=1e-6)
    assert similarity(own, other) < 0.95


def test_alignment_tells_what_moves_another_way(made: bench.Made) -> None:
    codes = made.codes[0]
    backwards = Codes(codes.index_map[:, :, ::-1], codes.values)
    assert alignment(codes, codes) == pytest.approx(1.0, abs=1e-5)
    own, other = features_from_codes(codes), features_from_codes(backwards)
    assert similarity(own, other) == pytest.approx(1.0, abs=1e-5)
    assert alignment(codes, backwards) < 0.8


def test_levels_count_from_the_first_on() -> None:
    a = np.array([[1, 2, 3, 4]], np.int32)
    b = np.array([[1, 2, 3, 4], [1, 2, 0, 4], [0, 2, 3, 4]], np.int32)
    assert matches(a, b).tolist() == [[1.0, 0.5, 0.0]]


def test_small_things_count_more_than_their_patches() -> None:
    index_map = np.zeros((1, 4, 5), np.int32)
    index_map[0, 0, :4] = np.array([1, 1, 1, 1])
    weights = features_from_codes(Codes(index_map, np.ones((2, 3), np.float16))).weights
    assert weights.tolist() == pytest.approx([2 / 3, 1 / 3])


def test_codes_of_zeros_and_of_the_largest_numbers() -> None:
    values = np.array([[0, 0], [65504, 65504], [6e-8, 0]], np.float16)
    unit = comparable(values)
    assert np.linalg.norm(unit, axis=1).tolist() == pytest.approx([0, 1, 1], abs=1e-6)


@settings(max_examples=60)
@given(
    hnp.arrays(np.float16, (12, 40), elements=st.floats(-100, 100, width=16)),
    hnp.arrays(np.float32, (40, 40), elements=st.floats(-1, 1, width=32)),
)
def test_no_match_is_above_its_bound(values: Any, other: Any) -> None:
    """Whatever the directions were made from."""
    unit = comparable(values).astype(np.float32)
    basis = basis_from_values(other)
    short = split(unit, basis)
    most = most_alike(short.astype(np.float16), short)
    assert (matches(unit, unit) <= most).all()


def test_bounds_are_close_where_a_few_directions_hold_most(made: bench.Made) -> None:
    if made.header.kind == "codebook":
        pytest.skip("bounds are for codes by value; ids are compared as they are")
    unit = np.concatenate([comparable(codes.values) for codes in made.codes]).astype(np.float32)
    short = split(unit, basis_from_values(unit))
    over = most_alike(short.astype(np.float16), short[:32]) - matches(unit, unit[:32])
    assert over.min() >= 0
    assert np.median(over) < 0.1


@pytest.mark.parametrize("shape", [(1, 3), (2, 4096), (40, 384)])
def test_a_basis_is_orthonormal_whatever_it_is_made_from(shape: tuple[int, int]) -> None:
    for values in (np.zeros(shape, np.float32), np.ones(shape, np.float32)):
        basis = basis_from_values(values).astype(np.float64)
        assert basis.shape == (shape[1], min(32, shape[1]))
        assert np.abs(basis.T @ basis - np.eye(basis.shape[1])).max() < 1e-6


@pytest.mark.parametrize("directions", [4, 1 << 20])  # of the latter the products are terabytes
def test_a_basis_of_another_number_of_directions_is_refused(directions: int) -> None:
    with pytest.raises(ValueError, match=f"{directions} directions of 8 numbers"):
        basis_from_blob(np.eye(8, directions, dtype="<f4").tobytes(), 8)


# ---- answers


def test_answers_are_those_of_comparing_with_all(folder: Path, made: bench.Made) -> None:
    queries = [bench.query_of(made, number) for number in (0, 30, 18, 19)]
    everyone = bench.prepared(made)
    _, equal = ask_folder(folder, lambda i: [bench.agree(i, query, everyone) for query in queries])
    assert equal == [True] * 4


def test_not_all_clips_are_compared(
    folder: Path, made: bench.Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Features] = []
    monkeypatch.setattr("vqedge_runtime.search.query._AT_ONCE", 4)
    monkeypatch.setattr(
        "vqedge_runtime.search.query.similarity",
        lambda a, b: compared.append(b) or similarity(a, b),
    )
    ask_folder(folder, lambda index: similar(index, bench.query_of(made, 18), 1))
    assert len(compared) < CLIPS - 1


def test_duplicates_and_their_source(folder: Path, made: bench.Made) -> None:
    _, hits = ask_folder(folder, lambda i: duplicates(i, bench.query_of(made, 18), 0.9, 5))
    assert [os.fsdecode(hit.path) for hit in hits] == ["000019.vqt"]
    assert not hits[0].same_source, "no source is no common source"


def test_what_is_new(tmp_path: Path, made: bench.Made) -> None:
    write(tmp_path / "a.vqt", made.header, made.codes[0])
    write(tmp_path / "b.vqt", made.header, made.codes[1])
    values = made.codes[0].values.copy()
    values[5] = np.roll(values[5], 1) if values.dtype.kind == "f" else values[5] * 0 + 511
    query = Query(Codes(made.codes[0].index_map, values), space_of(made.header))
    _, found = ask_folder(tmp_path, lambda index: novel(index, query))
    assert [item.code for item in found if item.match < 0.8] == [5]
    assert {item.path for item in found if item.match > 0.999} == {b"a.vqt"}
    assert sum(item.share for item in found) == pytest.approx(1)


def test_clips_of_another_model_are_not_compared(folder: Path, made: bench.Made) -> None:
    query = Query(made.codes[0], "another")
    assert names(folder, query) == []
    _, found = ask_folder(folder, lambda index: novel(index, query))
    assert {(item.match, item.path) for item in found} == {(-1.0, None)}


def test_what_shares_no_first_id_is_no_hit_and_has_a_match_of_0(tmp_path: Path) -> None:
    """As comparing with all says, whether or not another code of the query shares one."""
    head = tiny_vqt.header(**tiny_vqt.LEARNED)
    there = tiny_vqt.segment(learned=True).codes  # their first ids are 1, 3 and 15
    write(tmp_path / "a.vqt", head, there)
    for values, hits, found in (
        ([[7, 2], [8, 4], [9, 0]], [], [(0, None)] * 3),
        ([[7, 2], [3, 0], [15, 0]], [b"a.vqt"], [(0, None), (0.5, b"a.vqt"), (1, b"a.vqt")]),
    ):
        codes = Codes(there.index_map, np.array(values, np.int32))
        assert [match for match, _ in found] == matches(codes.values, there.values).max(1).tolist()
        query = Query(codes, space_of(head))
        _, (alike, new) = ask_folder(tmp_path, lambda i, q=query: (similar(i, q, 5), novel(i, q)))
        assert [hit.path for hit in alike] == hits
        assert [(item.match, item.path) for item in new] == found
    alone = Query(there, space_of(head), path=b"a.vqt")
    _, new = ask_folder(tmp_path, lambda index: novel(index, alone))
    assert {item.match for item in new} == {-1}, "a clip is not compared with itself"


def test_segments_are_clips(tmp_path: Path, made: bench.Made) -> None:
    write(tmp_path / "long.vqt", made.header, *made.codes[:3])
    query = Query(made.codes[1], space_of(made.header))
    state, hits = ask_folder(tmp_path, lambda index: similar(index, query, 1))
    assert (state.files, state.clips) == (1, 3)
    assert (hits[0].segment, hits[0].start_s, hits[0].end_s) == (1, 1.0, 2.0)


def test_the_other_segments_of_the_file_are_compared(tmp_path: Path, made: bench.Made) -> None:
    """A repetition in one long recording is found, and is not new."""
    write(tmp_path / "long.vqt", made.header, *(made.codes[n] for n in (0, 18, 18)))
    query = Query(made.codes[18], space_of(made.header), path=b"long.vqt", segment=2)
    _, hits = ask_folder(tmp_path, lambda index: duplicates(index, query, 0.9, 5))
    assert [(hit.path, hit.segment) for hit in hits] == [(b"long.vqt", 1)]
    _, found = ask_folder(tmp_path, lambda index: novel(index, query))
    assert {item.path for item in found if item.match > 0.999} == {b"long.vqt"}


# ---- the index


def test_what_another_adds_meanwhile_is_not_gone(
    folder: Path, made: bench.Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking at the folder and at the index."""
    ask_folder(folder, lambda _: None)
    real = index_module.stamps_below

    def stamps(root: Path) -> Iterator[tuple[bytes, tuple[int, int]]]:
        yield from real(root)
        monkeypatch.setattr(index_module, "stamps_below", real)
        write(root / "new.vqt", made.header, made.codes[0])
        assert ask_folder(root, lambda _: None)[0].read == 1

    monkeypatch.setattr(index_module, "stamps_below", stamps)
    state = ask_folder(folder, lambda _: None)[0]
    assert (state.gone, state.clips) == (0, CLIPS + 1)


def test_only_what_is_new_or_changed_is_read(folder: Path, made: bench.Made) -> None:
    assert ask_folder(folder, lambda _: None)[0].read == CLIPS
    assert ask_folder(folder, lambda _: None)[0].read == 0
    query = bench.query_of(made, 18)
    assert names(folder, query, 1) == ["000019.vqt"]

    write(folder / "000019.vqt", made.header, made.codes[0], made.codes[0])
    (folder / "000005.vqt").unlink()
    write(folder / "below" / "new.VQT", made.header, made.codes[18])
    state, hits = ask_folder(folder, lambda index: similar(index, query, 1))
    assert (state.read, state.gone, state.files, state.clips) == (2, 1, CLIPS, CLIPS + 1)
    assert hits[0].path == b"below/new.VQT" and hits[0].similarity == pytest.approx(1, abs=1e-5)
    assert hits == ask_folder(folder, lambda index: similar(index, query, 1))[1]


def test_a_file_of_a_far_year_is_read_as_others_are(folder: Path) -> None:
    far_s = 10_413_792_000  # in 2300: more nanoseconds than 63 bits
    os.utime(folder / "000003.vqt", (0, far_s))
    if (folder / "000003.vqt").stat().st_mtime != far_s:
        pytest.skip("this file system holds no time of that year")
    assert [ask_folder(folder, lambda _: None)[0].read for _ in range(2)] == [CLIPS, 0]
    os.utime(folder / "000003.vqt", (0, far_s + 1))
    assert ask_folder(folder, lambda _: None)[0].read == 1


def test_bases_are_made_anew_as_a_folder_grows(tmp_path: Path, made: bench.Made) -> None:
    for number, codes in enumerate(made.codes[:20]):
        write(tmp_path / f"{number:06d}.vqt", made.header, codes)
        ask_folder(tmp_path, lambda _: None)
    few = bench.Made(made.header, made.codes[:20])
    query = bench.query_of(few, 3)
    _, equal = ask_folder(tmp_path, lambda index: bench.agree(index, query, bench.prepared(few)))
    assert equal
    if made.header.kind == "kmeans":
        with connect(tmp_path / NAME) as index:
            assert index.execute("SELECT trained FROM spaces").fetchall() == [(16,)]
        index.close()


def test_a_bad_file_stops_nothing(folder: Path, made: bench.Made) -> None:
    whole = (folder / "000000.vqt").read_bytes()
    (folder / "cut.vqt").write_bytes(whole[:-1])
    (folder / "empty.vqt").touch()
    (folder / os.fsdecode(b"\xff\n.vqt")).write_bytes(b"x")
    (folder / "dir.vqt").mkdir()
    (folder / "loop.vqt").symlink_to("loop.vqt")
    os.mkfifo(folder / "pipe.vqt")
    state, hits = ask_folder(folder, lambda i: similar(i, bench.query_of(made, 18), 1))
    assert [path for path, _ in state.bad] == [b"cut.vqt", b"empty.vqt", b"\xff\n.vqt"]
    assert all("; " in line and "\n" not in line for _, line in state.bad)
    assert (len(hits), state.clips) == (1, CLIPS)
    (folder / "cut.vqt").write_bytes(whole)
    assert ask_folder(folder, lambda _: None)[0].clips == CLIPS + 1


def test_codes_too_large_to_search_are_not_even_read(
    folder: Path, made: bench.Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    if made.header.kind == "codebook":
        pytest.skip("ids are small")
    monkeypatch.setattr(index_module, "_MOST_SEGMENT_BYTES", 0)
    monkeypatch.setattr(VqtFile, "segment", lambda *_: pytest.fail("read"))
    state, _ = ask_folder(folder, lambda _: None)
    assert (state.clips, len(state.bad)) == (0, CLIPS)
    assert "a segment may hold more than 0 MiB of codes; encode it with fewer" in state.bad[0][1]


def test_maps_count_to_what_one_file_may_add(
    tmp_path: Path, made: bench.Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = made.codes[0]
    map_bytes = len(zlib.compress(codes.index_map.astype("<u2").tobytes(), 1))
    write(tmp_path / "a.vqt", made.header, codes, codes)
    numbers = codes.values.nbytes * 2
    for most, clips in ((numbers + 2 * map_bytes, 2), (numbers + 2 * map_bytes - 1, 0)):
        monkeypatch.setattr(index_module, "_MOST_BYTES", most)
        (tmp_path / NAME).unlink(missing_ok=True)
        state, _ = ask_folder(tmp_path, lambda _: None)
        assert (state.clips, len(state.bad)) == (clips, not clips), state.bad


def test_a_damaged_file_is_read_once_and_told_every_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (folder / "000000.vqt").read_bytes()
    (folder / "cut.vqt").write_bytes(whole[:-1])
    opened = Mock(wraps=index_module.open_vqt)
    monkeypatch.setattr(index_module, "open_vqt", opened)

    def opened_for(place: Path) -> tuple[tuple[tuple[bytes, str], ...], int]:
        opened.reset_mock()
        return ask_folder(place, lambda _: None)[0].bad, opened.call_count

    ((path, error),), calls = opened_for(folder)
    assert path == b"cut.vqt" and error.startswith(f"{folder}/cut.vqt: ")
    assert calls == CLIPS + 1
    assert opened_for(folder) == (((path, error),), 0)
    monkeypatch.chdir(folder)
    assert opened_for(Path()) == (((path, error.removeprefix(f"{folder}/")),), 0)
    monkeypatch.setattr(index_module, "__version__", "99.0")
    assert opened_for(folder) == (((path, error),), 1)
    (folder / "cut.vqt").write_bytes(whole)
    assert opened_for(folder) == ((), 1)


def overwritten(path: Path) -> None:
    path.write_bytes(b"no database at all " * 1000)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8192])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100 : len(data) // 2] = bytes(byte ^ 0x5A for byte in data[100 : len(data) // 2])
    path.write_bytes(data)


def of_the_future(path: Path) -> None:
    execute(path, "PRAGMA user_version = 99")


def of_the_past(path: Path) -> None:
    execute(path, "ALTER TABLE files DROP COLUMN judge")
    execute(path, "PRAGMA user_version = 1")


def without_a_table(path: Path) -> None:
    execute(path, "DROP TABLE codes")


def with_a_trigger(path: Path) -> None:
    execute(path, "CREATE TRIGGER more AFTER INSERT ON clips BEGIN DELETE FROM codes; END")


def with_a_short_blob(path: Path) -> None:
    execute(path, "UPDATE codes SET numbers = x'00'")


def with_weights_above_1(path: Path) -> None:
    rewrite(path, "clips", "weights", lambda blob: b"\x00\x00\x00\x7f" * (len(blob) // 4))


def with_a_clip_of_no_file(path: Path) -> None:
    execute(path, "UPDATE clips SET path = 'text'")


def execute(path: Path, statement: str) -> None:
    index = sqlite3.connect(path)
    index.execute(statement)
    index.commit()
    index.close()


def rewrite(path: Path, table: str, column: str, change: Callable[[bytes], bytes]) -> None:
    with closing(sqlite3.connect(path)) as index:
        index.create_function("change", 1, lambda blob: blob and change(blob))
        index.execute(f"UPDATE {table} SET {column} = change({column})")
        index.commit()


@pytest.mark.parametrize(
    "damage",
    [
        *(overwritten, cut, flipped, of_the_future, of_the_past, without_a_table),
        *(with_a_trigger, with_a_short_blob, with_weights_above_1, with_a_clip_of_no_file),
    ],
)
def test_a_damaged_index_is_made_again(
    folder: Path, made: bench.Made, damage: Callable[[Path], None]
) -> None:
    query, notes = bench.query_of(made, 18), list[str]()
    before = ask_folder(folder, lambda index: similar(index, query, 5), notes.append)[1]
    assert notes == []
    damage(folder / NAME)
    state, after = ask_folder(folder, lambda index: similar(index, query, 5), notes.append)
    assert (after, state.read) == (before, CLIPS)
    assert len(notes) == 1 and "it is made again" in notes[0] and NAME in notes[0]
    assert ask_folder(folder, lambda _: None, notes.append)[0].read == 0
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("table", "column", "number"),
    [
        ("spaces", "basis", np.float32(3e30)),
        ("spaces", "basis", np.float32(0.5)),
        ("spaces", "basis", np.float32(np.nan)),
        ("clips", "sketch", np.float16(np.inf)),
        ("clips", "sketch", np.float16(2)),
        ("codes", "numbers", np.float16(np.nan)),
    ],
)
def test_an_index_whose_numbers_cannot_be_is_made_again(
    folder: Path, made: bench.Made, table: str, column: str, number: np.generic
) -> None:
    if made.header.kind == "codebook":
        pytest.skip("ids have no basis, no sketch, and none is no number")
    query, notes, size = bench.query_of(made, 18), list[str](), number.itemsize
    before = ask_folder(folder, lambda index: similar(index, query, 5), notes.append)[1]
    rewrite(folder / NAME, table, column, lambda blob: number.tobytes() * (len(blob) // size))
    after = ask_folder(folder, lambda index: similar(index, query, 5), notes.append)[1]
    assert after == before
    assert len(notes) == 1 and "it is made again" in notes[0]


def test_a_folder_that_may_not_be_written(folder: Path, made: bench.Made) -> None:
    (folder / NAME).mkdir()  # stands in for missing rights, which root has anyway
    notes: list[str] = []
    query = bench.query_of(made, 18)
    _, hits = ask_folder(folder, lambda index: similar(index, query, 1), notes.append)
    assert len(hits) == 1
    assert len(notes) == 1 and "in memory" in notes[0]


def test_a_full_disk_and_one_that_is_read_only(folder: Path) -> None:
    def fill_once(index: sqlite3.Connection) -> None:
        if not notes:
            index.execute("PRAGMA max_page_count = 1")
            index.execute("CREATE TABLE more AS SELECT zeroblob(100000)")

    def write_once(index: sqlite3.Connection) -> None:
        if not notes:
            index.execute("PRAGMA query_only = ON")
            index.execute("CREATE TABLE more (number)")

    notes: list[str] = []
    ask_folder(folder, fill_once, notes.append)
    assert notes.pop() == (
        f"{folder}: cannot be written, the disk is full; the index is made in memory"
    )
    ask_folder(folder, write_once, notes.append)
    assert notes == [f"{folder}: may not be written; the index is made in memory"]


def test_no_folder_and_an_empty_one(tmp_path: Path, made: bench.Made) -> None:
    with pytest.raises(SearchError, match="no such folder"):
        ask_folder(tmp_path / "none", lambda _: None)
    (tmp_path / "clip.mp4").touch()
    with pytest.raises(SearchError, match=r"no \.vqt files in it; make them with: vqedge encode"):
        ask_folder(tmp_path, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    file, query = tmp_path / "sub" / "A.VQT", Query(made.codes[0], space_of(made.header))
    write(file, made.header, made.codes[0])
    assert names(tmp_path, query) == ["sub/A.VQT"]
    file.unlink()
    assert names(tmp_path, query) == [], "its index is brought up to date"


def test_somebody_else_is_writing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqedge_runtime.search.schema.BUSY_S", 0.05)
    other = connect(folder / NAME)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SearchError, match="somebody else"):
        ask_folder(folder, lambda _: None)
    other.execute("ROLLBACK")
    other.close()
    assert ask_folder(folder, lambda _: None)[0].read == CLIPS


def test_the_first_to_open_an_index_wait_for_each_other(tmp_path: Path) -> None:
    """SQLite does not wait for the lock of the first use."""
    barrier = threading.Barrier(4, timeout=2 * BUSY_S)

    def open_all() -> None:
        for number in range(20):
            barrier.wait()
            connect(tmp_path / f"{number}.sqlite").close()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(open_all) for _ in range(4)]:
            done.result()


def test_two_writers_at_once(folder: Path, made: bench.Made) -> None:
    code = (
        "import sys; from pathlib import Path; from vqedge_runtime.search import ask_folder\n"
        "state, _ = ask_folder(Path(sys.argv[1]), lambda _: None, lambda line: sys.exit(line))\n"
        "print(state.clips, len(state.bad))"
    )
    command = [sys.executable, "-c", code, str(folder)]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ends = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], ends
    assert {out for out, _ in ends} == {f"{CLIPS} 0\n"}
    query = bench.query_of(made, 18)
    state, equal = ask_folder(folder, lambda index: bench.agree(index, query, bench.prepared(made)))
    assert equal and state.read == 0


def test_the_bench_runs_and_agrees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.json"
    monkeypatch.setattr(bench, "QUERIES", 2)
    monkeypatch.setattr(sys, "argv", ["bench", "--clips", "40", "--json", str(out)])
    assert bench.main() == 0
    assert '"equal": true' in capsys.readouterr().out
    assert out.read_text().startswith('{"clips": 40')


def test_a_file_that_failed_is_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(path: Path) -> Any:
        raise VqtError(f"{path}: no rights; check the path and its rights")

    with monkeypatch.context() as patched:
        patched.setattr("vqedge_runtime.search.index.open_vqt", unreadable)
        state = ask_folder(folder, lambda _: None)[0]
        assert (state.clips, len(state.bad)) == (0, CLIPS)
    state = ask_folder(folder, lambda _: None)[0]
    assert (state.clips, state.bad, state.read) == (CLIPS, (), 0)


def test_a_map_from_a_hostile_index_is_not_unpacked_whole() -> None:
    packed = zlib.compress(bytes(1 << 28))
    with pytest.raises(ValueError, match="patches"):
        codes_from_blobs(b"", packed, "kmeans", 1)
