"""`--start` and `--end`: the part of a video that a command looks at."""

from __future__ import annotations

from vqedge.errors import UsageError
from vqedge_runtime.video import Span
from vqedge_runtime.video.clip import fault_of_span


def check_span(span: Span) -> None:
    """See that some video could have something between both ends.

    Raises:
        UsageError: one is no time, or the end is not after the start.
    """
    if (fault := fault_of_span(span, "--")) is not None:
        raise UsageError("; ".join(fault))
