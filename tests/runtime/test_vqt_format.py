"""docs/vqt-format.md: its worked example is the file that we write, its table is our layout."""

from __future__ import annotations

import lzma
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from tiny_vqt import LEARNED, header, segment, tiny_file

from vqedge_runtime.tokens import Codes
from vqedge_runtime.video import clip
from vqedge_runtime.vqt import Header, Origin, Segment, vqt_bytes, vqt_from_bytes
from vqedge_runtime.vqt import file as files
from vqedge_runtime.vqt import header as headers
from vqedge_runtime.vqt.gaussian import levels
from vqedge_runtime.vqt.segment import most_bytes

PAGE = Path(__file__).parents[2] / "docs/vqt-format.md"
BEGIN, END = "<!-- example -->\n", "<!-- /example -->"


def dumped(data: bytes) -> str:
    """Sixteen bytes a line, with their place."""
    lines = (data[at : at + 16] for at in range(0, len(data), 16))
    rows = (f"{at * 16:04x}  {line.hex(' ')}\n" for at, line in enumerate(lines))
    return f"```text\n{''.join(rows)}```\n"


def test_the_worked_example_is_what_we_write(request: pytest.FixtureRequest) -> None:
    page, wanted = PAGE.read_text(encoding="utf-8"), dumped(tiny_file(learned=True))
    before, rest = page.split(BEGIN)
    found, after = rest.split(END)
    if request.config.getoption("--update-golden"):
        PAGE.write_text(before + BEGIN + wanted + END + after, encoding="utf-8")
        found = wanted
    assert found == wanted, "changed: run scripts/test --update-golden"


def test_the_worked_example_is_what_we_read() -> None:
    """Version 1 stays readable as it stands on the page, whatever today's LZMA would write."""
    block = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    data = bytes.fromhex("".join(re.findall(r"^[0-9a-f]{4}  (.*)$", block, re.M)))
    file = vqt_from_bytes(data)
    assert file.header == header(**LEARNED)
    found, wanted = file.segment(0), segment(learned=True)
    assert (found.start_us, found.end_us, found.times_us) == (0, 500_000, (125_000, 375_000))
    assert found.codes.index_map.tolist() == wanted.codes.index_map.tolist()
    assert found.codes.values.tolist() == [[1, 2], [3, 4], [15, 0]]


def test_the_table_of_the_header() -> None:
    """Every field stands where the page says: setting it changes those bytes and no others."""
    pattern = r"^\| (\d+) \| (\S+) ?\S* \| ([^|]*)\|"
    rows = re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.M)
    sizes = {"8": 8, "32": 32, "u8": 1, "u16": 2, "u32": 4, "u64": 8}
    at = 0
    moved: dict[str, tuple[int, int]] = {}
    for place, kind, names in rows:
        assert int(place) == at
        moved |= dict.fromkeys(re.findall(r"`(.+?)`", names), (at, sizes[kind]))
        at += sizes[kind]
    assert at == headers.HEADER_BYTES == 170
    own = {field.name for field in fields(Header)} - {"origin"}
    origin = {f"origin.{field.name}" for field in fields(Origin)}
    assert moved.keys() == {"version", *own, *origin}
    base = header(**LEARNED)
    for name in moved.keys() - {"version", "kind", "bits", *origin}:
        place, size = moved[name]
        values = {
            **vars(base),
            name: "11" * 32 if name.endswith("sha256") else 5 if name == "codes" else 3,
        }
        pairs = enumerate(zip(base.to_bytes(), Header(**values).to_bytes(), strict=True))
        changed = [number for number, (a, b) in pairs if a != b]
        assert changed and set(changed) <= set(range(place, place + size)), name


