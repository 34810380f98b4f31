"""A time in a video as users write it."""

from __future__ import annotations

import re

_CLOCK = re.compile(r"(?:(\d+):(?=[0-5]\d:))?(\d+):([0-5]\d(?:\.\d*)?)", re.ASCII)


def seconds_from_text(text: str) -> float:
    """Seconds of a time as `90`, `1:30` or `0:01:30`, each of which is 90.0; a fraction may follow.

    Raises:
        ValueError: it is none of them.
    """
    if found := _CLOCK.fullmatch(text):
        hours, minutes, seconds = (float(part or 0) for part in found.groups())
        return 3600 * hours + 60 * minutes + seconds
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r}: give seconds, as 90, or 1:30, or 0:01:30") from None
