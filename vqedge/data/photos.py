"""Clips composed of labelled photos: a slow pan and zoom over one to four photos in sequence.

A folder of photos is described by `index.jsonl`: `{"file": PATH, "label": CLASS, "text": NOUN,
"split": NAME}` a line; lines without a label are left out. A clip is a pure function of the photos
of a split, a seed and a number.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from vqedge.data.clips import Labels, QuestionAnswer, Vocabulary
from vqedge.data.jsonl import text_of
from vqedge.data.naming import ORDER
from vqedge.data.photo_questions import caption, one_question_per_kind, questions_in_rounds
from vqedge.data.questions import one_of
from vqedge.errors import DatasetError, VideoError
from vqedge.files import bytes_within
from vqedge.json_text import without_repeats
from vqedge.validation import first_fault

_MOST_BYTES = 512 << 20
_LIMITS = {"max_pixels": "120000000"}  # as for any still, one of 108 megapixels
_ALONE = {"protocol_whitelist": "none"}  # a file may not open other files
_VERSION = 1  # raise when a (photos, seed, number) triple comes to show something else
_SHORTEST = 0.2  # a photo is there for this share of the clip at least
_CLOSEST = 0.65  # a view shows this share of the photo's sides at least
_LARGEST_ZOOM = 0.25  # change of that share within a clip, at most
_PATTERNS: tuple[tuple[int, ...], ...] = ((0,), (0, 1), (0, 1, 2), (0, 1, 0), (0, 1, 2, 3))
_PATTERN_WEIGHTS = (0.34, 0.24, 0.18, 0.10, 0.14)
_View = tuple[float, float, float]  # left, top, side, as shares of the photo's sides


class _Line(BaseModel):
    file: str = Field(min_length=1)
    label: str | None = None
    text: str = Field(min_length=1)
    split: str = "train"


@dataclass(frozen=True)
class Photo:
    """A photo and the noun for what it shows."""

    path: Path
    noun: str

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Decode it, uint8 `[H, W, 3]`; its name tells FFmpeg nothing, it may be a stranger's.

        Raises:
            VideoError: it cannot be read, or is a playlist.
        """
        try:
            data = io.BytesIO(bytes_within(self.path, _MOST_BYTES))
            with av.open(data, options=_LIMITS, container_options=_ALONE) as container:
                frame = next(container.decode(video=0))
                return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        except (av.FFmpegError, OSError, StopIteration, IndexError) as error:
            raise VideoError(f"{self.path}: not a readable photo ({error})") from error


@dataclass(frozen=True)
class Showing:
    """One photo for a part of the clip, seen through a moving window."""

    photo: Photo
    start: float
    end: float
    first_view: _View
    last_view: _View
    mirrored: bool

    def view(self, time: float) -> _View:
        """The window at `time` in [start, end]."""
        share = (time - self.start) / (self.end - self.start)
        left, top, side = (
            a + share * (b - a) for a, b in zip(self.first_view, self.last_view, strict=True)
        )
        return left, top, side


@dataclass(frozen=True)
class PhotoClip:
    """Photos in sequence; `nouns` are all those that a question may name.

    `kinds` are those of a round of questions, twice where a kind is asked twice as often.
    """

    showings: tuple[Showing, ...]
    nouns: tuple[str, ...]
    caption_share: float = 0.0
    kinds: tuple[str, ...] = ()

    def frames(self, count: int, size: int) -> npt.NDArray[np.uint8]:
        """Draw it, uint8 `[count, size, size, 3]`; views are stretched to the square."""
        pixels = {showing.photo.path: showing.photo.pixels() for showing in self.showings}
        drawn = np.empty((count, size, size, 3), np.uint8)
        for number in range(count):
            time = (number + 0.5) / count
            showing = self._at(time)
            drawn[number] = _seen(pixels[showing.photo.path], showing, time, size)
        return drawn

    def questions(self, rng: np.random.Generator, count: int) -> list[QuestionAnswer]:
        """Questions to train on, no two alike; fewer than `count` where `kinds` have no more."""
        if self.kinds:
            return questions_in_rounds(
                self.things, self.nouns, rng, count, self.caption_share, self.kinds
            )
        found = {caption(self.things, rng)} if rng.random() < self.caption_share else set()
        for _ in range(4 * count):
            found |= {item for item in self.one_question_per_kind(rng) if rng.random() < 0.7}
            if len(found) >= count:
                break
        ordered = sorted(found, key=lambda item: item.question)
        return [ordered[place] for place in rng.permutation(len(ordered))[:count]]

    def one_question_per_kind(self, rng: np.random.Generator) -> list[QuestionAnswer]:
        """Questions to evaluate on."""
        return one_question_per_kind(self.things, self.nouns, rng)

    def caption(self, rng: np.random.Generator) -> QuestionAnswer:
        """A description of the whole clip."""
        return caption(self.things, rng)

    def labels(self, frames: int, grid: int) -> Labels:
        """Every patch of a frame shows the photo that is there."""
        distinct = list(dict.fromkeys(self.things))
        times = [(number + 0.5) / frames for number in range(frames)]
        shown = np.array([distinct.index(self._at(time).photo.noun) + 1 for time in times])
        words = [{"thing": noun} for noun in distinct]
        if 1 < len(distinct) == len(self.things):
            words = [{**word, "order": ORDER[place]} for place, word in enumerate(words)]
        return Labels(np.repeat(shown, grid * grid).reshape(frames, grid, grid), tuple(words))

    def reversed(self) -> PhotoClip:
        """Played backwards."""
        turned = tuple(
            replace(
                item,
                start=1.0 - item.end,
                end=1.0 - item.start,
                first_view=item.last_view,
                last_view=item.first_view,
            )
            for item in reversed(self.showings)
        )
        return replace(self, showings=turned)

    @property
    def things(self) -> tuple[str, ...]:
        """Nouns in the order they are shown."""
        return tuple(showing.photo.noun for showing in self.showings)

    def _at(self, time: float) -> Showing:
        return next(item for item in self.showings if time < item.end or item.end == 1.0)


