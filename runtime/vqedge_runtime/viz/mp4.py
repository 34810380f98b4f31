"""The sheet as a film: the big frame, its map beside it, and a cursor over the timeline."""

from __future__ import annotations

from io import BytesIO

import av
import numpy as np
from PIL import Image

from vqedge_runtime.encoders.protocol import Frames
from vqedge_runtime.viz.canvas import ACCENT, PAPER, Canvas, overlaid, resized
from vqedge_runtime.viz.picture import Picture
from vqedge_runtime.viz.sheet import ROW, layout_of, sheet

_FPS = 10
_LEAST_S, _MOST_S = 4.0, 60.0  # a film is as long as its clip, within limits
_BIG = 420  # height of the big frame
_SPACE = 24


def mp4_from_picture(picture: Picture) -> bytes:
    """H.264 in mp4, even sides, ten pictures a second."""
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=_FPS, options={"crf": "20"})
        film = _Film(picture)
        stream.width, stream.height = film.sides
        stream.pix_fmt = "yuv420p"
        for moment in np.linspace(0, 1, film.length, endpoint=False):
            pixels = film.pixels_at(float(moment))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


class _Film:
    """Pictures of a film, each at a share of its length."""

    def __init__(self, picture: Picture) -> None:
        self._picture, self._layout = picture, layout_of(picture)
        below = sheet(picture)
        self._top = _BIG + 2 * _SPACE
        self.sides = (-(-below.width // 2) * 2, -(-(below.height + self._top) // 2) * 2)
        self._still = Image.new("RGB", self.sides, PAPER)
        self._still.paste(below, (0, self._top))
        self._pairs: dict[int, list[Frames]] = {}
        span_s = picture.end_s - picture.start_s
        self.length = round(min(max(span_s, _LEAST_S), _MOST_S) * _FPS)

    def pixels_at(self, moment: float) -> Frames:
        """The picture at a share of the film, 0 to 1."""
        frames = len(self._picture.times_s)
        number = min(int(moment * frames), frames - 1)
        canvas = Canvas(*self.sides)
        canvas.image.paste(self._still)
        x = (self.sides[0] - sum(p.shape[1] + _SPACE for p in self._pair(number)) + _SPACE) // 2
        for pixels in self._pair(number):
            canvas.paste(pixels, (x, _SPACE))
            x += pixels.shape[1] + _SPACE
        self._cursor(canvas, moment)
        return np.asarray(canvas.image, np.uint8)

    def _pair(self, number: int) -> list[Frames]:
        """The big frame, if there are pixels, and its map."""
        if number not in self._pairs:
            picture = self._picture
            wide = min(round(_BIG * picture.shown_aspect), (self.sides[0] - 3 * _SPACE) // 2)
            frame = None if picture.frames_thwc is None else picture.frames_thwc[number]
            index_map = picture.codes.index_map[number]
            over = overlaid(index_map, picture.colors, (wide, _BIG), frame, picture.marked)
            big = [] if frame is None else [resized(frame, wide, _BIG)]
            self._pairs = {number: [*big, over]}
        return self._pairs[number]

    def _cursor(self, canvas: Canvas, moment: float) -> None:
        layout = self._layout
        x = layout.left + moment * (layout.right - layout.left)
        bottom = self._top + layout.rows + ROW * len(self._picture.shown_codes)
        canvas.box((x, self._top + layout.rows - 4, x + 2, bottom), ACCENT)
