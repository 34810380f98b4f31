"""Pictures of tokens: colours, and what can be seen in each of the formats."""

from __future__ import annotations

import errno
import itertools
import os
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vqedge.errors import ConfigError
from vqedge_runtime.answers import Timings, Video
from vqedge_runtime.evidence import evidence_from_drops
from vqedge_runtime.tokens import Codes, TokenSet
from vqedge_runtime.video import clip_from_path
from vqedge_runtime.viz import Picture, write_picture
from vqedge_runtime.viz.canvas import PAPER, Canvas, fitted, overlaid, wrapped
from vqedge_runtime.viz.html import html_from_picture
from vqedge_runtime.viz.palette import colors, distances
from vqedge_runtime.viz.sheet import layout_of, sheet

MAP = np.array([[[0, 1], [0, 1]], [[0, 0], [0, 1]], [[0, 0], [0, 0]], [[2, 2], [2, 0]]], np.int32)
# Seven colours, chosen by hand for all eyes, that many take: our first seven are to be as good.
OKABE_ITO = np.array(
    [
        *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66)),
        *((0, 114, 178), (213, 94, 0), (204, 121, 167)),
    ],
    np.uint8,
)
NASTY = "<script>alert('&')</script>\n\u202e\x1b[31m\ud800 \"quoted\" 日本"


def picture(index_map: np.ndarray = MAP, **changes: Any) -> Picture:
    count, frames = int(index_map.max()) + 1, len(index_map)
    codes = Codes(index_map, np.ones((count, 3), np.float16))
    times = tuple(i + 0.5 for i in range(frames))
    return replace(Picture("clip.vqt", codes, times, 0.0, float(frames)), **changes)


def asked(
    plain: Picture, drops: list[float], question: str = "What?", answer: str = "red"
) -> Picture:
    tokens = TokenSet(np.ones((plain.codes.count, 2), np.float32), plain.codes)
    video = Video(tokens, plain.end_s, 4, plain.times_s, Timings())
    evidence = evidence_from_drops(video, answer, -0.1, np.array(drops))
    return replace(plain, question=question, evidence=evidence)


def frames_of(index_map: np.ndarray = MAP) -> np.ndarray[Any, np.dtype[np.uint8]]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (len(index_map), 32, 32, 3), np.uint8)


# ---- colours


def least_apart(palette: np.ndarray[Any, np.dtype[np.uint8]]) -> float:
    pairs = itertools.combinations(range(len(palette)), 2)
    return min(float(distances(palette[i : i + 1], palette[j])[0]) for i, j in pairs)


def test_colours_are_apart_for_all_eyes_and_always_the_same() -> None:
    palette = colors(32)
    assert least_apart(palette) > 0.05  # a few times what one notices side by side
    assert least_apart(palette[:7]) > least_apart(OKABE_ITO)
    assert np.array_equal(colors(5), palette[:5])
    assert [bytes(c).hex() for c in colors(3)] == ["4678dc", "ffd800", "b11400"]


def test_colours_repeat_when_there_are_no_more() -> None:
    many = colors(300)
    assert many.shape == (300, 3)
    assert len(np.unique(many[:128], axis=0)) == 128
    assert np.array_equal(many[128:256], many[:128])
    assert colors(0).shape == (0, 3)


# ---- what is drawn


def test_a_map_alone_has_its_codes_colours() -> None:
    pixels = overlaid(MAP[0], colors(3), (40, 40))
    assert np.array_equal(pixels[30, 10], colors(3)[0])
    assert np.array_equal(pixels[30, 30], colors(3)[1])


def test_a_map_over_a_frame_lets_it_through() -> None:
    dark = overlaid(MAP[0], colors(3), (40, 40), np.zeros((8, 8, 3), np.uint8))
    light = overlaid(MAP[0], colors(3), (40, 40), np.full((8, 8, 3), 255, np.uint8))
    assert (light[30, 10] > dark[30, 10]).all()


