"""Evaluation suites: where questions come from, as one stream of items.

- `synthetic`, `synthetic:SEED`: the generated world under a seed that is never trained on.
- `photos:INDEX.jsonl`, `photos:INDEX.jsonl:SEED`: clips composed of the photos of the split "test"
  (`vqedge.data.photos`).
- `photos-confirm:INDEX.jsonl`, `photos-confirm:INDEX.jsonl:SEED`: the same of the split "confirm",
  other photos.
- `captions`, `captions:INDEX.jsonl`: a description of each of these clips.
- `bindings`, `bindings:SEED`: of the generated world, which colour belongs to which shape.
- `jsonl:FILE` or `FILE.jsonl`: one's own videos and questions (`vqedge.data.jsonl`).
- `nextqa:FILE.csv` or `FILE.csv`: NExT-QA multiple choice (columns video, question, answer, type,
  a0..a4).
- `nextqa-letters:FILE.csv`: the same with the choices in the question, to be answered by a letter.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import zlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vqedge.data.clips import QuestionAnswer
from vqedge.data.generated import GeneratedClips, SceneClip
from vqedge.data.jsonl import FrameReader, VideoFile, questions_from_jsonl, text_of
from vqedge.data.photos import PhotoClip, PhotoClips
from vqedge.data.questions import binding, facts_of
from vqedge.data.seeds import (
    CONFIRM_SEED,
    CONFIRM_SPLIT,
    HELD_OUT_SEEDS,
    PHOTOS_SEED,
    SYNTHETIC_SEED,
    TEST_SPLIT,
)
from vqedge.errors import DatasetError, UsageError

logger = logging.getLogger(__name__)

# raised when the same clips are asked other questions
_WORLD_ASKED, _PHOTOS_ASKED, _CAPTIONS_ASKED, _BINDINGS_ASKED = 2, 3, 1, 1
_ENDLESS = 10**9  # clips of a suite that are made when they are asked for
# the first is taken where a video is there in several
_VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_NEXTQA_CHOICES = {"A": "a0", "B": "a1", "C": "a2", "D": "a3", "E": "a4"}
_NEXTQA_COLUMNS = ("video", "question", "answer", "type", *_NEXTQA_CHOICES.values())

Frames = npt.NDArray[np.uint8]
MadeClip = SceneClip | PhotoClip
MadeClips = GeneratedClips | PhotoClips
_Ask = Callable[[MadeClip, np.random.Generator], list["Item"]]


@dataclass(frozen=True)
class Item:
    """One question of a suite, as in `QuestionAnswer`.

    `facts` are those that the answer tells; `group` is of kinds that are told together, too.
    """

    clip: MadeClip | VideoFile
    kind: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    group: str = ""

    @property
    def seen_in(self) -> Hashable:
        """The clip, or the video that it is a part of: what answers are right or wrong by."""
        return self.clip.path.resolve() if isinstance(self.clip, VideoFile) else self.clip


@dataclass(frozen=True)
class Suite:
    """Where the items of a suite come from.

    Attributes:
        items: from what follows the name's colon, and the folder of videos.
        version: names what is asked, from what follows the name's colon.
        limit: how many questions are asked if nobody says so.
        missing: how many of its videos are not in the folder.
    """

    items: Callable[[str, Path | None], Iterator[Item]]
    version: Callable[[str], str]
    limit: int
    missing: Callable[[str, Path | None], int] = lambda *_: 0


def frames_of(
    clip: MadeClip | VideoFile, count: int, size: int, read: FrameReader, shuffled: bool = False
) -> Frames:
    """What an item's clip shows.

    Args:
        clip: made or read.
        count: frames.
        size: side of a frame in pixels.
        read: how files are decoded.
        shuffled: in a random order, the same one every time.

    Returns:
        uint8 RGB `[count, size, size, 3]`.

    Raises:
        VideoError: the file, or a photo of the clip, cannot be decoded.
        VqtError: the file is a `.vqt`.
    """
    if isinstance(clip, VideoFile):
        frames = read(clip.path, count, size, clip.start_s, clip.end_s)
    else:
        frames = clip.frames(count, size)
    if shuffled:
        rng = np.random.default_rng(zlib.crc32(frames.tobytes()))
        frames = frames[rng.permutation(count)]
    return frames


def suite_items(name: str, limit: int | None = None, videos: Path | None = None) -> list[Item]:
    """The questions of a suite, those about one clip next to each other.

    Args:
        name: `synthetic`, `photos:INDEX`, `photos-confirm:INDEX`, `captions`, `captions:INDEX` or
            `bindings`, each also with `:SEED`; `jsonl:FILE`, `nextqa:FILE`, `nextqa-letters:FILE`,
            or a path ending in `.jsonl` or `.csv`.
        limit: at most this many questions; by default 300 of a suite without end, else all.
        videos: folder of a file's videos: a CSV suite needs it, a JSONL one has its own.

    Raises:
        UsageError: no such suite, a seed that is not held out, or it needs another option.
        DatasetError: an unreadable line, or a video that is not there.
    """
    suite, rest = _suite_and_rest(name)
    items = list(islice(suite.items(rest, videos), limit or suite.limit))
    if not items:
        hint = f"; is any of its videos in {videos}?" if videos else ""
        raise DatasetError(f"--suite {name}: holds no question to ask{hint}")
    return items


def suite_version(name: str) -> str:
    """What a suite asks, as `world3-seed70001-asked2`; only reports of one version are comparable.

    Args:
        name: as for `suite_items`.

    Raises:
        UsageError: no such suite, or a seed that is not held out.
        DatasetError: its file cannot be read.
    """
    suite, rest = _suite_and_rest(name)
    return suite.version(rest)


def missing_videos(name: str, videos: Path | None = None) -> int:
    """How many videos of a suite are not there, whose questions `suite_items` leaves out.

    Args:
        name: as for `suite_items`.
        videos: as for `suite_items`.

    Raises:
        UsageError: no such suite.
        DatasetError: its file cannot be read.
    """
    suite, rest = _suite_and_rest(name)
    return suite.missing(rest, videos)


def _suite_and_rest(name: str) -> tuple[Suite, str]:
    """A suite and what follows its name's colon."""
    kind, separator, rest = name.partition(":")
    if not separator:
        kind, rest = _kind_from_path(name)
    if kind not in SUITES:
        raise UsageError(
            f"--suite {name}: choose one of {', '.join(SUITES)}, as jsonl:FILE or nextqa:FILE"
        )
    return SUITES[kind], rest


