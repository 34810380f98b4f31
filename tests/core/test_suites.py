"""Where the questions of an evaluation come from, and what their clips show."""

from __future__ import annotations

import hashlib
import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from fake_clips import read_nothing

from vqedge.data import suites
from vqedge.data.generated import SceneClip
from vqedge.data.jsonl import VideoFile
from vqedge.data.photos import PhotoClip
from vqedge.data.questions import KINDS
from vqedge.data.seeds import CONFIRM_SEED, PHOTOS_SEED, SYNTHETIC_SEED
from vqedge.data.suites import (
    Item,
    frames_of,
    missing_videos,
    suite_items,
    suite_version,
)
from vqedge.data.world import COLORS, SHAPES, WORLD_VERSION, scene_from_seed
from vqedge.errors import DatasetError, UsageError

PHOTOS = Path(__file__).parents[2] / "build/photos/index.jsonl"  # scripts/_photos.py makes it


def clips_in_order(items: list[Item]) -> list[Any]:
    """Every clip once, provided that its questions come one after another."""
    clips = [clip for clip, _ in groupby(item.clip for item in items)]
    assert not any(clip in clips[:place] for place, clip in enumerate(clips))
    return clips


# ---- the generated world


def test_the_synthetic_suite_is_the_one_that_numbers_were_published_for() -> None:
    items = suite_items("synthetic", 200)
    assert len(items) == 200 and {item.kind for item in items} == set(KINDS)
    clips = clips_in_order(items)
    scenes = [scene_from_seed(SYNTHETIC_SEED, number) for number in range(len(clips))]
    assert clips == [SceneClip(scene) for scene in scenes]
    told = [(item.kind, item.question, item.answer, item.choices) for item in items]
    digest = hashlib.sha256(repr((told, scenes)).encode()).hexdigest()[:16]
    assert digest == "1177675f84911c48", "the suite changed: measure all published numbers again"


def test_what_is_asked_about_does_not_go_by_the_numbers_that_made_the_clip() -> None:
    places: dict[int, list[int]] = {}
    for item in suite_items("synthetic", 4_000):
        if item.kind == "color" and isinstance(item.clip, SceneClip):
            colors = [thing.color for thing in item.clip.scene.objects]
            places.setdefault(len(colors), []).append(colors.index(item.answer))
    for count, found in places.items():
        shares = np.bincount(found, minlength=count) / len(found)
        assert shares.min() > 0.5 / count, (count, shares)


def test_a_version_names_what_a_suite_asks(tmp_path: Path) -> None:
    assert suite_version("synthetic") == f"world{WORLD_VERSION}-seed{SYNTHETIC_SEED}-asked2"
    path = jsonl(tmp_path, GOOD)
    before = suite_version(str(path))
    assert suite_version(f"jsonl:{path}") == before
    path.write_text(path.read_text() + "\n")
    assert suite_version(str(path)) != before
    with pytest.raises(UsageError):
        suite_version("nowhere")
    with pytest.raises(DatasetError):
        suite_version(f"jsonl:{tmp_path / 'none.jsonl'}")


def test_another_seed_asks_about_other_clips_and_has_a_version_of_its_own() -> None:
    default = suite_items("synthetic", 20)
    assert suite_items(f"synthetic:{SYNTHETIC_SEED}", 20) == default
    other = suite_items("synthetic:70003", 20)
    assert clips_in_order(other)[0] == SceneClip(scene_from_seed(70_003, 0))
    assert not {item.clip for item in other} & {item.clip for item in default}
    assert suite_version("synthetic:70003") == f"world{WORLD_VERSION}-seed70003-asked2"


@pytest.mark.parametrize(
    "name", ["synthetic", "captions", "bindings", "photos:i.jsonl", "captions:i.jsonl"]
)
@pytest.mark.parametrize("seed", ["1", "69999", "100000"])
def test_a_seed_that_may_be_trained_on_is_refused(name: str, seed: str) -> None:
    for look in (suite_items, suite_version):
        with pytest.raises(UsageError, match=f"{seed} is not a seed from 70000 to 99999"):
            look(f"{name}:{seed}")


