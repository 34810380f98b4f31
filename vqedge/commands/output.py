"""What commands print: results on stdout, talk on stderr, one JSON document last."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from vqedge.errors import BundleError, UsageError
from vqedge.json_text import json_text

DEFAULT_BUNDLES = (Path("tiny.vqedge"), Path("build/tiny.vqedge"))


def say(text: str) -> None:
    """Talk: goes to stderr."""
    print(text, file=sys.stderr, flush=True)


def say_note(video: Path, note: str) -> None:
    """What a user should know of a video, if there is anything."""
    if note:
        say(f"{video}: {note}")


def result(text: str, end: str = "\n") -> None:
    """Result: goes to stdout.

    Raises:
        OSError: that cannot be written to, which the error then names.
    """
    try:
        print(text, end=end, flush=True)
    except OSError as error:
        error.filename = "standard output"
        raise


def json_result(document: dict[str, Any]) -> None:
    """The one JSON document, the last line of stdout."""
    result(json_text(document))


def named_once(argument: Path | None, option: Path | None) -> Path | None:
    """The bundle that a command was given by its place or with `-m`, if any.

    Raises:
        UsageError: in both ways.
    """
    if argument is not None and option is not None:
        raise UsageError(f"the bundle is named twice, {argument} and -m {option}; name it once")
    return argument or option


def bundle_or_default(bundle: Path | None) -> Path:
    """The bundle to use: the given one, `$VQEDGE_BUNDLE`, or one that lies here.

    Raises:
        BundleError: none was given and none is here.
    """
    if bundle is not None:
        return bundle
    if named := os.environ.get("VQEDGE_BUNDLE"):
        return Path(named)
    for path in DEFAULT_BUNDLES:
        if path.is_dir():
            return path
    raise BundleError(
        "no bundle: give -m NAME.vqedge or set VQEDGE_BUNDLE; "
        "make one in a clone of the repository: vqedge assemble models/tiny -o tiny.vqedge"
    )