def test_marked_codes_stand_out() -> None:
    pixels = overlaid(MAP[0], colors(3), (40, 40), None, marked=(1,)).astype(int)
    assert np.array_equal(pixels[30, 30], colors(3)[1])
    assert np.ptp(pixels[30, 10]) < np.ptp(colors(3)[0].astype(int)) / 3, "it is nearly grey"


def test_the_timeline_shows_every_code_where_it_is_and_nowhere_else() -> None:
    plain = picture()
    pixels, layout = np.asarray(sheet(plain)), layout_of(plain)
    mass = plain.mass
    for code in range(3):
        y = layout.rows + 16 * code + 8
        for column in range(4):
            there = pixels[y, layout.column(column) + 5]
            assert np.array_equal(there, plain.colors[code]) == bool(mass[column, code])
    heights = [
        (pixels[layout.rows : layout.rows + 16, layout.column(c) + 5] == plain.colors[0])
        .all(1)
        .sum()
        for c in (3, 0, 1, 2)
    ]
    assert heights == sorted(heights) and heights[0] < heights[-1]


def test_the_sheet_has_room_for_frames_and_evidence() -> None:
    plain = picture()
    with_frames = replace(plain, frames_thwc=frames_of())
    both = asked(with_frames, [0.1, 2.0, -0.5])
    heights = [layout_of(p).height for p in (plain, with_frames, both)]
    assert heights == sorted(set(heights))
    assert sheet(both).size == (layout_of(both).width, layout_of(both).height)
    assert sheet(both).getpixel((2, 2)) == PAPER
    pixels, layout = np.asarray(sheet(both)), layout_of(both)
    row = pixels[layout.rows + 16 + 8, layout.right :]
    assert (row == both.colors[1]).all(1).any(), "the bar of the code with evidence"


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 16, 16), (60, 2, 2), (2, 100, 50), (200, 1, 1)])
def test_any_shape_of_map(shape: tuple[int, int, int]) -> None:
    size = int(np.prod(shape))
    plain = picture(np.arange(size, dtype=np.int32).reshape(shape) % 200)
    drawn = sheet(plain)
    assert max(drawn.size) < 3000
    assert len(plain.shown_frames) <= 24 and len(plain.shown_codes) <= 64
    assert html_from_picture(plain)


@pytest.mark.parametrize(("aspect", "drawn"), [(10.0, 2.0), (1.5, 1.5), (0.1, 0.5)])
def test_a_panorama_is_drawn_narrower_wherever_it_is(aspect: float, drawn: float) -> None:
    wide = picture(aspect=aspect)
    layout = layout_of(wide)
    assert layout.cell_width / layout.cell_height == pytest.approx(drawn, rel=0.02)
    assert html_from_picture(wide).decode().count(f"aspect-ratio:{drawn:.4f}") == 4


def test_an_image_has_no_span() -> None:
    still = picture(MAP[:1], end_s=0.0, times_s=(0.0,))
    assert "still" in still.summary
    assert sheet(asked(still, [1.0, 0.5])).size[0] > 0


def test_the_codes_with_most_evidence_are_listed() -> None:
    many = picture(np.arange(200, dtype=np.int32).reshape(1, 10, 20))
    listed = asked(many, [float(code >= 150) for code in range(200)]).shown_codes
    assert len(listed) == 64 and set(range(150, 200)) < set(listed)
    assert "64 codes listed" in many.summary


def test_frames_maps_and_times_must_fit() -> None:
    with pytest.raises(ConfigError):
        picture(times_s=(0.0,))
    with pytest.raises(ConfigError):
        picture(frames_thwc=frames_of()[:2])


def test_words_are_cut_to_fit() -> None:
    assert fitted("short", 13, 500) == "short"
    assert fitted("w" * 10_000, 13, 100).endswith("...")
    assert len(wrapped("a lot of words " * 500, 16, 300, 2)) == 2


# ---- files


