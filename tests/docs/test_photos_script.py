"""Which photos are asked about: none that looks like one that is trained on."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import _photos
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from vqedge.data.photos import photos_from_index

THINGS: _photos.Things = {thing: {"noun": thing, "asked": {}} for thing in ("ant", "cup")}
SPLITS = ("train", "test", "confirm")


def numbers(thing: str, split: str) -> list[int]:
    return [n for n in range(1, 41) if _photos.split_of(_photos.file_of(thing, n)) == split]


def looks(seed: int) -> npt.NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (16, 17, 3), np.uint8)
    return coarse.repeat(4, axis=0).repeat(4, axis=1)


def write(folder: Path, thing: str, number: int, pixels: npt.NDArray[np.uint8]) -> None:
    Image.fromarray(pixels).save(folder / thing / f"image_{number:04d}.jpg", quality=90)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Forty photos of each thing, all unlike, and a photo of a thing that nobody wants."""
    folder = tmp_path / "101_ObjectCategories"
    for thing in (*THINGS, "background"):
        (folder / thing).mkdir(parents=True)
    for seed, thing in enumerate(THINGS):
        for number in range(1, 41):
            write(folder, thing, number, looks(1000 * seed + number))
    write(folder, "background", 1, looks(0))
    return folder


def test_held_out_photos_are_asked_about_in_two_splits(photos: Path, tmp_path: Path) -> None:
    things = _photos.chosen(photos, THINGS)
    for thing in THINGS:
        assert things[thing]["noun"] == thing
        asked = {split: numbers(thing, split) for split in ("test", "confirm")}
        assert things[thing]["asked"] == asked and all(asked.values())
    index = tmp_path / "below" / "index.jsonl"
    counts = _photos.write_index(photos, things, index)
    photos = photos.rename(tmp_path / "moved")
    for _ in range(2):
        assert _photos.write_index(photos, things, index) == counts, "the link is there already"
    for split in SPLITS:
        found = photos_from_index(index, split)
        names = [photo.path.relative_to(index.parent).as_posix() for photo in found]
        assert names == [_photos.file_of(t, n) for t in THINGS for n in numbers(t, split)]
        assert counts[split] == len(names)


def test_a_folder_that_is_not_there_is_told_and_no_index_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index.jsonl"
    monkeypatch.setattr(sys, "argv", ["_photos.py", str(tmp_path / "none"), str(index)])
    with pytest.raises(SystemExit, match="2"):
        _photos.main()
    assert f"{tmp_path / 'none'}: no such folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_lies_where_the_link_should_be_stays(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, index = tmp_path / _photos.NAME, tmp_path / "index.jsonl"
    folder.mkdir()
    monkeypatch.setattr(sys, "argv", ["_photos.py", str(photos), str(index)])
    with pytest.raises(SystemExit, match="2"):
        _photos.main()
    assert f"{folder}: is no link" in capsys.readouterr().err
    assert folder.is_dir() and not index.exists()


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_photo_like_one_that_came_before_is_not_asked_about(photos: Path, mirrored: bool) -> None:
    first, last = numbers("ant", "test")[0], numbers("ant", "confirm")[-1]
    for place, source in ((first, ("ant", "train")), (last, ("ant", "test"))):
        pixels = looks(numbers(*source)[-1])[:, :: -1 if mirrored else 1]
        write(photos, "ant", place, np.clip(pixels.astype(int) + 12, 0, 255).astype(np.uint8))
    asked = _photos.chosen(photos, THINGS)["ant"]["asked"]
    assert asked == {"test": numbers("ant", "test")[1:], "confirm": numbers("ant", "confirm")[:-1]}


def test_the_table_asks_about_photos_that_are_held_out_and_only_once() -> None:
    things = json.loads(_photos.TABLE.read_text(encoding="utf-8"))
    assert len(things) == 100
    for thing, told in things.items():
        assert list(told["asked"]) == ["test", "confirm"]
        for split, asked in told["asked"].items():
            assert all(_photos.split_of(_photos.file_of(thing, n)) == split for n in asked)