def test_a_suite_of_descriptions_asks_for_one_a_clip() -> None:
    items = suite_items("captions", 20)
    scenes = [scene_from_seed(SYNTHETIC_SEED, number) for number in range(20)]
    assert [item.clip for item in items] == [SceneClip(scene) for scene in scenes]
    for item, scene in zip(items, scenes, strict=True):
        assert item.kind == "caption" and item.answer.startswith("a video of ")
        assert len(item.facts) == len(scene.objects)
        assert all(fact in item.answer for fact in item.facts)
    assert suite_version("captions") == f"world{WORLD_VERSION}-seed{SYNTHETIC_SEED}-captions1"
    assert suite_items("captions:70003", 20)[0].clip == SceneClip(scene_from_seed(70_003, 0))


def test_bindings_cannot_be_told_from_the_colours_and_shapes_that_are_there() -> None:
    items = suite_items("bindings", 2000)
    by_word: dict[str, list[bool]] = {}
    for item in items:
        assert item.kind == "binding" and isinstance(item.clip, SceneClip)
        color, shape = item.question.removesuffix(" in the video?").rstrip("?").split()[-2:]
        things = item.clip.scene.objects
        assert color in {thing.color for thing in things}
        assert shape in {thing.shape for thing in things}
        there = (color, shape) in {(thing.color, thing.shape) for thing in things}
        assert item.answer == ("yes" if there else "no")
        for word in (color, shape):
            by_word.setdefault(word, []).append(there)
    assert by_word.keys() == {*COLORS, *SHAPES}
    assert all(0.4 < np.mean(there) < 0.6 for there in by_word.values())
    assert suite_version("bindings") == f"world{WORLD_VERSION}-seed{SYNTHETIC_SEED}-bindings1"


def test_a_suite_without_end_asks_300_unless_told_otherwise() -> None:
    assert len(suite_items("synthetic")) == 300
    assert suite_items("synthetic", 5) == suite_items("synthetic")[:5]


def test_multiple_choice_keeps_its_choices() -> None:
    for item in suite_items("synthetic"):
        assert (len(item.choices) == 5) == (item.kind == "choice")
        assert not item.choices or item.answer in item.choices


# ---- what a clip shows


def test_a_generated_clip_is_drawn_at_any_size() -> None:
    (item,) = suite_items("synthetic", 1)
    assert frames_of(item.clip, 2, 28, read_nothing).shape == (2, 28, 28, 3)


def test_a_file_is_read_as_far_as_it_is_meant() -> None:
    asked: list[object] = []

    def read(*arguments: object) -> npt.NDArray[np.uint8]:
        asked.append(arguments)
        return np.arange(2, dtype=np.uint8).repeat(12).reshape(2, 2, 2, 3)

    frames = frames_of(VideoFile(Path("a.mp4"), 1.0, 2.5), 2, 2, read)
    assert asked == [(Path("a.mp4"), 2, 2, 1.0, 2.5)]
    assert frames[:, 0, 0, 0].tolist() == [0, 1]


def test_shuffled_frames_are_the_same_frames_in_another_order_of_the_clips_own() -> None:
    orders = set()
    for first in range(20):
        numbered = np.arange(first, first + 8, dtype=np.uint8).repeat(12).reshape(8, 2, 2, 3)

        def read(*_: object, numbered: Any = numbered) -> npt.NDArray[np.uint8]:
            return np.array(numbered)

        clip = VideoFile(Path("a.mp4"))
        one, again = (frames_of(clip, 8, 2, read, shuffled=True) for _ in range(2))
        assert (one == again).all(), "not the same order every time"
        order = (one[:, 0, 0, 0] - first).tolist()
        assert sorted(order) == list(range(8))
        orders.add(tuple(order))
    assert len(orders) > 15, "clips do not have orders of their own"


# ---- photos


