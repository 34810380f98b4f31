"""What the user should know of a video of which not all is seen; nothing is said of a whole one."""

from __future__ import annotations

from pathlib import Path

from vqedge_runtime.video.fragments import unread_share
from vqedge_runtime.video.lengths import LENGTH_SLACK_S, whole_lasts
from vqedge_runtime.video.source import Source

_SMALLEST_LOSS = 0.05  # of a file's bytes: less may be what a program left at its end


def note_of_end(source: Source, end_s: float) -> str:
    """That the last frame is over before the header's end, where nothing else lasts until then."""
    said_s = (source.declared_duration_s() or 0.0) - LENGTH_SLACK_S
    if end_s >= said_s or whole_lasts(source):
        return ""
    return f"ends at {end_s:g} s, earlier than it says"


def note_of_gap(missing_s: tuple[float, float] | None) -> str:
    """That a damaged video has no pictures from one time to another."""
    if missing_s is None:
        return ""
    return f"is damaged: no pictures from {missing_s[0]:.2f} s to {missing_s[1]:.2f} s"


def note_of_break(path: Path, end_s: float) -> str:
    """That much of a fragmented MP4 is out of reach, behind what was taken for its end."""
    share = unread_share(path)
    if share < _SMALLEST_LOSS:
        return ""
    return f"is damaged: {100 * share:.0f} % of the file, after {end_s:.2f} s, cannot be read"
