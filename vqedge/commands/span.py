"""`--start` and `--end`: the part of a video that a command looks at."""

from __future__ import annotations

from vqedge.errors import UsageError
from vqedge_runtime.video import Span
from vqedge_runtime.video.clip import no_time_in


def check_span(span: Span) -> None:
    """See that some video could have something between both ends.

    Raises:
        UsageError: one is no time, or the end is not after the start.
    """
    start_s, end_s = span
    if (fault := no_time_in(span)) is not None:
        raise UsageError(f"--{fault}; give seconds from 0 up")
    if end_s is not None and end_s <= (start_s or 0.0):
        raise UsageError(
            f"--start {start_s or 0.0:g} is not before --end {end_s:g}; give a start below the end"
        )
