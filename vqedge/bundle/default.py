"""The bundle that is used where none is named."""

from __future__ import annotations

import os
from pathlib import Path

from vqedge.errors import BundleError

_HERE = (Path("tiny.vqedge"), Path("build/tiny.vqedge"))


def bundle_or_default(bundle: Path | None) -> Path:
    """The bundle to use: the given one, `$VQEDGE_BUNDLE`, or one that lies here.

    Raises:
        BundleError: none was given and none is here.
    """
    if bundle is not None:
        return bundle
    if named := os.environ.get("VQEDGE_BUNDLE"):
        return Path(named)
    for path in _HERE:
        if path.is_dir():
            return path
    raise BundleError(
        "no bundle: give -m NAME.vqedge, in Python its path, or set VQEDGE_BUNDLE; "
        "make one in a clone of the repository: vqedge assemble models/tiny -o tiny.vqedge"
    )