@pytest.mark.skipif(not PHOTOS.exists(), reason="no index of photos here")
def test_the_photo_suite_asks_about_test_photos_only() -> None:
    items = suite_items(f"photos:{PHOTOS}", 60)
    lines = map(json.loads, PHOTOS.read_text(encoding="utf-8").splitlines())
    split = {line["file"]: line.get("split") for line in lines}
    assert {item.kind for item in items} == {"thing", "first", "sequence", "different", "present"}
    for clip in clips_in_order(items):
        assert isinstance(clip, PhotoClip)
        for showing in clip.showings:
            name = showing.photo.path.relative_to(PHOTOS.parent).as_posix()
            assert split[name] == "test"
    assert items == suite_items(f"photos:{PHOTOS}", 60)
    assert suite_version(f"photos:{PHOTOS}").endswith(f"-seed{PHOTOS_SEED}-asked3")


def test_photos_to_confirm_with_are_others(tmp_path: Path) -> None:
    index = index_of(tmp_path, "train", "test", "confirm")
    shown = {}
    for suite in ("photos", "photos-confirm"):
        clips = [item.clip for item in suite_items(f"{suite}:{index}", 60)]
        showings = [s for clip in clips if isinstance(clip, PhotoClip) for s in clip.showings]
        shown[suite] = {showing.photo.path.name.split("-")[0] for showing in showings}
    assert shown == {"photos": {"test"}, "photos-confirm": {"confirm"}}
    assert suite_version(f"photos-confirm:{index}").endswith(f"-seed{CONFIRM_SEED}-asked3")
    with pytest.raises(DatasetError, match="want photos of 4 things in split 'confirm'"):
        suite_items(f"photos-confirm:{index_of(tmp_path, 'test')}")


def test_the_version_of_photos_follows_names_nouns_and_split(tmp_path: Path) -> None:
    index = index_of(tmp_path, "test", "confirm")
    suite = f"photos:{index}"
    before = suite_version(suite)
    (tmp_path / "test-0.png").write_bytes(b"the same, of another size")
    assert suite_version(suite) == before
    text = index.read_text(encoding="utf-8")
    for changed in (
        text.replace("thing 0", "thing 9"),
        text.replace("test-0.png", "confirm-0.png"),
        text.replace('"test"', '"none"').replace('"confirm"', '"test"'),
    ):
        index.write_text(changed, encoding="utf-8")
        assert suite_version(suite) != before


def index_of(folder: Path, *splits: str) -> Path:
    """An index of a photo of each of four things in every split; the photos are empty."""
    lines = []
    for split in splits:
        for number in range(4):
            name = f"{split}-{number}.png"
            (folder / name).touch()
            text = f"thing {number}"
            lines.append({"file": name, "label": text, "text": text, "split": split})
    path = folder / "index.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


@pytest.mark.skipif(not PHOTOS.exists(), reason="no index of photos here")
def test_photos_under_another_seed_and_described() -> None:
    default, other = (suite_items(f"photos:{PHOTOS}{seed}", 20) for seed in ("", ":70004"))
    assert suite_items(f"photos:{PHOTOS}:{PHOTOS_SEED}", 20) == default != other
    assert suite_version(f"photos:{PHOTOS}:70004").endswith("-seed70004-asked3")
    described = suite_items(f"captions:{PHOTOS}", 20)
    assert clips_in_order(described)[:3] == clips_in_order(default)[:3]
    for item in described:
        assert isinstance(item.clip, PhotoClip)
        assert [fact.split(" ", 1)[1] for fact in item.facts] == list(item.clip.things)
    assert suite_version(f"captions:{PHOTOS}").endswith(f"-seed{PHOTOS_SEED}-captions1")


# ---- files


def jsonl(folder: Path, *lines: dict[str, Any]) -> Path:
    for name in ("a.mp4", "b.mp4"):
        (folder / name).touch()
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


GOOD = {"video": "a.mp4", "question": "Was läuft?", "answer": "ein Hund"}


