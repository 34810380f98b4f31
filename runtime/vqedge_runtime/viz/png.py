"""The sheet as a PNG file."""

from __future__ import annotations

from io import BytesIO

from vqedge_runtime.viz.picture import Picture
from vqedge_runtime.viz.sheet import sheet


def png_from_picture(picture: Picture) -> bytes:
    """Draw and pack; the same picture gives the same pixels everywhere."""
    file = BytesIO()
    sheet(picture).save(file, "PNG", optimize=True)
    return file.getvalue()
