"""Times that only grow, made of time stamps that may be missing, in disorder or start again."""

from __future__ import annotations

import math
from collections import deque

_DISORDER_S = 1.0  # a time stamp further back than this may start a new recording
_MOST_REORDERED = 16  # frames that a decoder may hold back, and so give late
_FLAT_S = 1e-4  # what disorder is flattened to


class Clock:
    """Turns the time stamps of one walk into times on the clock of its first recording."""

    def __init__(self, step_s: float) -> None:
        """Stands before the first stamp; `step_s` is the usual time between frames."""
        self._step_s = step_s
        self._last_s = -math.inf
        self._shift_s = 0.0
        self._recent_s: deque[float] = deque(maxlen=_MOST_REORDERED)

    def time_s(self, stamp_s: float | None) -> float:
        """A time after all before it: a missing stamp is a step on, small disorder is flattened."""
        before_s = self._last_s
        placed_s = self.placed_s(stamp_s)
        self._last_s = placed_s if placed_s > before_s else before_s + _FLAT_S
        return self._last_s

    def placed_s(self, stamp_s: float | None) -> float:
        """A time that stays in disorder, but goes on where the clock starts again."""
        if stamp_s is None:
            placed_s = max(0.0, self._last_s + self._step_s)
        else:
            if self._starts_again(stamp_s + self._shift_s):
                self._shift_s = self._last_s + self._step_s - stamp_s
                self._recent_s.clear()
            placed_s = stamp_s + self._shift_s
        self._recent_s.append(placed_s)
        self._last_s = max(self._last_s, placed_s)
        return placed_s

    def _starts_again(self, time_s: float) -> bool:
        """Whether it lies far back and no frame before it can still be on its way.

        After a loss, decoders give frames from behind the gap between the last ones before it.
        """
        if self._last_s - time_s <= _DISORDER_S:
            return False
        return time_s <= min(self._recent_s, default=math.inf)
