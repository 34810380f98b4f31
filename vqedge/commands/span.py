"""`--start` and `--end`: the part of a video that a command looks at."""

from __future__ import annotations

from vqedge.errors import UsageError
from vqedge_runtime.video.clip import no_time_in


def checked_span(
    start_s: float | None, end_s: float | None = None
) -> tuple[float | None, float | None]:
    """Both ends in seconds, if any video could have something between them.

    Raises:
        UsageError: one is no time, or the end is not after the start.
    """
    if (fault := no_time_in((start_s, end_s))) is not None:
        raise UsageError(f"--{fault}; give seconds from 0 up")
    if end_s is not None and end_s <= (start_s or 0.0):
        raise UsageError(
            f"--start {start_s or 0.0:g} is not before --end {end_s:g}; give a start below the end"
        )
    return start_s, end_s