def _kind_from_path(name: str) -> tuple[str, str]:
    """A suite and what follows its name, from a bare name or path."""
    kind = {".jsonl": "jsonl", ".csv": "nextqa"}.get(Path(name).suffix)
    return (kind, name) if kind else (name, "")


def _synthetic(seed: str) -> GeneratedClips:
    return GeneratedClips(_held_out(seed) if seed else SYNTHETIC_SEED, _ENDLESS)


def _photos(
    rest: str, split: str = TEST_SPLIT, usual_seed: int = PHOTOS_SEED, suite: str = "photos"
) -> PhotoClips:
    index, separator, seed = rest.rpartition(":")
    if not (separator and seed.isdecimal()):
        index, seed = rest, str(usual_seed)
    if not index:
        raise UsageError(f"--suite {suite}: give the photos' index, as {suite}:INDEX.jsonl")
    return PhotoClips(Path(index), split, _held_out(seed), _ENDLESS)


def _confirming(rest: str) -> PhotoClips:
    return _photos(rest, CONFIRM_SPLIT, CONFIRM_SEED, "photos-confirm")


def _synthetic_or_photos(rest: str) -> MadeClips:
    return _photos(rest) if rest.rstrip("0123456789") else _synthetic(rest)


def _held_out(text: str) -> int:
    """A seed that no recipe can train on."""
    if not text.isdecimal() or int(text) not in HELD_OUT_SEEDS:
        first, last = HELD_OUT_SEEDS[0], HELD_OUT_SEEDS[-1]
        raise UsageError(
            f"--suite: {text} is not a seed from {first} to {last}; clips of all others may be "
            "trained on"
        )
    return int(text)


def _endless(source: Callable[[str], MadeClips], ask: _Ask, asked: str) -> Suite:
    """The suite of a source whose clips are made when they are asked for."""
    return Suite(
        lambda rest, _videos: _made(source(rest), ask),
        lambda rest: f"{_identity(source(rest))}-{asked}",
        limit=300,
    )


def _identity(source: MadeClips) -> str:
    return source.version if isinstance(source, PhotoClips) else source.fingerprint


def _made(source: MadeClips, ask: _Ask) -> Iterator[Item]:
    """What is asked about each clip.

    Drawn apart from the clip, whose own numbers are those of (seed, number): or the object that is
    asked about would go by the numbers that placed it.
    """
    for number in range(len(source)):
        yield from ask(source[number], np.random.default_rng([source.seed, number, 1]))


def _one_per_kind(clip: MadeClip, rng: np.random.Generator) -> list[Item]:
    """One question of every kind that applies."""
    return [_item(clip, item) for item in clip.one_question_per_kind(rng)]


def _description(clip: MadeClip, rng: np.random.Generator) -> list[Item]:
    item = _item(clip, clip.caption(rng))
    return [replace(item, facts=tuple(facts_of(item.answer)))]


