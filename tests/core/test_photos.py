"""Clips composed of labelled photos: what is shown is what is asked about."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import wave
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar, cast

import av
import numpy as np
import numpy.typing as npt
import pytest
from av.video.codeccontext import VideoCodecContext
from fake_clips import read_nothing

from vqedge.data.clips import ClipSource, QuestionAnswer
from vqedge.data.photo_questions import KINDS, caption
from vqedge.data.photos import PhotoClip, PhotoClips, Showing, photos_from_index
from vqedge.data.questions import facts_of, in_rounds, kinds_by_weight
from vqedge.data.sources import source_from_config
from vqedge.data.suites import Item, frames_of, suite_items
from vqedge.errors import ConfigError, DatasetError, VideoError
from vqedge.evaluate import Reply, evaluate
from vqedge.recipe import PhotosConfig

# Every noun has a colour of its own, so that a frame says which photo it shows.
NOUNS = {
    "ant": (250, 10, 10),
    "bonsai": (10, 250, 10),
    "orange chair": (10, 10, 250),
    "umbrella": (250, 250, 10),
    "yak": (10, 250, 250),
}
FRAMES, SIZE = 8, 28


def write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    context = cast(VideoCodecContext, av.CodecContext.create("png", "w"))
    context.height, context.width = pixels.shape[:2]
    context.pix_fmt, context.time_base = "rgb24", 1  # type: ignore[assignment]
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
    frame.pts = 0
    path.write_bytes(b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)]))


def photo(color: tuple[int, int, int], number: int) -> npt.NDArray[np.uint8]:
    """24 x 36 pixels of a colour, darker to the left, another shade for every photo."""
    ramp = np.linspace(0.7, 1.0, 36)[None, :, None] * (1.0 - 0.1 * number)
    return (np.ones((24, 36, 1)) * ramp * np.array(color)).astype(np.uint8)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five things, two photos each for training and one for testing; and a photo of nothing."""
    folder = tmp_path_factory.mktemp("photos")
    lines: list[dict[str, Any]] = [{"file": "none.png", "label": None, "text": "a day out"}]
    for noun, color in NOUNS.items():
        for number, split in enumerate(("train", "train", "test")):
            name = f"{noun} {number}.png"
            write_png(folder / name, photo(color, number))
            lines.append({"file": name, "label": noun.upper(), "text": noun, "split": split})
    path = folder / "index.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def source(index: Path) -> PhotoClips:
    return PhotoClips(index, "train", seed=1, clips=300)


@pytest.fixture(scope="module")
def clips(source: PhotoClips) -> list[PhotoClip]:
    return [source[number] for number in range(len(source))]


def noun_of(frame: npt.NDArray[np.uint8]) -> str:
    """The thing a frame shows, by its colour."""
    mean = frame.reshape(-1, 3).mean(axis=0)
    return min(NOUNS, key=lambda noun: float(np.abs(mean / mean.max() * 250 - NOUNS[noun]).sum()))


def asked(clip: PhotoClip, seed: int) -> list[QuestionAnswer]:
    return clip.one_question_per_kind(np.random.default_rng(seed))


# ---- clips


def test_a_clip_is_a_pure_function_of_photos_seed_and_number(index: Path) -> None:
    one, same = (PhotoClips(index, "train", seed=3, clips=20) for _ in range(2))
    other = PhotoClips(index, "train", seed=4, clips=20)
    assert [one[n] for n in range(20)] == [same[n] for n in range(20)]
    assert all(one[n] != other[n] for n in range(20))
    assert (one[0].frames(FRAMES, SIZE) == same[0].frames(FRAMES, SIZE)).all()


def test_the_fingerprint_tells_photos_split_and_seed_apart(index: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path = index, split: str = "train", seed: int = 1) -> str:
        return PhotoClips(path, split, seed, 9).fingerprint

    assert fingerprint() == fingerprint()
    assert re.fullmatch(r"[A-Za-z0-9-]+", fingerprint())
    assert len({fingerprint(), fingerprint(seed=2), fingerprint(split="test")}) == 3
    other = tmp_path / "index.jsonl"
    lines = [json.loads(line) for line in index.read_text().splitlines()]
    for line in lines[1:]:
        (tmp_path / line["file"]).write_bytes((index.parent / line["file"]).read_bytes())
    other.write_text("\n".join(json.dumps(line) for line in lines))
    assert fingerprint(other) == fingerprint(), "the folder's place is not part of it"
    other.write_text("\n".join(json.dumps({**line, "text": line["text"] + "s"}) for line in lines))
    assert fingerprint(other) != fingerprint()