@pytest.mark.parametrize("prefix", ["", "jsonl:"])
def test_a_jsonl_file(tmp_path: Path, prefix: str) -> None:
    choice = {**GOOD, "answer": "red", "kind": "color", "choices": ["red", "blue"]}
    other, span = {**GOOD, "video": "b.mp4"}, {**GOOD, "start": 1, "end": 2}
    path = jsonl(tmp_path, GOOD, other, choice, span)
    whole = VideoFile(tmp_path / "a.mp4")
    items = suite_items(f"{prefix}{path}")
    assert items == [
        Item(whole, "all", "Was läuft?", "ein Hund"),
        Item(whole, "color", "Was läuft?", "red", ("red", "blue")),
        Item(VideoFile(tmp_path / "b.mp4"), "all", "Was läuft?", "ein Hund"),
        Item(VideoFile(tmp_path / "a.mp4", 1.0, 2.0), "all", "Was läuft?", "ein Hund"),
    ]
    assert len(clips_in_order(items)) == 3
    assert suite_items(str(path), limit=1) == items[:1]


def test_a_jsonl_files_videos_may_be_elsewhere(tmp_path: Path, videos: Path) -> None:
    path = jsonl(tmp_path, {**GOOD, "video": "4010069381.mp4"})
    (item,) = suite_items(str(path), videos=videos)
    assert item.clip == VideoFile(videos / "4010069381.mp4")
    with pytest.raises(DatasetError, match=f"jsonl:1: no video .*relative to {videos}"):
        suite_items(str(jsonl(tmp_path, GOOD)), videos=videos)


HEADER = "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4"
ROW = "4010069381,369,640,480,how do the two man play,2,6,CH,roll,tap,strum,hit,pat"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/4010069381.mp4").touch()
    return tmp_path / "videos"


