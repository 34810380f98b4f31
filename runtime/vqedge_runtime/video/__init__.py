"""Any video, image or folder of frames becomes a few evenly spaced RGB frames.

`clip.py` tells the story, `source.py` opens a file safely, `lengths.py` says how long it is,
`cursor.py` finds the frame of an instant, by the times of `clock.py`, `canvas.py` turns it upright
and shrinks it, `notes.py` says what is missing, `faults.py` words every error; `arrays.py` takes
frames from memory.
"""

from vqedge_runtime.video.arrays import clip_from_frames
from vqedge_runtime.video.clip import (
    Clip,
    Span,
    clip_from_path,
    clips_from_path,
    duration_from_path,
    images_in,
)

__all__ = [
    "Clip",
    "Span",
    "clip_from_frames",
    "clip_from_path",
    "clips_from_path",
    "duration_from_path",
    "images_in",
]