def test_the_clips_are_varied_and_fill_their_time(clips: list[PhotoClip]) -> None:
    lengths = Counter(len(clip.showings) for clip in clips)
    assert set(lengths) == {1, 2, 3, 4} and min(lengths.values()) > 0.08 * len(clips)
    repeats = sum(len(set(clip.things)) < len(clip.things) for clip in clips)
    assert 0.03 < repeats / len(clips) < 0.2
    assert {thing for clip in clips for thing in clip.things} == set(NOUNS)
    assert {showing.photo.path.name[-5] for clip in clips for showing in clip.showings} == {*"01"}
    for clip in clips:
        ends = [(showing.start, showing.end) for showing in clip.showings]
        assert ends[0][0] == 0.0 and ends[-1][1] == 1.0
        assert all(a[1] == b[0] for a, b in pairwise(ends))
        assert all(end - start > 0.199 for start, end in ends), "too short to be seen"


def test_the_test_split_shows_other_photos(index: Path) -> None:
    source = PhotoClips(index, "test", seed=1, clips=60)
    shown = {item.photo.path.name[-5] for n in range(60) for item in source[n].showings}
    assert shown == {"2"}


def test_frames_show_what_is_there(clips: list[PhotoClip]) -> None:
    for clip in clips[:30]:
        frames = clip.frames(FRAMES, SIZE)
        assert frames.shape == (FRAMES, SIZE, SIZE, 3) and frames.dtype == np.uint8
        for number, frame in enumerate(frames):
            time = (number + 0.5) / FRAMES
            there = [item for item in clip.showings if item.start <= time < item.end]
            assert [noun_of(frame)] == [item.photo.noun for item in there]


def test_a_view_moves_within_the_photo(clips: list[PhotoClip]) -> None:
    moved = 0.0
    for showing in (showing for clip in clips for showing in clip.showings):
        for time in np.linspace(showing.start, showing.end, 5):
            left, top, side = showing.view(time)
            assert min(left, top) >= -1e-9 and max(left, top) + side <= 1 + 1e-9
            assert side > 0.64
        moved = max(moved, abs(showing.view(showing.end)[0] - showing.view(showing.start)[0]))
    assert moved > 0.1


def still(clip: PhotoClip, **changes: Any) -> PhotoClip:
    """The first showing alone, for the whole clip, its view at rest."""
    whole = Showing(clip.showings[0].photo, 0.0, 1.0, (0.0, 0.0, 1.0), (0.0, 0.0, 1.0), False)
    return replace(clip, showings=(replace(whole, **changes),))


def test_a_view_of_the_right_half_and_a_mirrored_one(clips: list[PhotoClip]) -> None:
    whole = still(clips[0]).frames(1, SIZE)[0].astype(int)
    mirrored = still(clips[0], mirrored=True).frames(1, SIZE)[0].astype(int)
    right = still(clips[0], first_view=(0.5, 0.0, 0.5), last_view=(0.5, 0.0, 0.5))
    left_to_right = whole.sum(axis=(0, 2))
    assert left_to_right[-1] > 1.2 * left_to_right[0], "the photo is darker to the left"
    assert np.abs(mirrored[:, ::-1] - whole).max() <= 1
    assert right.frames(1, SIZE).mean() > 1.05 * whole.mean()


def test_a_reversed_clip_shows_the_same_backwards(clips: list[PhotoClip]) -> None:
    for clip in clips[:20]:
        backwards = clip.reversed()
        assert backwards.things == clip.things[::-1]
        again = backwards.reversed()
        assert [(s.photo, s.first_view) for s in again.showings] == [
            (s.photo, s.first_view) for s in clip.showings
        ]
        one, other = (c.frames(FRAMES, SIZE).astype(int) for c in (clip, backwards))
        assert np.abs(other[::-1] - one).max() <= 1


