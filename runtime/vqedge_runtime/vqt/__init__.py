"""`.vqt`: a video as codes, a few hundred bytes to some kilobytes. See docs/vqt-format.md.

`header.py` says what a file is about, `segment.py` holds the codes of one span of time, `file.py`
puts them together, `fit.py` tells whether a bundle can read them.
"""

from vqedge_runtime.vqt.file import (
    VqtFile,
    VqtWriter,
    is_vqt,
    open_vqt,
    require_video,
    vqt_bytes,
    vqt_files,
    vqt_from_bytes,
)
from vqedge_runtime.vqt.fit import PER_QUESTION, check_fit, header_for
from vqedge_runtime.vqt.header import Header, Origin
from vqedge_runtime.vqt.segment import Segment

__all__ = [
    "PER_QUESTION",
    "Header",
    "Origin",
    "Segment",
    "VqtFile",
    "VqtWriter",
    "check_fit",
    "header_for",
    "is_vqt",
    "open_vqt",
    "require_video",
    "vqt_bytes",
    "vqt_files",
    "vqt_from_bytes",
]