def nextqa(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "val.csv"
    path.write_text("\n".join([header, *rows]), encoding="utf-8")
    return path


@pytest.mark.parametrize("prefix", ["", "nextqa:"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_next_qa_file(tmp_path: Path, videos: Path, prefix: str, mark: str) -> None:
    """Also one that spreadsheets begin with a byte order mark."""
    path = nextqa(tmp_path, ROW, ROW.replace("4010069381", "999"), header=f"{mark}{HEADER}")
    (item,) = suite_items(f"{prefix}{path}", videos=videos)  # 999 is not there: left out
    choices = ("roll", "tap", "strum", "hit", "pat")
    clip = VideoFile(videos / "4010069381.mp4")
    assert item == Item(clip, "CH", "how do the two man play?", "strum", choices, group="C")
    assert missing_videos(f"{prefix}{path}", videos) == 1 and missing_videos("synthetic") == 0


def test_next_qa_videos_lie_in_folders_as_its_map_has_them(tmp_path: Path, videos: Path) -> None:
    (videos / "1164").mkdir()
    for name in ("7.mkv", "4010069381.mp4", "9.txt"):
        (videos / "1164" / name).touch()
    (videos / "8.mp4").mkdir()  # of frames, maybe
    names = ("7", "4010069381", "8", "9")
    path = nextqa(tmp_path, *(ROW.replace("4010069381", name) for name in names))
    clips = [item.clip for item in suite_items(str(path), videos=videos)]
    assert clips == [VideoFile(videos / "1164/7.mkv"), VideoFile(videos / "4010069381.mp4")]
    assert missing_videos(str(path), videos) == 2


def test_of_next_qa_videos_with_one_id_the_first_kind_is_taken(
    tmp_path: Path, videos: Path
) -> None:
    (videos / "1164").mkdir()
    for name in ("4010069381.avi", "1164/4010069381.mp4", "7.webm", "1164/7.mkv"):
        (videos / name).touch()
    path = nextqa(tmp_path, ROW, ROW.replace("4010069381", "7"))
    clips = [item.clip for item in suite_items(str(path), videos=videos)]
    assert clips == [VideoFile(videos / "4010069381.mp4"), VideoFile(videos / "1164/7.mkv")]


def test_next_qa_videos_may_end_in_capitals(tmp_path: Path, videos: Path) -> None:
    (videos / "8.MP4").touch()
    path = nextqa(tmp_path, ROW.replace("4010069381", "8"))
    clips = [item.clip for item in suite_items(str(path), videos=videos)]
    assert clips == [VideoFile(videos / "8.MP4")] and missing_videos(str(path), videos) == 0


def test_a_next_qa_file_and_its_folder_are_read_once(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = nextqa(tmp_path, ROW, ROW.replace("4010069381", "999"))
    read: list[Path] = []
    for name in ("text_of", "_videos_by_name"):
        real = getattr(suites, name)
        counted = lambda path, real=real: read.append(path) or real(path)  # noqa: E731
        monkeypatch.setattr(suites, name, counted)
    suite_items(str(path), videos=videos)
    assert read == [videos, path]


def test_questions_about_a_video_come_one_after_another(
    tmp_path: Path, videos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (videos / "7.mp4").touch()
    names = ("4010069381", "7", "8", "4010069381")
    rows = [
        ROW.replace("the two man", f"number {n}").replace("4010069381", name)
        for n, name in enumerate(names)
    ]
    items = suite_items(str(nextqa(tmp_path, *rows)), videos=videos)
    assert [item.question[7:15] for item in items] == ["number 0", "number 3", "number 1"]
    assert f"1 videos are not in {videos}" in caplog.text


NEXTQA_FAULTS = {
    "answer": ROW.replace(",2,6,", ",5,6,"),
    "below zero": ROW.replace(",2,6,", ",-1,6,"),
    "no number": ROW.replace(",2,6,", ",strum,6,"),
    "a column short": ROW.rpartition(",")[0],
    "half a row": "4010069381,369",
}


@pytest.mark.parametrize("problem", NEXTQA_FAULTS)
def test_a_bad_row_is_named_by_file_and_number(tmp_path: Path, videos: Path, problem: str) -> None:
    path = nextqa(tmp_path, ROW, NEXTQA_FAULTS[problem])
    with pytest.raises(DatasetError) as caught:
        suite_items(str(path), videos=videos)
    assert str(caught.value).startswith(f"{path}:3: not a NExT-QA row")
    assert "\n" not in str(caught.value)


def test_another_table(tmp_path: Path, videos: Path) -> None:
    path = nextqa(tmp_path, "1,2", header="a,b")
    with pytest.raises(DatasetError, match=r"val\.csv:2: not a NExT-QA row"):
        suite_items(str(path), videos=videos)


def test_a_video_name_may_not_lead_elsewhere(tmp_path: Path, videos: Path) -> None:
    (tmp_path / "secret.mp4").touch()
    path = nextqa(tmp_path, ROW.replace("4010069381", "../secret"))
    with pytest.raises(DatasetError, match="holds no question"):
        suite_items(str(path), videos=videos)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "nothing",
            "choose one of synthetic, photos, photos-confirm, captions, bindings, jsonl, nextqa",
        ),
        (
            "csv:x.csv",
            "choose one of synthetic, photos, photos-confirm, captions, bindings, jsonl, nextqa",
        ),
        ("synthetic:red", "red is not a seed"),
        ("none.csv", "needs --videos DIR"),
        ("photos", r"give the photos' index, as photos:INDEX\.jsonl"),
        ("photos:", r"give the photos' index, as photos:INDEX\.jsonl"),
        ("photos-confirm", r"photos-confirm: give .* index, as photos-confirm:INDEX\.jsonl"),
        ("photos-confirm:", r"photos-confirm: give .* index, as photos-confirm:INDEX\.jsonl"),
    ],
)
def test_a_name_that_is_no_suite(name: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        suite_items(name)


def test_a_suite_that_is_not_there(tmp_path: Path) -> None:
    for name in ("none.jsonl", "photos:none.jsonl"):
        with pytest.raises(DatasetError, match=r"none\.jsonl: cannot be read"):
            suite_items(name)
    with pytest.raises(DatasetError, match=r"--videos .*none: no such folder"):
        suite_items("none.csv", videos=tmp_path / "none")


def test_an_empty_file_or_a_bad_line(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no question"):
        suite_items(str(jsonl(tmp_path)))
    path = jsonl(tmp_path, GOOD, {**GOOD, "colour": "red"})
    with pytest.raises(DatasetError, match=rf"{path}:2: colour: Extra inputs"):
        suite_items(str(path), limit=1)