# ---- labels


def test_every_patch_is_labelled_with_what_is_there(clips: list[PhotoClip]) -> None:
    for clip in clips[:30]:
        labels = clip.labels(FRAMES, 2)
        assert labels.shown.shape == (FRAMES, 2, 2)
        for frame, shown in zip(clip.frames(FRAMES, SIZE), labels.shown, strict=True):
            (number,) = np.unique(shown)
            assert labels.words[number - 1]["thing"] == noun_of(frame)


def test_an_order_is_named_where_nothing_repeats(
    clips: list[PhotoClip], source: PhotoClips
) -> None:
    seen = set()
    for clip in clips:
        words = clip.labels(FRAMES, 2).words
        ordered = 1 < len(set(clip.things)) == len(clip.things)
        orders = [word.get("order") for word in words]
        expected = ["first", "second", "third", "fourth"][: len(words)] if ordered else [None]
        assert orders == (expected if ordered else [None] * len(words))
        seen.add(ordered)
        for word in words:
            assert all(word[group] in source.vocabulary[group] for group in word)
    assert seen == {True, False}


# ---- questions, answered again from the sequence of things


def true_answer(clip: PhotoClip, question: str) -> str:
    things = list(clip.things)
    names = [noun for noun in NOUNS if noun in question]
    if question.startswith("How many different"):
        return str(len(set(things)))
    if question.startswith("Is there a"):
        return "yes" if set(names) & set(things) else "no"
    if question.startswith("Which comes first"):
        assert len(names) == 2
        return f"the {min(names, key=things.index)}"
    if "right after" in question:
        assert things.count(names[0]) == 1
        return things[things.index(names[0]) + 1]
    if question in ("What comes first?", "What comes last?"):
        return things[0] if "first" in question else things[-1]
    assert len(things) == 1, question
    return things[0]


@pytest.mark.parametrize("backwards", [False, True])
def test_every_answer_is_right(clips: list[PhotoClip], backwards: bool) -> None:
    seen, answers = Counter[str](), Counter[str]()
    for number, clip in enumerate(clips):
        shown = clip.reversed() if backwards else clip
        for item in asked(shown, number):
            assert item.answer == true_answer(shown, item.question), (item, shown.things)
            assert not item.choices
            seen[item.kind] += 1
            answers[item.answer] += item.kind == "present"
    assert set(seen) == set(KINDS)
    assert abs(answers["yes"] / (answers["yes"] + answers["no"]) - 0.5) < 0.09


def test_which_comes_first_is_named_in_either_order(clips: list[PhotoClip]) -> None:
    firsts = [q for n, clip in enumerate(clips) for q in asked(clip, n) if q.kind == "first"]
    named_first = sum(q.question.startswith(f"Which comes first, {q.answer}") for q in firsts)
    assert abs(named_first / len(firsts) - 0.5) < 0.12
    for question in firsts:
        one, other = question.named
        assert question.question == f"Which comes first, {one} or {other}?"
        assert question.answer in (one, other)


def test_how_long_a_thing_is_shown_does_not_tell_the_order(clips: list[PhotoClip]) -> None:
    longest, chance, asked_for = 0, 0.0, 0
    for number, clip in enumerate(clips):
        shown = Counter[str]()
        for showing in clip.showings:
            shown[showing.photo.noun] += showing.end - showing.start
        for item in asked(clip, number):
            if item.kind == "first" or item.question in ("What comes first?", "What comes last?"):
                named = [noun for noun in shown if noun in item.question] or list(shown)
                longest += max(named, key=shown.__getitem__) in item.answer
                chance += 1 / len(named)
                asked_for += 1
    assert asked_for > 100 and abs(longest - chance) < 0.1 * asked_for


def test_where_everything_is_shown_nothing_absent_is_asked_for(clips: list[PhotoClip]) -> None:
    four = next(clip for clip in clips if len(set(clip.things)) == 4)
    every = replace(four, nouns=four.things)
    answers = {
        item.answer for seed in range(20) for item in asked(every, seed) if item.kind == "present"
    }
    assert answers == {"yes"}