def test_levels_are_computed_as_the_page_says() -> None:
    rng = np.random.default_rng(0)
    codes = (rng.normal(size=(64, 16)) * 10.0 ** rng.integers(-3, 4, 16)).astype(np.float16)
    codes[:2, :3] = [[65504, 0, 7], [-65504, 0, 7]]
    codes[2:, 0], codes[:, 1] = 0, 0
    index_map = np.arange(64, dtype=np.int32).reshape(1, 1, 64)
    head = header(bits=4, width=16, codes=64, budget=0, frames=1, grid_height=1, grid_width=64)
    data = vqt_bytes(head, [Segment(0, 1, (0,), Codes(index_map, codes))])
    body = np.frombuffer(data[-8 - 4 * 16 - 64 * 16 // 2 : -8], np.uint8)
    mean, spread = body[:64].copy().view("<f2").reshape(2, 16).astype(np.float64)
    wide = codes.astype(np.float64)
    least = np.maximum(wide.std(axis=0).astype(np.float32), 2.0**-14)
    assert np.array_equal(mean, wide.mean(axis=0).astype(np.float32).astype(np.float16))
    assert np.array_equal(spread, least.astype(np.float16))
    numbers = np.stack([body[64:] & 15, body[64:] >> 4], axis=1).reshape(64, 16)
    places = (wide - mean) / spread
    assert np.array_equal(numbers, np.abs(places[..., None] - levels(4)).argmin(axis=-1))
    stood_for = (mean + spread * levels(4)[numbers]).astype(np.float32).clip(-65504, 65504)
    found = vqt_from_bytes(data).segment(0).codes.values
    assert np.array_equal(found, stood_for.astype(np.float16))


@pytest.mark.parametrize(("codes", "patch_bytes"), [(256, 1), (257, 2)])
def test_a_patch_takes_a_byte_where_k_is_at_most_256(codes: int, patch_bytes: int) -> None:
    data = vqt_bytes(header(codes=codes), [segment()])
    counts = headers.HEADER_BYTES + 4 + 16 + 2 * 8  # after a length, a span and two times
    map_bytes = int.from_bytes(data[counts + 2 : counts + 6], "little")
    packed = data[counts + 6 :][:map_bytes]
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 17}]
    unpacked = lzma.decompress(packed, format=lzma.FORMAT_RAW, filters=filters)
    assert len(unpacked) == segment().codes.index_map.size * patch_bytes


def test_the_most_segments_of_a_file_fit_with_their_lengths(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    around, each = headers.HEADER_BYTES + 8, 4 + most_bytes(header())
    for size_bytes, most in ((around + 3 * each, 3), (around + 3 * each - 1, 2)):
        monkeypatch.setattr(files, "MAX_FILE_BYTES", size_bytes)
        assert files.most_segments(header()) == most


def test_the_images_of_a_folder(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = text[text.index("For a folder of frames") : text.index("## Segment")]
    assert set(re.findall(r"`(\.[a-z]+)`", told)) == clip._IMAGE_SUFFIXES
    ordered = ["a02.PNG", "a2.png", "A10.jpg", "Stra\u00dfe1.png", "STRASSE2.png"]
    for name in (*reversed(ordered), ".a1.png", "a1.txt"):
        (tmp_path / name).touch()
    (tmp_path / "below.png").mkdir()
    assert [image.name for image in clip.images_in(tmp_path)] == ordered


def test_the_limits() -> None:
    page = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|]+) \|(?: (\d+))? \| ([\d,]+|256 MiB|K) \|$", page, re.M)
    assert {what: (low, high) for what, low, high in rows} == {
        "file": ("", f"{files.MAX_FILE_BYTES >> 20} MiB"),
        "segments": ("1", f"{files.MAX_SEGMENTS:,}"),
        "T x h x w": ("1", f"{headers.MAX_PATCHES:,}"),
        "K": ("1", f"{headers.MAX_CODES:,}"),
        "budget": ("0", "K"),
        "levels (`codebook`)": ("1", f"{headers.MAX_LEVELS}"),
        "bits (version 2)": (f"{headers.MIN_BITS}", f"{headers.MAX_BITS}"),
        "width (`kmeans`)": ("1", f"{headers.MAX_WIDTH:,}"),
        "width (`codebook`)": ("2", f"{headers.MAX_WIDTH:,}"),
    }
