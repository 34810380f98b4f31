"""Videos and questions of one's own: one JSON object a line (`docs/train-your-own.md`).

    {"video": PATH, "question": TEXT, "answer": TEXT, "kind"?: NAME, "choices"?: [TEXT, ...],
     "start"?: SECONDS, "end"?: SECONDS}

Paths are relative to the file, or to a folder that is given with it. Lines about the same span of
the same video are one clip.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from typing_extensions import Self

from vqedge.data.clips import QuestionAnswer, Vocabulary
from vqedge.data.questions import one_of
from vqedge.errors import DatasetError, VqedgeError
from vqedge.files import text_within
from vqedge.json_text import without_repeats
from vqedge.validation import first_fault

_VERSION = 1  # raise when the same file comes to show other clips
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


FrameReader = Callable[[Path, int, int, float | None, float | None], npt.NDArray[np.uint8]]
"""Decodes `count` frames of a file: path, count, size, and the span's start and end in seconds,
None for those of the file, to uint8 `[count, size, size, 3]`."""


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")
    video: str = Field(min_length=1)
    question: _Text
    answer: _Text
    kind: _Text = "all"
    choices: tuple[_Text, ...] = ()
    start: _Seconds | None = None
    end: _Seconds | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.choices and self.answer not in self.choices:
            raise ValueError("the answer is not one of the choices")
        if len(self.choices) != len({*self.choices}) or len(self.choices) == 1:
            raise ValueError("choices: give two or more, all different")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise ValueError("start is not before end")
        return self


@dataclass(frozen=True)
class VideoFile:
    """A video, or the part of it from `start_s` to `end_s`."""

    path: Path
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class FileClip:
    """A video file and what is asked about it, each at a place, `FILE:LINE`."""

    video: VideoFile
    asked: tuple[QuestionAnswer, ...]
    read: FrameReader = field(repr=False, compare=False)
    places: tuple[str, ...] = field(default=(), repr=False, compare=False)

    def frames(self, count: int, size: int) -> npt.NDArray[np.uint8]:
        """Decode it, uint8 `[count, size, size, 3]`.

        Raises:
            VideoError: it cannot be decoded.
        """
        return self.read(self.video.path, count, size, self.video.start_s, self.video.end_s)

    def fault(self, size: int) -> str | None:
        """Why no frame of it can be read, with the place of its first question; None if one can.

        Args:
            size: of the frame in pixels.
        """
        try:
            self.frames(1, size)
        except VqedgeError as error:
            return f"{self.places[0]}: {error}"
        return None

    def questions(self, rng: np.random.Generator, count: int) -> list[QuestionAnswer]:
        """Questions to train on, none twice."""
        return [self.asked[place] for place in rng.permutation(len(self.asked))[:count]]

    def one_question_per_kind(self, rng: np.random.Generator) -> list[QuestionAnswer]:
        """Questions to evaluate on, kinds in the order of the file."""
        by_kind: dict[str, list[QuestionAnswer]] = {}
        for item in self.asked:
            by_kind.setdefault(item.kind, []).append(item)
        return [one_of(items, rng) for items in by_kind.values()]

    def labels(self, frames: int, grid: int) -> None:
        """Nothing is known of its patches."""

    def reversed(self) -> None:
        """Its questions may not hold backwards."""


@dataclass(frozen=True)
class JsonlClips:
    """The clips of a JSONL file, in order of their first lines.

    Args:
        path: the file.
        read: how videos are decoded.

    Raises:
        DatasetError: the file is not readable, holds no question, or a line of it is malformed;
            raised when the clips are first looked at.
    """

    path: Path
    read: FrameReader

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, number: int) -> FileClip:
        return self._clips[number]

    @property
    def vocabulary(self) -> Vocabulary:
        """No words: its patches have no labels."""
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """The clips by name, span, size and time of the last change of their files."""
        told = repr([self._state(clip.video) for clip in self._clips])
        return f"jsonl{_VERSION}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"

    @cached_property
    def videos(self) -> frozenset[Path]:
        """The files that its clips are of, wherever links to them lead."""
        return frozenset(clip.video.path.resolve() for clip in self._clips)

    @cached_property
    def _clips(self) -> tuple[FileClip, ...]:
        found = _placed_questions(self.path, self.path.parent)
        if not found:
            raise DatasetError(f"{self.path}: holds no question")
        return tuple(
            FileClip(video, tuple(placed.values()), self.read, tuple(placed))
            for video, placed in found.items()
        )

    def _state(self, video: VideoFile) -> tuple[object, ...]:
        files = sorted(video.path.iterdir()) if video.path.is_dir() else [video.path]
        stats = [(os.path.relpath(file, self.path.parent), file.stat()) for file in files]
        states = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return video.start_s, video.end_s, states


def questions_from_jsonl(
    path: Path, videos: Path | None = None
) -> dict[VideoFile, list[QuestionAnswer]]:
    """The questions about every clip of a file, clips in order of their first lines.

    Args:
        path: the file.
        videos: folder that its paths are relative to; None for the file's own.

    Raises:
        DatasetError: the file is not readable, or `FILE:LINE: what is wrong with the line`.
    """
    found = _placed_questions(path, path.parent if videos is None else videos)
    return {video: [*placed.values()] for video, placed in found.items()}


def text_of(path: Path) -> str:
    """A question file as text, without the byte order mark that some editors begin it with.

    Raises:
        DatasetError: it is not there, not UTF-8, or larger than 64 MiB.
    """
    try:
        return text_within(path)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: cannot be read ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); check the path") from error


def _placed_questions(path: Path, folder: Path) -> dict[VideoFile, dict[str, QuestionAnswer]]:
    """As `questions_from_jsonl`, by place; paths are relative to the folder."""
    found: dict[VideoFile, dict[str, QuestionAnswer]] = {}
    for place, line in _lines(path):
        video = VideoFile(folder / line.video, line.start, line.end)
        if not os.path.exists(video.path):  # False for names that no system takes, too
            whose = "the file" if folder == path.parent else folder
            raise DatasetError(f"{place}: no video {video.path}; paths are relative to {whose}")
        item = QuestionAnswer(line.kind, line.question, line.answer, line.choices)
        found.setdefault(video, {})[place] = item
    return found


def _lines(path: Path) -> Iterator[tuple[str, _Line]]:
    """Every line with its place, `FILE:NUMBER`; empty lines are skipped."""
    for number, text in enumerate(text_of(path).split("\n"), start=1):
        if not text.strip():
            continue
        place = f"{path}:{number}"
        try:
            yield place, _Line.model_validate(json.loads(text, object_pairs_hook=without_repeats))
        except ValidationError as error:
            raise DatasetError(f"{place}: {first_fault(error)}") from error
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{place}: not JSON ({error})") from error