def test_articles_fit_the_nouns(clips: list[PhotoClip]) -> None:
    questions = " ".join(q.question for n, clip in enumerate(clips) for q in asked(clip, n))
    assert "an umbrella" in questions and "an orange chair" in questions and "a yak" in questions
    assert not re.search(r"\ba [aou]|\ban [by]", questions)


def test_questions_to_train_on_are_right_too_and_none_comes_twice(clips: list[PhotoClip]) -> None:
    for number, clip in enumerate(clips[:60]):
        found = clip.questions(np.random.default_rng(number), 4)
        assert len(found) == len(set(found)) <= 4 and len(found) >= 2
        assert all(item.answer == true_answer(clip, item.question) for item in found)
        again = clip.questions(np.random.default_rng(number), 4)
        assert found == again


def test_questions_without_weights_stay_what_they_were(clips: list[PhotoClip]) -> None:
    """Trainings that were begun go on with the same ones."""
    told = [
        (item.kind, item.question, item.answer)
        for number, clip in enumerate(clips)
        for item in clip.questions(np.random.default_rng(number), 8)
    ]
    assert hashlib.sha256(repr(told).encode()).hexdigest()[:16] == "3efdc6ae2993623d"


def test_kinds_come_in_rounds_by_their_weights(clips: list[PhotoClip]) -> None:
    kinds = kinds_by_weight({"first": 3, "sequence": 2}, [*KINDS])
    drawn = [*islice(in_rounds(kinds, np.random.default_rng(0)), 24)]
    rounds = [drawn[first : first + 8] for first in (0, 8, 16)]
    assert all(Counter(part) == Counter(kinds) for part in rounds) and rounds[0] != rounds[1]
    four = replace(next(clip for clip in clips if len(clip.things) == 4), kinds=kinds)
    asked = [four.questions(np.random.default_rng(seed), 4) for seed in range(400)]
    assert all(len(items) == len({*items}) == 4 for items in asked)
    counts = Counter(item.kind for items in asked for item in items)
    assert counts["first"] / counts["present"] == pytest.approx(3, rel=0.2)
    assert counts["sequence"] / counts["present"] == pytest.approx(2, rel=0.2)
    assert all(item.answer == true_answer(four, item.question) for item in asked[0])


def test_where_little_can_be_asked_weights_leave_presence_alone(clips: list[PhotoClip]) -> None:
    kinds = kinds_by_weight({"thing": 3, "first": 3, "sequence": 3}, [*KINDS])
    one = replace(next(clip for clip in clips if len(clip.things) == 1), kinds=kinds)
    for seed in range(20):
        counts = Counter(item.kind for item in one.questions(np.random.default_rng(seed), 10))
        assert counts["different"] == 1 and counts["present"] <= 2 and counts["thing"] <= 3
    told = replace(one, caption_share=1.0).questions(np.random.default_rng(0), 10)
    assert [item.kind for item in told].count("caption") == 1


def test_every_clip_is_asked_something_by_weight(clips: list[PhotoClip]) -> None:
    kinds = kinds_by_weight({"thing": 3, "first": 3, "sequence": 3}, [*KINDS])
    for clip in (replace(clip, kinds=kinds) for clip in clips):
        assert all(len(clip.questions(np.random.default_rng(seed), 1)) == 1 for seed in range(20))


def test_a_recipe_weighs_the_kinds_of_photos(index: Path) -> None:
    def source(weights: dict[str, int]) -> ClipSource:
        config = PhotosConfig(kind="photos", index=index, clips=5, kind_weights=weights)
        return source_from_config(config, lambda *_: np.zeros((0, 1, 1, 3), np.uint8))

    plain, weighted = source({}), source({"sequence": 3})
    assert plain == PhotoClips(index, "train", 1, 5) and plain.fingerprint == weighted.fingerprint
    clip = weighted[0]
    assert isinstance(clip, PhotoClip) and clip.kinds.count("sequence") == 3
    with pytest.raises(ConfigError, match=r"no such kind of question: count .*there are thing,"):
        source({"count": 2})


