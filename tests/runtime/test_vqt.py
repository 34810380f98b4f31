"""`.vqt` files: what is written is what is read, and everything else is one typed line."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vqt import LEARNED, header, segment, tiny_file

from vqedge.errors import VqtError
from vqedge_runtime.stored import read_stored
from vqedge_runtime.tokens import Codes
from vqedge_runtime.vqt import (
    Header,
    Origin,
    Segment,
    is_vqt,
    open_vqt,
    vqt_bytes,
    vqt_files,
    vqt_from_bytes,
)
from vqedge_runtime.vqt import file as files
from vqedge_runtime.vqt import segment as segments
from vqedge_runtime.vqt.gaussian import MAX_BITS, MIN_BITS, levels
from vqedge_runtime.vqt.header import HEADER_BYTES

FIRST_SEGMENT = HEADER_BYTES + 4
COUNT_AT = FIRST_SEGMENT + 16 + 2 * 8  # of a tiny file


def read_whole(data: bytes) -> tuple[Header, list[Segment]]:
    """Everything in a file."""
    file = vqt_from_bytes(data)
    return file.header, [file.segment(number) for number in range(len(file.spans_us))]


def sealed(data: bytes) -> bytes:
    """The same with a fitting checksum: what an attacker would write."""
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def assert_equal(found: Segment, wanted: Segment) -> None:
    assert replace(found, codes=wanted.codes) == wanted
    assert np.array_equal(found.codes.index_map, wanted.codes.index_map)
    assert found.codes.index_map.dtype == np.int32
    assert found.codes.values.dtype == wanted.codes.values.dtype
    assert found.codes.values.tobytes() == wanted.codes.values.tobytes()


# ---- what is written is what is read


_HASH = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def _files(draw: st.DrawFn) -> tuple[Header, list[Segment]]:
    learned = draw(st.booleans())
    shape = tuple(draw(st.integers(1, 5)) for _ in range(3))
    most = draw(st.sampled_from([1, 2, 16, 256, 257, 4096]))
    head = Header(
        kind="codebook" if learned else "kmeans",
        levels=draw(st.integers(1, 5)) if learned else 0,
        width=draw(st.integers(2, 70) | st.just(65536)) if learned else draw(st.integers(1, 9)),
        frames=shape[0],
        grid_height=shape[1],
        grid_width=shape[2],
        codes=most,
        encoder_sha256=draw(_HASH),
        bridge_sha256=draw(_HASH),
        codebook_sha256=draw(_HASH.filter(int_of)) if learned else "00" * 32,
        budget=draw(st.integers(0, most)),
        window_us=draw(st.integers(0, 2**64 - 1)),
        origin=Origin(draw(st.integers(0, 2**64 - 1)), draw(_HASH)),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    times = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=shape[0], max_size=shape[0])
    segments, start_us = [], 0
    for _ in range(draw(st.integers(1, 3))):
        length_us = draw(st.integers(0, 2**40))
        codes = _codes(rng, head)
        segments.append(Segment(start_us, length_us, tuple(draw(times)), codes))
        start_us += length_us + draw(st.integers(0, 5))
    return head, segments


def int_of(digits: str) -> int:
    return int(digits, 16)


def _codes(rng: np.random.Generator, head: Header) -> Codes:
    """Random codes, numbered by first occurrence."""
    drawn = rng.integers(0, head.codes, head.map_shape)
    labels, first = np.unique(drawn, return_index=True)
    rank = np.empty(len(labels), np.int32)
    rank[np.argsort(first)] = np.arange(len(labels))
    index_map = rank[np.searchsorted(labels, drawn)].astype(np.int32)
    if head.kind == "codebook":
        ids = rng.integers(0, head.width, (len(labels), head.levels))
        return Codes(index_map, ids.astype(np.int32))
    values = rng.integers(0, 0x7C00, (len(labels), head.width), np.uint16)  # finite float16
    signs = rng.integers(0, 2, values.shape).astype(np.uint16) << 15
    return Codes(index_map, (values | signs).view(np.float16))


@given(_files())
@settings(max_examples=120)
def test_a_file_is_read_as_it_was_written(written: tuple[Header, list[Segment]]) -> None:
    found_header, found = read_whole(vqt_bytes(*written))
    assert found_header == written[0]
    for pair in zip(found, written[1], strict=True):
        assert_equal(*pair)


@given(_files(), st.integers(MIN_BITS, MAX_BITS))
@settings(max_examples=60)
def test_codes_in_levels_are_read_as_what_the_levels_stand_for(
    written: tuple[Header, list[Segment]], bits: int
) -> None:
    head, segments = written
    if head.kind == "codebook":
        with pytest.raises(VqtError, match="bits"):
            vqt_bytes(replace(head, bits=bits), segments)
        return
    found_header, found = read_whole(vqt_bytes(replace(head, bits=bits), segments))
    assert found_header == replace(head, bits=bits)
    for read, wrote in zip(found, segments, strict=True):
        wanted = wrote.codes.values.astype(np.float32)
        got = read.codes.values.astype(np.float32)
        assert np.array_equal(read.codes.index_map, wrote.codes.index_map)
        assert len(np.unique(got, axis=0)) <= len(wanted)
        mean, spread = wanted.mean(0), np.maximum(wanted.std(0), 2.0**-14)
        inside = np.abs(wanted - mean) < 2.4 * spread
        level = levels(bits)
        widest = max(np.diff(level).max() / 2, 2.4 - level.max())  # inside and outside of them
        slack = 1e-2 * (np.abs(mean) + spread)  # mean and spread were rounded to float16
        assert (np.abs(got - wanted) <= widest * spread + slack)[inside].all()


def test_eight_bits_are_half_the_codes_and_two_an_eighth() -> None:
    rng = np.random.default_rng(0)
    head = header(width=512, codes=40)
    index_map = np.arange(40, dtype=np.int32)
    head = replace(head, frames=1, grid_height=1, grid_width=40)
    codes = Codes(index_map.reshape(1, 1, 40), rng.normal(size=(40, 512)).astype(np.float16))
    whole = Segment(0, 1, (0,), codes)
    sizes = {b: len(vqt_bytes(replace(head, bits=b), [whole])) for b in (0, 8, 2)}
    statistics_bytes = 2 * 2 * 512
    assert sizes[0] - sizes[8] == 40 * 512 - statistics_bytes
    assert sizes[0] - sizes[2] == 40 * 512 * 2 * 7 // 8 - statistics_bytes


def test_levels_are_read_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty bytes a number, were it done at once; the codes are the same."""
    codes = np.random.default_rng(0).normal(size=(2045, 1021)).astype(np.float16)
    head = header(width=1021, codes=2045, bits=3)
    head = replace(head, frames=1, grid_height=1, grid_width=2045)
    index_map = np.arange(2045, dtype=np.int32).reshape(1, 1, 2045)
    data = vqt_bytes(head, [Segment(0, 1, (0,), Codes(index_map, codes))])
    tracemalloc.start()
    _, (found,) = read_whole(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < found.codes.values.nbytes + (12 << 20)
    monkeypatch.setattr(segments, "_AT_ONCE", 1 << 40)
    assert_equal(found, read_whole(data)[1][0])


def test_a_file_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.vqt"
    path.write_bytes(tiny_file(segments=3))
    file = open_vqt(path)
    assert file.size_bytes == path.stat().st_size
    assert file.spans_us == ((0, 500_000), (500_000, 500_000), (1_000_000, 500_000))
    assert_equal(file.segment(2), segment(1_000_000))


@pytest.mark.parametrize(
    ("span", "words"),
    [
        ((None, 0.5), "begins at 1 s, not before end 0.5; give an end above it"),
        ((None, 1.0), "begins at 1 s, not before end 1; "),
        ((1.2, 1.1), "start 1.2 is not before end 1.1; "),
        ((1.2, 1.2), "start 1.2 is not before end 1.2; "),
        ((None, -1.0), "end -1.0 is not a time; "),
    ],
)
def test_a_span_before_the_file_or_backwards(
    tmp_path: Path, span: tuple[float | None, float], words: str
) -> None:
    path = tmp_path / "part.vqt"
    path.write_bytes(vqt_bytes(header(), [segment(1_000_000)]))
    with pytest.raises(VqtError, match=words):
        read_stored(path, None, *span)
    assert read_stored(path, None, None, 1.5)[1].start_us == 1_000_000


def test_an_image_is_found_by_its_time(tmp_path: Path) -> None:
    path = tmp_path / "image.vqt"
    path.write_bytes(vqt_bytes(header(), [replace(segment(), duration_us=0)]))
    assert_equal(read_stored(path, None, 0.0, None)[1], replace(segment(), duration_us=0))
    with pytest.raises(VqtError, match=r"no single segment holds 0\.5 s \(segments: 1 of 0 s"):
        read_stored(path, None, 0.5, None)


def test_what_counts_as_one(tmp_path: Path) -> None:
    renamed, other = tmp_path / "renamed.mp4", tmp_path / "other.mp4"
    renamed.write_bytes(tiny_file())
    other.write_bytes(b"\x89VQ")
    (tmp_path / "folder.vqt").mkdir()
    assert is_vqt(renamed) and is_vqt(tmp_path / "missing.vqt") and is_vqt(Path("A.VQT"))
    assert not is_vqt(other) and not is_vqt(tmp_path) and not is_vqt(tmp_path / "folder.vqt")
    assert not is_vqt(tmp_path / "missing.mp4") and not is_vqt(Path("a\0.mp4"))


def test_files_are_found_below_a_folder_as_deep_as_asked_for(tmp_path: Path) -> None:
    (tmp_path / "b" / "c.vqt").mkdir(parents=True)  # a folder, whatever its name
    for name in ("z.VQT", "b/y.vqt", "b/c.vqt/x.vqt", "b/other.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "gone.vqt").symlink_to("nowhere")

    def found(levels: int | None = None) -> list[str]:
        return [str(path.relative_to(tmp_path)) for path in vqt_files(tmp_path, levels)]

    assert found() == ["z.VQT", "b/y.vqt", "b/c.vqt/x.vqt"]
    assert (found(1), found(2)) == (["z.VQT"], ["z.VQT", "b/y.vqt"])
    assert not list(vqt_files(tmp_path / "none"))


# ---- damage


KINDS = st.sampled_from([(False, 0), (True, 0), (False, 3)])  # learned, bits


@given(st.data(), KINDS)
@settings(max_examples=400)
def test_any_damage_is_a_vqt_error(data: st.DataObject, kind: tuple[bool, int]) -> None:
    intact = tiny_file(kind[0], segments=2, bits=kind[1])
    at = data.draw(st.integers(0, len(intact) - 1))
    how = data.draw(st.sampled_from(["flip", "flip", "cut", "insert"]))
    if how == "flip":
        flipped = bytes([intact[at] ^ data.draw(st.integers(1, 255))])
        damaged = intact[:at] + flipped + intact[at + 1 :]
    elif how == "insert":
        damaged = intact[:at] + data.draw(st.binary(min_size=1, max_size=4)) + intact[at:]
    else:
        damaged = intact[:at]
    with pytest.raises(VqtError):
        read_whole(damaged)


@pytest.mark.parametrize("learned", [False, True])
def test_every_single_bit(learned: bool) -> None:
    intact = tiny_file(learned)
    for bit in range(8 * len(intact)):
        damaged = bytearray(intact)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(VqtError):
            vqt_from_bytes(bytes(damaged))


@given(st.data(), KINDS)
@settings(max_examples=400)
def test_damage_under_a_fitting_checksum_is_read_or_refused(
    data: st.DataObject, kind: tuple[bool, int]
) -> None:
    """Past the checksum the parser itself is met: it gives a whole file or a `VqtError`."""
    damaged = bytearray(tiny_file(kind[0], segments=2, bits=kind[1]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(10, len(damaged) - 5))
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        head, segments = read_whole(sealed(bytes(damaged)))
    except VqtError as error:
        assert "\n" not in str(error) and ";" in str(error), "one line that names the next step"
        return
    assert read_whole(vqt_bytes(head, segments))[0] == head


@given(st.binary(max_size=600))
@settings(max_examples=200)
def test_random_bytes(data: bytes) -> None:
    for start in (b"", tiny_file()[:10], tiny_file()[:HEADER_BYTES]):
        with pytest.raises(VqtError):
            read_whole(sealed(start + data + b"\0\0\0\0\0\0\0\0"))


# ---- what cannot be, under a fitting checksum


def changed(
    at: int, form: str, *values: Any, learned: bool = False, bits: int = 0, segments: int = 1
) -> bytes:
    data = bytearray(tiny_file(learned, segments, bits))
    struct.pack_into("<" + form, data, at, *values)
    return sealed(bytes(data))


def _with_map(index_map: Any, learned: bool = False) -> Callable[[], bytes]:
    wanted = segment(learned=learned)
    codes = Codes(np.array(index_map, np.int32), wanted.codes.values)
    return lambda: vqt_bytes(header(), [replace(wanted, codes=codes)])


REFUSED: dict[str, Callable[[], bytes]] = {
    "not a .vqt file, or damaged by a copy as text": lambda: tiny_file().replace(b"\r\n", b"\n"),
    "version 3; this vqedge reads versions 1 and 2: upgrade": lambda: changed(8, "H", 3),
    "version 2 is for codes in levels only": lambda: changed(8, "H", 2),
    "bits 9 is not within 2 and 8": lambda: changed(11, "B", 9, bits=4),
    "bits 1 is not within 2 and 8": lambda: changed(11, "B", 1, bits=4),
    "version 0; this": lambda: changed(8, "H", 0),
    "ends within its header": lambda: tiny_file()[:9],
    "ends too early; copy it again": lambda: tiny_file()[:100],
    "its checksum is not right; copy it again": lambda: tiny_file()[:-1] + b"\0",
    "quantizer kind 7 is unknown": lambda: changed(10, "B", 7),
    "levels 2 is not within 0 and 0": lambda: changed(11, "B", 2),
    "levels 0 is not within 1 and 64": lambda: changed(11, "B", 0, learned=True),
    "frames x grid 281462092005375 is": lambda: changed(12, "HHH", 65535, 65535, 65535),
    "frames x grid 0 is": lambda: changed(12, "H", 0),
    "codes 5000 is": lambda: changed(18, "H", 5000),
    "width 4294967295 is": lambda: changed(20, "I", 2**32 - 1),
    "width 1 is not within 2 and": lambda: changed(20, "I", 1, learned=True),
    "budget 5 is not within 0 and 4": lambda: changed(24, "H", 5),
    "kind codebook does not go with codebook 0000": lambda: changed(
        138, "32s", bytes(32), learned=True
    ),
    "kind kmeans does not go with codebook cccc": lambda: changed(138, "32s", b"\xcc" * 32),
    "holds no segment; encode": lambda: sealed(tiny_file()[:HEADER_BYTES] + bytes(8)),
    "not in order of time": lambda: changed(HEADER_BYTES + 12, "Q", 500_001, segments=2),
    "ends after 9223372036854775808 microseconds": lambda: changed(
        HEADER_BYTES + 4, "QQ", 1 << 62, 1 << 62
    ),
    "longer than the file": lambda: changed(HEADER_BYTES, "I", 10**6),
    "ends without its end mark": lambda: sealed(tiny_file()[:-8] + b"\0\0\0\0"),
    "something after its end mark": lambda: sealed(tiny_file()[:-4] + b"\0" + b"\0\0\0\0"),
    "cannot hold 0 codes": lambda: changed(COUNT_AT, "H", 0),
    "cannot hold 5 codes": lambda: changed(COUNT_AT, "H", 5),
    "cannot hold 3 codes": lambda: changed(COUNT_AT + 2, "I", 2**32 - 1),
    "the index map cannot be unpacked": lambda: changed(COUNT_AT + 6, "B", 0x7F),
    "the index map unpacks to another size": lambda: changed(COUNT_AT + 6, "B", 0),
    "not one of 3 codes in order": lambda: changed(COUNT_AT + 9, "B", 1),
    "a code is NaN or infinite": lambda: changed(COUNT_AT + 18, "H", 0x7C00),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_cannot_be(problem: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.vqt"
    path.write_bytes(REFUSED[problem]())
    with pytest.raises(VqtError) as caught:
        file = open_vqt(path)
        with files.vqt_errors(path):
            file.segment(0)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert ";" in str(caught.value) or ": upgrade" in str(caught.value), "names no next step"


def test_ids_that_cannot_be() -> None:
    head = header(**(LEARNED | {"width": 12}))
    with pytest.raises(VqtError, match="an id is not within 0 and 11"):
        vqt_bytes(head, [segment(learned=True)])
    data = bytearray(tiny_file(learned=True))
    struct.pack_into("<I", data, 20, 12)  # the same bits, fewer entries
    with pytest.raises(VqtError, match="an id is not within 0 and 11"):
        read_whole(sealed(bytes(data)))
    five = header(**(LEARNED | {"width": 5}))
    small = replace(segment(), codes=Codes(segment().codes.index_map, np.ones((3, 2), np.int32)))
    data = bytearray(vqt_bytes(five, [small]))
    data[-9] |= 0x80  # 18 bits of ids, 6 left over
    with pytest.raises(VqtError, match="bits after the last id"):
        read_whole(sealed(bytes(data)))


def test_a_file_beyond_the_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "big.vqt"
    path.write_bytes(tiny_file(segments=3))
    monkeypatch.setattr(files, "MAX_SEGMENTS", 2)
    with pytest.raises(VqtError, match="too many segments"):
        open_vqt(path)
    with pytest.raises(VqtError, match=r"too many segments for one file; .* --segment"):
        tiny_file(segments=3)
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 300)
    with pytest.raises(VqtError, match="larger than 0 MiB; split the video"):
        open_vqt(path)


def test_no_unpacking_of_more_than_the_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small stream that would unpack to gigabytes is stopped at the size of the map."""
    import lzma

    bomb = lzma.compress(bytes(50 << 20), format=lzma.FORMAT_RAW, filters=segments._FILTERS)
    monkeypatch.setattr(segments, "_packed_map", lambda *_: bomb)
    data = tiny_file()
    assert len(data) < 40_000
    tracemalloc.start()
    with pytest.raises(VqtError, match="unpacks to another size"):
        read_whole(data)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2 << 20


def test_segments_out_of_order_are_not_written() -> None:
    with pytest.raises(VqtError, match="begins before the last one ends"):
        vqt_bytes(header(), [segment(10), segment(0)])
    with pytest.raises(VqtError, match="holds no segment"):
        vqt_bytes(header(), [])


@pytest.mark.parametrize(
    "change",
    [{"start_us": -1}, {"duration_us": 2**63}, {"times_us": (0, 2**63)}],
)
def test_times_beyond_64_bits_are_not_written(change: dict[str, Any]) -> None:
    with pytest.raises(VqtError, match="a time is none that a file can hold"):
        vqt_bytes(header(), [replace(segment(), **change)])


@pytest.mark.parametrize("shape", [(2, 2, 3), (1, 2, 2)])
def test_codes_of_another_header_are_not_written(shape: tuple[int, ...]) -> None:
    codes = Codes(np.zeros(shape, np.int32), segment().codes.values)
    with pytest.raises(VqtError, match="sizes that the header says"):
        vqt_bytes(header(), [replace(segment(), codes=codes)])
