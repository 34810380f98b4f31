"""What commands print: results on stdout, talk on stderr, one JSON document last."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unicodedata import category

from vqedge.errors import UsageError, printable
from vqedge.json_text import json_text
from vqedge.quiet import is_quiet

_JOINERS = "\u200c\u200d"  # of letters and of emoji


def say(text: str, *, always: bool = False) -> None:
    """Talk: goes to stderr, unless there is `--quiet`.

    Args:
        text: what is said; it may name a stranger's file, and is made `printable`.
        always: it is a warning, or was asked for.
    """
    if always or not is_quiet():
        print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


def counted(count: int, noun: str) -> str:
    """As `1 clip` and `2 clips`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def say_note(video: Path, note: str) -> None:
    """What a user should know of a video, if there is anything."""
    if note:
        say(f"{video}: {note}", always=True)


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


def copyable(text: str) -> str:
    """`printable`, but spaces of any width and joiners stay: names have those, and do no harm."""
    return "".join(
        letter if letter in _JOINERS or category(letter) == "Zs" else printable(letter)
        for letter in text
    )


def path_result(path: Path) -> None:
    """A file as result: `copyable` at a terminal, as it is for who reads a pipe.

    Raises:
        OSError: as `result`.
    """
    result(copyable(str(path)) if sys.stdout.isatty() else str(path))


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
