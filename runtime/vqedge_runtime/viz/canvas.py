"""Drawing with Pillow: text, bars, and a code map over a frame."""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from vqedge_runtime.encoders.protocol import Frames
from vqedge_runtime.viz.palette import Colors, lightness
from vqedge_runtime.viz.picture import plain

Ink = tuple[int, int, int]
Box = tuple[float, float, float, float]

PAPER: Ink = (255, 255, 255)
BAND: Ink = (246, 247, 249)
RULE: Ink = (218, 222, 228)
INK: Ink = (28, 32, 38)
QUIET: Ink = (106, 114, 126)
ACCENT: Ink = (196, 64, 20)

_OVER = 0.70  # how much of a map's colour covers the frame
_FADED = 0.16  # the same of codes that are not marked
_BLANK = 236.0  # what the map lies on where there are no pixels
_LUMA = np.array((0.299, 0.587, 0.114))
_DARKEST, _CONTRAST = 96.0, 0.6  # of the greys under a map, so that dark frames keep its colours
_LABEL_PATCHES = 7  # fewest patches of a frame that get a number


class Canvas:
    """A sheet of paper.

    Args:
        width, height: pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self,
        at: tuple[float, float],
        words: str,
        size: int = 13,
        ink: Ink = INK,
        align: Literal["l", "m", "r"] = "l",
    ) -> None:
        """Words on a base line; what cannot be printed is a question mark."""
        self._draw.text(at, plain(words), fill=ink, font=_font(size), anchor=f"{align}s")

    def box(self, box: Box, ink: Ink) -> None:
        """A filled box: left, top, right, bottom, the last two left out."""
        left, top, right, bottom = (round(side) for side in box)
        if right > left and bottom > top:
            self._draw.rectangle((left, top, right - 1, bottom - 1), fill=ink)

    def paste(self, pixels_hwc: Frames, at: tuple[float, float]) -> None:
        """Put pixels down, their top left corner at a place."""
        self.image.paste(Image.fromarray(pixels_hwc), (round(at[0]), round(at[1])))


def fitted(words: str, size: int, width: float) -> str:
    """Words as far as they fit a width."""
    font, full = _font(size), words
    words = words[: int(width)]  # no letter is narrower than a pixel
    if words == full and font.getlength(words) <= width:
        return words
    while words and font.getlength(f"{words}...") > width:
        words = words[:-1]
    return f"{words}..."


def wrapped(words: str, size: int, width: float, lines: int) -> list[str]:
    """Words in lines of a width; what goes beyond the last line is cut."""
    font, found, rest = _font(size), [""], words.split()
    while rest:
        longer = f"{found[-1]} {rest[0]}".strip()
        if found[-1] and font.getlength(longer) > width:
            if len(found) == lines:
                found[-1] = fitted(f"{found[-1]} {' '.join(rest)}", size, width)
                break
            found.append("")
            continue
        found[-1] = longer
        rest.pop(0)
    return [fitted(line, size, width) for line in found]


def resized(pixels_hwc: Frames, width: int, height: int) -> Frames:
    """Pixels of another size."""
    image = Image.fromarray(pixels_hwc).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, np.uint8)


def overlaid(
    index_map: npt.NDArray[np.int32],
    palette: Colors,
    sides: tuple[int, int],
    frame_hwc: Frames | None = None,
    marked: tuple[int, ...] = (),
) -> Frames:
    """A code map over the greys of its frame, with edges between codes and numbers on them.

    Args:
        index_map: int32 `[h, w]`.
        palette: uint8 `[k, 3]`.
        sides: width and height of the result.
        frame_hwc: the frame, any size; None to draw the map alone.
        marked: codes to show at full strength, all if none.

    Returns:
        uint8 `[height, width, 3]`.
    """
    width, height = sides
    rows = np.arange(height) * index_map.shape[0] // height
    columns = np.arange(width) * index_map.shape[1] // width
    labels = index_map[rows[:, None], columns]
    strength = np.full(len(palette), _OVER if frame_hwc is not None else 1.0)
    if marked:
        strength = np.where(np.isin(np.arange(len(palette)), marked), strength, _FADED)
    under = np.full((height, width, 1), _BLANK)
    if frame_hwc is not None:
        grey = resized(frame_hwc, width, height) @ _LUMA
        under = _DARKEST + _CONTRAST * grey[..., None]
    cover = strength[labels][..., None]
    mixed = (under * (1 - cover) + palette[labels] * cover) * np.where(_edges(labels), 0.72, 1.0)
    image = Image.fromarray(np.rint(mixed).astype(np.uint8))
    _number(image, index_map, palette, marked)
    return np.asarray(image, np.uint8)


def _edges(labels: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Pixels whose left or upper neighbour has another code, `[h, w, 1]`."""
    edge = np.zeros(labels.shape, np.bool_)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return edge[..., None]


def _number(
    image: Image.Image,
    index_map: npt.NDArray[np.int32],
    palette: Colors,
    marked: tuple[int, ...],
) -> None:
    """Write every code's number on the patch of it that is nearest to its middle."""
    rows, columns = index_map.shape
    high, wide = image.height / rows, image.width / columns
    if high < 6:
        return
    draw, light = ImageDraw.Draw(image), lightness(palette)
    for code, patches in zip(*np.unique(index_map, return_counts=True), strict=True):
        if (patches < _LABEL_PATCHES and code not in marked) or (marked and code not in marked):
            continue
        own = np.argwhere(index_map == code)
        row, column = own[((own - own.mean(0)) ** 2).sum(1).argmin()] + 0.5
        ink = INK if light[code] > 0.62 else PAPER
        size = max(9, round(high * 1.15))
        where = (column * wide, row * high)
        draw.text(where, str(code), fill=ink, font=_font(size), anchor="mm")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """The font inside of Pillow: the same everywhere, without a file of ours."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
