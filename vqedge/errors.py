"""Every error a user can meet. Each message says what is wrong, where, and the next step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def printable(text: str) -> str:
    """The text with everything escaped that could move a terminal's cursor or hide a part of it."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def first_line(error: Exception) -> str:
    """First line of an error's message; the name of its class where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class VqedgeError(Exception):
    """A problem the user can fix. The command line prints it as one line and exits with 1.

    A message may name what stands in a stranger's file, a key or a tensor: `str()` is one line and
    `printable`.
    """

    def __str__(self) -> str:
        return printable(" ".join(super().__str__().splitlines()))


class ConfigError(VqedgeError):
    """A configuration file or a flag holds a value that cannot work."""


class UsageError(ConfigError):
    """The command line asks for what no file could give: it exits with 2.

    An option's text is none that it takes, options do not go together, or one is missing.
    """


class VideoError(VqedgeError):
    """The given file holds no frame that can be decoded."""


class Stopped(VqedgeError):
    """Whoever asked for a video to be decoded does not want it any more."""


class BundleError(VqedgeError):
    """A bundle is missing, incomplete, altered, or of an unknown schema version."""


class CheckpointError(VqedgeError):
    """A training checkpoint is missing a file or does not fit its configuration."""


class FetchError(VqedgeError):
    """Base weights could not be downloaded or do not match their pinned checksum."""


class ExportError(VqedgeError):
    """A checkpoint could not be turned into deployable files."""


class ParityError(ExportError):
    """The exported files do not compute what the checkpoint computes.

    Args:
        message: which figures are out of bounds.
        figures: everything that was measured.
    """

    def __init__(self, message: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.figures = dict(figures or {})


class BackendUnavailable(VqedgeError):
    """A needed library is not installed, or cannot run on this machine; or a model is closed."""


class StreamEnded(BackendUnavailable):
    """An answer was not read to its end before its language model was called again."""

    def __init__(  # an argument, as other errors have: pickle gives it
        self, told: str = "another call to the model ended this stream; ask again"
    ) -> None:
        super().__init__(told)


class PromptError(VqedgeError):
    """The question is empty or does not fit the context of the language model."""


class DatasetError(VqedgeError):
    """A question file (JSONL or CSV) has a line that cannot be read."""


class VqtError(VqedgeError):
    """A `.vqt` file is damaged, of an unknown version, or made for another bundle."""


class SearchError(VqedgeError):
    """A folder of `.vqt` files cannot be searched."""