def test_captions_come_as_often_as_asked_for(clips: list[PhotoClip]) -> None:
    told = replace(clips[0], caption_share=1.0)
    kinds = [item.kind for item in told.questions(np.random.default_rng(0), 50)]
    assert kinds.count("caption") == 1
    text = caption(("umbrella", "yak", "umbrella"), np.random.default_rng(0)).answer
    assert text == "a video of an umbrella, then a yak, then an umbrella"
    assert facts_of(text) == ["an umbrella", "a yak", "an umbrella"]
    silent = {item.kind for item in clips[0].questions(np.random.default_rng(0), 50)}
    assert "caption" not in silent


# ---- the index


def test_lines_without_a_label_and_of_other_splits_are_left_out(index: Path) -> None:
    photos = photos_from_index(index, "train")
    assert len(photos) == 10 and {photo.noun for photo in photos} == set(NOUNS)


def test_lines_end_at_newlines_alone_and_empty_ones_are_skipped(index: Path) -> None:
    path = index.parent / "loose.jsonl"
    line = {"file": "ant 0.png", "label": "x", "text": "ant\u2028hill"}
    path.write_text(f"\n{json.dumps(line, ensure_ascii=False)}\r\n \n\n", encoding="utf-8")
    assert [photo.noun for photo in photos_from_index(path, "train")] == ["ant\u2028hill"]


FAULTS: dict[str, str] = {
    "key must be a string": "{file: a}",
    "text: Field required": '{"file": "ant 0.png", "label": "x"}',
    "file: String should have at least 1": '{"file": "", "label": "x", "text": "ant"}',
    "no photo b.png": '{"file": "b.png", "label": "x", "text": "ant"}',
    "Input should be an object": "[1, 2]",
    "recursion limit": "[" * 100_000,
    "/etc/a.jpg: want a path below the index": json.dumps(
        {"file": "/etc/a.jpg", "label": "cup", "text": "cup"}
    ),
    "../a.jpg: want a path below the index": json.dumps(
        {"file": "../a.jpg", "label": "cup", "text": "cup"}
    ),
}


@pytest.mark.parametrize("problem", FAULTS)
def test_a_bad_line_is_named_by_file_and_number(index: Path, problem: str) -> None:
    path = index.parent / "bad.jsonl"
    path.write_text(index.read_text().splitlines()[1] + "\n" + FAULTS[problem])
    with pytest.raises(DatasetError) as caught:
        photos_from_index(path, "train")
    assert str(caught.value).startswith(f"{path}:2: ") and problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_few_things_or_no_file_at_all(index: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="want photos of 4 things in split 'none'"):
        PhotoClips(index, "none", 1, 5)[0]
    with pytest.raises(DatasetError, match="cannot be read"):
        PhotoClips(tmp_path / "none.jsonl", "train", 1, 5)[0]


def test_a_photo_that_is_none(index: Path, tmp_path: Path) -> None:
    clip = PhotoClips(index, "train", 1, 5)[0]
    sound = tmp_path / "sound.png"
    with wave.open(str(sound), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    for path in (index, sound, tmp_path / "none.png"):
        broken = replace(clip.showings[0].photo, path=path)
        with pytest.raises(VideoError, match=rf"{path.name}: not a readable photo"):
            broken.pixels()


def test_clips_of_a_photo_that_is_none_are_left_out_of_an_evaluation(
    index: Path, tmp_path: Path
) -> None:
    class Looking:
        backend: ClassVar = {"encoder": "none", "llm": "none"}
        tokens_before, frames = 2048, FRAMES

        def replies(self, items: Sequence[Item]) -> Iterator[Reply]:
            frames_of(items[0].clip, FRAMES, SIZE, read_nothing)
            yield from (Reply(item.answer, 8) for item in items)

    folder = tmp_path / "photos"
    shutil.copytree(index.parent, folder)
    (folder / "ant 2.png").write_bytes(b"damaged")
    items = suite_items(f"photos:{folder / index.name}", 40)
    report = evaluate(Looking(), "photos", items)
    shown = {item.clip: "ant 2.png" in str(item.clip) for item in items}
    assert 0 < len(report.failed) == sum(shown.values()) < len(shown)
    assert all("ant 2.png: not a readable photo" in line for line in report.failed)
    assert report.overall.total == sum(not shown[item.clip] for item in items)