class Seen(HTMLParser):
    """Tags, text and links of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("href", "src", "xlink:href", "action")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_is_whole_and_loads_nothing() -> None:
    nasty = asked(picture(frames_thwc=frames_of(), title=NASTY), [0.1, 2.0, -0.5], NASTY, NASTY)
    page = html_from_picture(nasty).decode("utf-8")
    seen = Seen(page)
    assert "script" not in seen.tags
    assert all(link.startswith("data:image/jpeg;base64,") for link in seen.links)
    assert len(seen.links) == 4
    assert "<script>alert('&')</script>" in seen.text, "it is there, as words"
    assert "\u202e" not in page and "\x1b" not in page and "http://" not in page
    assert seen.tags.count("figure") == 4 and seen.tags.count("tr") == 4
    assert "default-src 'none'" in page


@pytest.mark.parametrize("codes", [3, 20])
def test_captions_say_what_evidence_is_of_few_codes_and_of_many(
    codes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only of few is it what the answer loses without the code."""
    both = asked(picture(np.arange(codes, dtype=np.int32).reshape(1, 1, codes)), [1.0] * codes)
    drawn: list[str] = []
    monkeypatch.setattr("vqedge_runtime.viz.sheet.fitted", lambda words, *_: words)
    monkeypatch.setattr(Canvas, "text", lambda _, at, words, *__: drawn.append(words))
    sheet(both)
    for words in (Seen(html_from_picture(both).decode()).text, " ".join(drawn)):
        assert "likelier where" in words and "loses" not in words


def test_paths_of_the_page_cover_each_patch_once() -> None:
    page = html_from_picture(picture()).decode()
    first = page[page.index("<figure>") : page.index("</figure>")]
    assert first.count('class="c0"') == first.count('class="c1"') == 1
    assert 'd="M0 0H1V1H0zM0 1H1V2H0z"' in first and 'd="M1 0H2V1H1zM1 1H2V2H1z"' in first


def test_a_png_is_the_sheet_and_the_same_every_time(tmp_path: Path) -> None:
    both = asked(picture(frames_thwc=frames_of(), title=NASTY, aspect=16 / 9), [0.1, 2.0, -0.5])
    write_picture(both, tmp_path / "a.png")
    write_picture(both, tmp_path / "b.PNG")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.PNG").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        size = image.size
    assert size == (layout_of(both).width, layout_of(both).height)


def test_a_film_lasts_as_long_as_the_clip(tmp_path: Path) -> None:
    film = tmp_path / "a.mp4"
    write_picture(picture(frames_thwc=frames_of(), end_s=5.0), film)
    clip = clip_from_path(film, 4, 64)
    assert clip.duration_s == pytest.approx(5.0, abs=0.2)
    assert len(set(clip.times_s)) == 4, "the cursor moves"
    write_picture(picture(MAP[:1], end_s=0.0, times_s=(0.0,)), film)
    assert clip_from_path(film, 1, 64).duration_s == pytest.approx(4.0, abs=0.2)


def test_a_name_of_no_format_and_a_place_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.png, \.html, \.mp4"):
        write_picture(picture(), tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^-o .*file: .*; check the path and its rights$"):
        write_picture(picture(), tmp_path / "file/a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_says_to_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match=r"^-o .*a\.png: No space left .*; make room there"):
        write_picture(picture(), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_the_folder_of_a_picture_is_made(tmp_path: Path) -> None:
    write_picture(picture(), tmp_path / "new/folder/a.png")
    assert [path.name for path in (tmp_path / "new/folder").iterdir()] == ["a.png"]


def test_a_hostile_file_gets_no_timeline_of_gigabytes() -> None:
    many = np.zeros((65_535, 1, 1), np.int32)
    codes = Codes(many, np.zeros((4_096, 1), np.float16))
    with pytest.raises(ConfigError, match="too many to draw"):
        Picture("hostile", codes, (0.0,) * 65_535, 0.0, 1.0)
