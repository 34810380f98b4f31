"""The sheet: frames, their code maps, and under them when every code is to be seen.

Frames and timeline share their columns, so that one looks down from a frame to what it holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from vqedge_runtime.viz.canvas import (
    ACCENT,
    BAND,
    INK,
    QUIET,
    RULE,
    Canvas,
    Ink,
    fitted,
    overlaid,
    resized,
    wrapped,
)
from vqedge_runtime.viz.picture import Picture

_MARGIN, _GAP = 28, 6
_GUTTER = 60  # left of the columns
_PLACES = 58  # right of them: the code's share
_BAR = 150  # and its evidence
ROW = 16  # height of a code's
_BAND_HEIGHT = 13
_WIDEST, _NARROWEST, _ALL_COLUMNS = 136, 44, 1100
_BIG, _PLAIN, _SMALL = 22, 13, 11
_LEAST_WIDTH = 560


@dataclass(frozen=True)
class Layout:
    """Where things lie on a sheet, in pixels."""

    cell_width: int
    cell_height: int
    columns: int
    left: int
    right: int
    width: int
    lines: tuple[str, ...]
    heads: int
    frames: int
    maps: int
    rows: int
    height: int

    def column(self, number: int) -> int:
        """Left side of a column."""
        return self.left + number * (self.cell_width + _GAP)


def layout_of(picture: Picture) -> Layout:
    """Measure the sheet of a picture."""
    columns = len(picture.shown_frames)
    cell = max(_NARROWEST, min(_WIDEST, (_ALL_COLUMNS + _GAP) // columns - _GAP))
    cell_height = round(cell / picture.shown_aspect)
    left = _MARGIN + _GUTTER
    right = left + columns * (cell + _GAP) - _GAP
    asked = picture.evidence is not None
    width = max(right + _PLACES + (_BAR if asked else 0) + _MARGIN, _LEAST_WIDTH)
    lines = wrapped(_question_of(picture), 16, width - 2 * _MARGIN, 2) if asked else []
    heads = _MARGIN + 48 + 24 * len(lines) + 26
    frames = heads + 10
    maps = frames if picture.frames_thwc is None else frames + cell_height + _GAP
    rows = maps + cell_height + 40
    height = rows + len(picture.shown_codes) * ROW + 30 + _MARGIN
    tops = (heads, frames, maps, rows)
    return Layout(cell, cell_height, columns, left, right, width, tuple(lines), *tops, height)


def sheet(picture: Picture) -> Image.Image:
    """Draw it all."""
    layout = layout_of(picture)
    canvas = Canvas(layout.width, layout.height)
    _head(canvas, picture, layout)
    _frames(canvas, picture, layout)
    _timeline(canvas, picture, layout)
    _foot(canvas, picture, layout)
    return canvas.image


def _question_of(picture: Picture) -> str:
    answer = picture.evidence.answer if picture.evidence else ""
    return f"{picture.question}  {answer}"


def _head(canvas: Canvas, picture: Picture, layout: Layout) -> None:
    wide = layout.width - 2 * _MARGIN
    canvas.text((_MARGIN, _MARGIN + 18), fitted(picture.title, _BIG, wide), _BIG)
    canvas.text((_MARGIN, _MARGIN + 40), fitted(picture.summary, _PLAIN, wide), _PLAIN, QUIET)
    for number, line in enumerate(layout.lines):
        canvas.text((_MARGIN, _MARGIN + 70 + 24 * number), line, 16, ACCENT)


def _frames(canvas: Canvas, picture: Picture, layout: Layout) -> None:
    sides = (layout.cell_width, layout.cell_height)
    middle = layout.cell_height // 2 + 4
    if picture.frames_thwc is not None:
        canvas.text((_MARGIN, layout.frames + middle), "frames", _PLAIN, QUIET)
    canvas.text((_MARGIN, layout.maps + middle), "codes", _PLAIN, QUIET)
    for column, number in enumerate(picture.shown_frames):
        x = layout.column(column)
        time = f"{picture.times_s[number]:.2f} s"
        canvas.text((x + sides[0] / 2, layout.heads), time, _SMALL, QUIET, "m")
        frame = None if picture.frames_thwc is None else picture.frames_thwc[number]
        if frame is not None:
            canvas.paste(resized(frame, *sides), (x, layout.frames))
        index_map = picture.codes.index_map[number]
        over = overlaid(index_map, picture.colors, sides, frame, picture.marked)
        canvas.paste(over, (x, layout.maps))


def _timeline(canvas: Canvas, picture: Picture, layout: Layout) -> None:
    canvas.text((_MARGIN, layout.rows - 12), "code", _SMALL, QUIET)
    canvas.text((layout.right + _PLACES, layout.rows - 12), "share", _SMALL, QUIET, "r")
    if picture.evidence is not None:
        x = layout.right + _PLACES + 20
        canvas.text((x, layout.rows - 12), "evidence, nats", _SMALL, QUIET)
        _span(canvas, picture, layout)
    for row, code in enumerate(picture.shown_codes):
        top = layout.rows + row * ROW
        if row % 2 == 0:
            canvas.box((_MARGIN, top, layout.width - _MARGIN, top + ROW), BAND)
        _code(canvas, picture, layout, code, top)


def _code(canvas: Canvas, picture: Picture, layout: Layout, code: int, top: int) -> None:
    """One row: number, colour, presence, share, evidence."""
    faded = bool(picture.marked) and code not in picture.marked
    base, mass = top + 12, picture.mass[:, code]
    red, green, blue = (int(part) for part in picture.colors[code])
    color = _pale((red, green, blue)) if faded else (red, green, blue)
    canvas.text((_MARGIN + 26, base), str(code), _SMALL, QUIET if faded else INK, "r")
    canvas.box((_MARGIN + 34, top + 3, _MARGIN + 44, top + 13), color)
    most = picture.mass.max()
    for column, number in enumerate(picture.shown_frames):
        if mass[number]:
            x, middle = layout.column(column), top + ROW / 2
            half = max(2.0, _BAND_HEIGHT * (mass[number] / most) ** 0.5) / 2
            end = min(x + layout.cell_width + _GAP, layout.right)
            canvas.box((x, middle - half, end, middle + half), color)
    ink = QUIET if faded else INK
    canvas.text((layout.right + _PLACES, base), f"{mass.mean():.1%}", _SMALL, ink, "r")
    if picture.evidence is not None:
        _evidence(canvas, picture, layout, code, top, color)


def _evidence(
    canvas: Canvas, picture: Picture, layout: Layout, code: int, top: int, color: Ink
) -> None:
    """A bar to the right for what speaks for the answer, to the left for what speaks against."""
    drops = picture.drops
    if code not in drops:
        return
    most = max(map(abs, drops.values())) or 1.0
    half = (_BAR - 80) / 2
    zero = layout.right + _PLACES + 20 + half
    low, high = sorted((0.0, half * drops[code] / most))
    canvas.box((zero - 1, top, zero, top + ROW), RULE)
    canvas.box((zero + low, top + 4, zero + high, top + 12), color)
    ink = INK if code in picture.marked else QUIET
    end = layout.right + _PLACES + _BAR
    canvas.text((end, top + 12), f"{drops[code]:+.2g}", _SMALL, ink, "r")


def _span(canvas: Canvas, picture: Picture, layout: Layout) -> None:
    """A line over the columns where the evidence is to be seen."""
    assert picture.evidence is not None
    edges, evidence = picture.edges_s, picture.evidence
    inside = [
        column
        for column, number in enumerate(picture.shown_frames)
        if evidence.start_s <= edges[number] and edges[number + 1] <= evidence.end_s
    ]
    if inside:
        left, right = layout.column(inside[0]), layout.column(inside[-1]) + layout.cell_width
        canvas.box((left, layout.rows - 7, right, layout.rows - 4), ACCENT)
        words = f"evidence {evidence.start_s:.2f} to {evidence.end_s:.2f} s"
        canvas.text((left, layout.rows - 14), words, _SMALL, ACCENT)


def _foot(canvas: Canvas, picture: Picture, layout: Layout) -> None:
    words = "Height of a band: square root of the code's share of the frame."
    if picture.evidence is not None:
        words += " Evidence: nats by which the answer is likelier where the code is read."
    at = (_MARGIN, layout.height - _MARGIN + 4)
    canvas.text(at, fitted(words, _SMALL, layout.width - 2 * _MARGIN), _SMALL, QUIET)


def _pale(ink: Ink) -> Ink:
    red, green, blue = ((part + 2 * 214) // 3 for part in ink)
    return red, green, blue
