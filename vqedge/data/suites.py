"""Evaluation suites: where questions come from, as one stream of items.

- `synthetic`: the generated world under a seed that is never trained on.
- `jsonl:FILE` or `FILE.jsonl`: `{"video": PATH, "question": ..., "answer": ..., "kind"?: ...,
  "choices"?: [...]}` a line; paths are relative to the file.
- `nextqa:FILE.csv` or `FILE.csv`: NExT-QA multiple choice (columns video, question, answer, type,
  a0..a4).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vqedge.data.questions import one_question_per_kind
from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge.errors import DatasetError
from vqedge.validation import first_fault

SYNTHETIC_SEED = 70_001  # training uses small seeds; see vqedge.config
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_NEXTQA_CHOICES = ("a0", "a1", "a2", "a3", "a4")


@dataclass(frozen=True)
class Scene:
    """A generated clip, by its place in the world."""

    seed: int
    index: int

    def frames(self, count: int, size: int) -> npt.NDArray[np.uint8]:
        """Draw it: uint8 RGB `[count, size, size, 3]`."""
        return frames_from_scene(scene_from_seed(self.seed, self.index), count, size)


@dataclass(frozen=True)
class Item:
    """One question of a suite. With choices the answer is one of them, else free text."""

    clip: Scene | Path
    kind: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")
    video: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    kind: str = "all"
    choices: tuple[str, ...] = ()


def suite_items(name: str, limit: int | None = None, videos: Path | None = None) -> list[Item]:
    """The questions of a suite, those about one clip next to each other.

    Args:
        name: `synthetic`, `jsonl:FILE`, `nextqa:FILE`, or a path ending in `.jsonl` or `.csv`.
        limit: at most this many questions; a suite without end needs one.
        videos: folder of the videos of a CSV suite.

    Raises:
        DatasetError: no such suite, an unreadable line, or a video that is not there.
    """
    kind, separator, rest = name.partition(":")
    if not separator:
        kind, rest = _kind_from_path(name), name
    if kind not in SUITES:
        raise DatasetError(
            f"--suite {name}: choose one of {', '.join(SUITES)}, as jsonl:FILE or nextqa:FILE"
        )
    items = list(islice(SUITES[kind](rest, videos), limit or _DEFAULT_LIMIT))
    if not items:
        hint = f"; is any of its videos in {videos}?" if videos else ""
        raise DatasetError(f"--suite {name}: holds no question to ask{hint}")
    return items


def _kind_from_path(name: str) -> str:
    return {".jsonl": "jsonl", ".csv": "nextqa"}.get(Path(name).suffix, name)


def _synthetic(_rest: str, _videos: Path | None) -> Iterator[Item]:
    index = 0
    while True:
        clip = Scene(SYNTHETIC_SEED, index)
        rng = np.random.default_rng([SYNTHETIC_SEED, index])
        for item in one_question_per_kind(scene_from_seed(SYNTHETIC_SEED, index), rng):
            yield Item(clip, item.kind, item.question, item.answer)
        index += 1


def _jsonl(rest: str, _videos: Path | None) -> Iterator[Item]:
    path = Path(rest)
    for number, text in enumerate(_text(path).splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = _Line.model_validate(json.loads(text))
        except (ValidationError, ValueError) as error:
            raise DatasetError(f"{path}:{number}: {_reason(error)}") from error
        if line.choices and line.answer not in line.choices:
            raise DatasetError(f"{path}:{number}: the answer is not one of the choices")
        clip = path.parent / line.video
        if not clip.exists():
            raise DatasetError(f"{path}:{number}: no video {clip}; paths are relative to the file")
        yield Item(clip, line.kind, line.question, line.answer, line.choices)


def _nextqa(rest: str, videos: Path | None) -> Iterator[Item]:
    path = Path(rest)
    if videos is None or not videos.is_dir():
        raise DatasetError(f"{path}: a NExT-QA suite needs --videos DIR, the folder of its videos")
    rows = csv.DictReader(_text(path).splitlines())
    for number, row in enumerate(rows, start=2):
        try:
            choices = tuple(row[name].strip() for name in _NEXTQA_CHOICES)
            answer, video = dict(enumerate(choices))[int(row["answer"])], row["video"]
            kind, question = row["type"], row["question"].rstrip("?") + "?"
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise DatasetError(f"{path}:{number}: not a NExT-QA row ({error!r})") from error
        clip = _find_video(videos, video)
        if clip is not None:
            yield Item(clip, kind, question, answer, choices)


def _find_video(videos: Path, name: str) -> Path | None:
    """The file of a NExT-QA id, or None: the data set is often kept in part."""
    if Path(name).name != name:
        return None
    found = (videos / f"{name}{suffix}" for suffix in _VIDEO_SUFFIXES)
    return next((path for path in found if path.is_file()), None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_fault(error)
    return f"not JSON ({error})"


SUITES: dict[str, Callable[[str, Path | None], Iterator[Item]]] = {
    "synthetic": _synthetic,
    "jsonl": _jsonl,
    "nextqa": _nextqa,
}
_DEFAULT_LIMIT = 100_000