def _binding(clip: MadeClip, rng: np.random.Generator) -> list[Item]:
    """None of clips of photos, and of those in which nothing can be mixed up."""
    found = binding(clip.scene, rng) if isinstance(clip, SceneClip) else None
    return [_item(clip, found)] if found else []


def _jsonl(rest: str, videos: Path | None) -> Iterator[Item]:
    for video, asked in questions_from_jsonl(Path(rest), videos).items():
        for item in asked:
            yield _item(video, item)


def _item(clip: MadeClip | VideoFile, item: QuestionAnswer) -> Item:
    return Item(clip, item.kind, item.question, item.answer, item.choices, item.named)


def _nextqa(rest: str, videos: Path | None, letters: bool = False) -> Iterator[Item]:
    path = Path(rest)
    if videos is None:
        raise UsageError(f"{path}: a NExT-QA suite needs --videos DIR, the folder of its videos")
    if not videos.is_dir():
        raise DatasetError(f"--videos {videos}: no such folder; give that of the suite's videos")
    files = _videos_by_name(videos)
    found: dict[str, list[Item]] = {}
    missing: set[str] = set()
    for number, row in enumerate(_csv_rows(path), start=2):
        try:
            empty = [name for name in _NEXTQA_COLUMNS if not (row.get(name) or "").strip()]
            if empty:
                raise ValueError(f"{empty[0]} is empty; want five choices, a0 to a4")
            choices = tuple(row[name].strip() for name in _NEXTQA_CHOICES.values())
            right, video = range(len(choices)).index(int(row["answer"])), row["video"]
            kind, question = row["type"], row["question"].rstrip("?") + "?"
            if letters:  # as the data set is asked by lmms-eval: nothing is added to the question
                shown = map(". ".join, zip(_NEXTQA_CHOICES, choices, strict=True))
                question, choices = "\n".join([row["question"], *shown]), (*_NEXTQA_CHOICES,)
        except ValueError as error:
            raise DatasetError(f"{path}:{number}: not a NExT-QA row ({error})") from error
        if video in files:
            clip = VideoFile(files[video])
            item = Item(clip, kind, question, choices[right], choices, group=kind[:1])
            found.setdefault(video, []).append(item)
        else:
            missing.add(video)
    if missing:
        logger.warning("%s: %d videos are not in %s", path, len(missing), videos)
    for asked in found.values():  # the file has the questions about a video far apart
        yield from asked


def _nextqa_missing(rest: str, videos: Path | None) -> int:
    """Videos of the file that are not there: the data set is often kept in part."""
    files = _videos_by_name(videos) if videos else {}
    return len({row["video"] for row in _csv_rows(Path(rest))} - files.keys())


def _csv_rows(path: Path) -> Iterator[dict[str, str]]:
    rows = csv.DictReader(io.StringIO(text_of(path), newline=""))
    try:
        yield from rows
    except csv.Error as error:
        raise DatasetError(f"{path}:{rows.line_num}: not a CSV file ({error})") from error


def _videos_by_name(videos: Path) -> dict[str, Path]:
    """The videos of a folder and of those in it, as the data set's map puts them, by their ids.

    Of several with one id it is the one whose suffix comes first, the least deep of these.
    """
    found: dict[str, Path] = {}
    paths = [*sorted(videos.glob("*")), *sorted(videos.glob("*/*"))]
    for suffix in _VIDEO_SUFFIXES:
        for path in paths:
            if path.suffix.lower() == suffix and path.is_file():
                found.setdefault(path.stem, path)
    return found


def _version_of_file(rest: str) -> str:
    digest = hashlib.sha256(text_of(Path(rest)).encode()).hexdigest()
    return f"sha256-{digest[:16]}"


SUITES: dict[str, Suite] = {
    "synthetic": _endless(_synthetic, _one_per_kind, f"asked{_WORLD_ASKED}"),
    "photos": _endless(_photos, _one_per_kind, f"asked{_PHOTOS_ASKED}"),
    "photos-confirm": _endless(_confirming, _one_per_kind, f"asked{_PHOTOS_ASKED}"),
    "captions": _endless(_synthetic_or_photos, _description, f"captions{_CAPTIONS_ASKED}"),
    "bindings": _endless(_synthetic, _binding, f"bindings{_BINDINGS_ASKED}"),
    "jsonl": Suite(_jsonl, _version_of_file, limit=_ENDLESS),
    "nextqa": Suite(_nextqa, _version_of_file, limit=_ENDLESS, missing=_nextqa_missing),
    "nextqa-letters": Suite(
        partial(_nextqa, letters=True),
        lambda rest: f"{_version_of_file(rest)}-letters1",
        limit=_ENDLESS,
        missing=_nextqa_missing,
    ),
}
