"""The cache folder, for what costs time only where there is none."""

from __future__ import annotations

import os
from pathlib import Path

from vqedge.errors import ConfigError, printable
from vqedge.files import cache_root


def cache_folder() -> Path:
    """The folder.

    Raises:
        OSError: nobody knows where it is: to the caller the same as one that cannot be written.
    """
    try:
        return cache_root()
    except ConfigError as error:
        raise FileNotFoundError(str(error)) from error


def cache_name() -> str:
    """What a warning calls it, wherever it is."""
    try:
        return printable(str(cache_root()))
    except ConfigError:
        return printable(os.environ.get("VQEDGE_CACHE") or "~/.cache/vqedge")
