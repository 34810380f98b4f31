"""What a picture of tokens shows, whatever it is drawn with."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vqedge.errors import ConfigError
from vqedge_runtime.encoders.protocol import Frames
from vqedge_runtime.evidence import Evidence, frame_edges_s, mass_of
from vqedge_runtime.tokens import Codes
from vqedge_runtime.viz.palette import Colors, colors

MAX_FRAMES, MAX_CODES = 24, 64  # more do not fit a page
MAX_CELLS = 1 << 21  # of the timeline, whatever a file says
_MOST_ASPECT = 2.0


def plain(words: str) -> str:
    """Words to show: what cannot be printed is a question mark."""
    return "".join(letter if letter.isprintable() else "?" for letter in words)


@dataclass(frozen=True)
class Picture:
    """A clip, its codes, and which of them mattered.

    Attributes:
        title: one line.
        codes: what the frames became.
        times_s: of each frame.
        start_s: start of the span.
        end_s: its end, the start of an image.
        frames_thwc: uint8 `[T, size, size, 3]`, as the encoder saw them; None from a `.vqt`.
        aspect: width of a frame, as the video has it, by its height.
        question: what was asked, or nothing.
        evidence: what mattered for the answer, if something was asked.
    """

    title: str
    codes: Codes
    times_s: tuple[float, ...]
    start_s: float
    end_s: float
    frames_thwc: Frames | None = None
    aspect: float = 1.0
    question: str = ""
    evidence: Evidence | None = None

    def __post_init__(self) -> None:
        """Check that frames, times and map are of one clip.

        Raises:
            ConfigError: they are not.
        """
        frames = len(self.codes.index_map)
        pixels = frames if self.frames_thwc is None else len(self.frames_thwc)
        if len(self.times_s) != frames or pixels != frames:
            raise ConfigError(f"{len(self.times_s)} times and {pixels} frames for {frames} maps")
        if frames * self.codes.count > MAX_CELLS:
            raise ConfigError(f"{frames} frames of {self.codes.count} codes are too many to draw")

    @cached_property
    def mass(self) -> npt.NDArray[np.float64]:
        """Share of each frame that each code has, `[T, k]`."""
        return mass_of(self.codes)

    @cached_property
    def drops(self) -> dict[int, float]:
        """Each code's evidence in nats; none if nothing was asked, or the clip has one code."""
        codes = self.evidence.codes if self.evidence else ()
        return {item.code: item.drop_nats for item in codes}

    @property
    def shown_aspect(self) -> float:
        """Width by height as drawn: twice as wide as high at most, or as high as wide."""
        return min(max(self.aspect, 1 / _MOST_ASPECT), _MOST_ASPECT)

    @property
    def colors(self) -> Colors:
        """The color of each code, uint8 `[k, 3]`."""
        return colors(self.codes.count)

    @property
    def edges_s(self) -> tuple[float, ...]:
        """Where each frame's share of the span begins, and where the last one's ends."""
        return frame_edges_s(self.start_s, self.end_s, len(self.times_s))

    @property
    def shown_frames(self) -> tuple[int, ...]:
        """Frames to draw, evenly spaced."""
        count = len(self.times_s)
        if count <= MAX_FRAMES:
            return tuple(range(count))
        return tuple((2 * i + 1) * count // (2 * MAX_FRAMES) for i in range(MAX_FRAMES))

    @property
    def shown_codes(self) -> tuple[int, ...]:
        """Codes to list, in order: those with the most evidence, else the most mass."""
        weight = self.mass.mean(0)
        if self.drops:
            weight = np.array([self.drops[code] for code in range(self.codes.count)])
        first = np.argsort(-weight, kind="stable")[:MAX_CODES]
        return tuple(sorted(first.tolist()))

    @property
    def summary(self) -> str:
        """One line of facts."""
        span = f"{self.start_s:.2f} to {self.end_s:.2f} s" if self.end_s > self.start_s else "still"
        parts = [
            f"{len(self.times_s)} frames, {span}",
            f"{self.codes.index_map.size:,} patches in {self.codes.count} codes",
        ]
        if len(self.shown_frames) < len(self.times_s):
            parts.append(f"{len(self.shown_frames)} frames shown")
        if len(self.shown_codes) < self.codes.count:
            parts.append(f"{len(self.shown_codes)} codes listed")
        return "   |   ".join(parts)

    @property
    def marked(self) -> tuple[int, ...]:
        """Codes that mattered most; none if nothing was asked."""
        return self.evidence.strongest if self.evidence else ()