@dataclass(frozen=True)
class PhotoClips:
    """The first `clips` clips composed of a folder's photos; `kinds` as in `PhotoClip`."""

    index: Path
    split: str
    seed: int
    clips: int
    caption_share: float = 0.0
    kinds: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, number: int) -> PhotoClip:
        rng = np.random.default_rng([self.seed, number])
        pattern = _PATTERNS[int(rng.choice(len(_PATTERNS), p=_PATTERN_WEIGHTS))]
        nouns = rng.permutation(len(self.nouns))[: max(pattern) + 1]
        photos = [one_of(self._photos[self.nouns[noun]], rng) for noun in nouns]
        cuts = _cuts(rng, len(pattern))
        showings = tuple(
            _showing(rng, photos[place], start, end)
            for place, start, end in zip(pattern, cuts, cuts[1:], strict=False)
        )
        return PhotoClip(showings, self.nouns, self.caption_share, self.kinds)

    @cached_property
    def nouns(self) -> tuple[str, ...]:
        """All nouns of the split, sorted."""
        return tuple(self._photos)

    @property
    def vocabulary(self) -> Vocabulary:
        """The words that label its patches."""
        return {"thing": self.nouns, "order": ORDER}

    @cached_property
    def version(self) -> str:
        """The split, its photos by name and noun, and the seed; their files may be encoded anew."""
        told = [self.split]
        for noun, photos in self._photos.items():
            names = (photo.path.relative_to(self.index.parent).as_posix() for photo in photos)
            told += [f"{name} {noun}" for name in names]
        return self._identity(told)

    @cached_property
    def fingerprint(self) -> str:
        """The photos by name, noun and size, and the seed."""
        told = [
            f"{photo.path.relative_to(self.index.parent)} {noun} {photo.path.stat().st_size}"
            for noun, photos in self._photos.items()
            for photo in photos
        ]
        return self._identity(told)

    def _identity(self, told: Sequence[str]) -> str:
        digest = hashlib.sha256("\n".join(told).encode()).hexdigest()[:12]
        return f"photos{_VERSION}-{digest}-seed{self.seed}"

    @cached_property
    def _photos(self) -> dict[str, list[Photo]]:
        by_noun: dict[str, list[Photo]] = {}
        for photo in photos_from_index(self.index, self.split):
            by_noun.setdefault(photo.noun, []).append(photo)
        if len(by_noun) < max(map(len, _PATTERNS)):
            raise DatasetError(f"{self.index}: want photos of 4 things in split {self.split!r}")
        return dict(sorted(by_noun.items()))


def photos_from_index(index: Path, split: str) -> list[Photo]:
    """The labelled photos of a split.

    Raises:
        DatasetError: the index cannot be read, a line is malformed, or a photo is not there.
    """
    photos = []
    for number, text in enumerate(text_of(index).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            line = _Line.model_validate_json(text)
            json.loads(text, object_pairs_hook=without_repeats)  # pydantic takes the last of two
        except ValidationError as error:
            raise DatasetError(f"{index}:{number}: {first_fault(error)}") from error
        except ValueError as error:
            raise DatasetError(f"{index}:{number}: {error}") from error
        if line.label is None or line.split != split:
            continue
        if Path(line.file).is_absolute() or ".." in Path(line.file).parts:
            raise DatasetError(f"{index}:{number}: {line.file}: want a path below the index")
        path = index.parent / line.file
        if not path.is_file():
            raise DatasetError(f"{index}:{number}: no photo {line.file}")
        photos.append(Photo(path, line.text))
    return photos


def _cuts(rng: np.random.Generator, parts: int) -> list[float]:
    """Where the parts of a clip begin and end, each at least a fifth long."""
    free = 1.0 - parts * _SHORTEST
    lengths = _SHORTEST + free * rng.dirichlet(np.full(parts, 3.0))
    return [0.0, *np.cumsum(lengths)[:-1].tolist(), 1.0]


def _showing(rng: np.random.Generator, photo: Photo, start: float, end: float) -> Showing:
    side = float(rng.uniform(_CLOSEST, 1.0))
    zoom = float(rng.uniform(-_LARGEST_ZOOM, _LARGEST_ZOOM)) * (end - start)
    views = [_view(rng, side), _view(rng, float(np.clip(side + zoom, _CLOSEST, 1.0)))]
    return Showing(photo, start, end, views[0], views[1], bool(rng.random() < 0.5))


def _view(rng: np.random.Generator, side: float) -> _View:
    left, top = rng.uniform(0.0, 1.0 - side, 2)
    return float(left), float(top), side


def _seen(
    pixels: npt.NDArray[np.uint8], showing: Showing, time: float, size: int
) -> npt.NDArray[np.uint8]:
    """The window's content, stretched to a square."""
    height, width = pixels.shape[:2]
    left, top, side = showing.view(time)
    rows = slice(int(top * height), max(int((top + side) * height), int(top * height) + 1))
    columns = slice(int(left * width), max(int((left + side) * width), int(left * width) + 1))
    window = np.ascontiguousarray(pixels[rows, columns])
    frame = av.VideoFrame.from_ndarray(window, format="rgb24")
    small = frame.reformat(width=size, height=size, interpolation="AREA")
    drawn = np.asarray(small.to_ndarray(), np.uint8)
    return drawn[:, ::-1] if showing.mirrored else drawn
