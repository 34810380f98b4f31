"""Which photos of Caltech-101 are asked about, and the index that says so.

    python scripts/_photos.py FOLDER INDEX    writes INDEX, and a link to FOLDER beside it
    python scripts/_photos.py FOLDER --split  chooses anew, into scripts/photos.json

FOLDER holds a folder for every thing: 101_ObjectCategories of the archive (CC BY 4.0). Of the first
200 photos of a thing, those are held out whose name has an MD5 that 5 divides, and all others are
trained on. Held-out photos are asked about in two splits, by the SHA-256 of the name: two thirds
are `test`, one is `confirm`. Those that look like one that is trained on or asked about before, as
it is or mirrored, are in neither. scripts/photos.json was chosen from half of the archive's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from vqedge.data.photos import Photo
from vqedge.data.seeds import CONFIRM_SPLIT, TEST_SPLIT
from vqedge.files import replacing

TABLE = Path(__file__).parent / "photos.json"
NAME = "caltech101"  # of the folder, in the index
FIRST = 200  # photos of a thing
ALIKE = 32  # bits of 256 that differ at most between two photos of nearly the same

Bits = npt.NDArray[np.bool_]
Things = dict[str, dict[str, Any]]  # by folder: its noun, and numbers of photos by split


def numbers_in(folder: Path) -> list[int]:
    """The first photos of a thing, `image_0001.jpg` and so on."""
    found = (int(path.stem.removeprefix("image_")) for path in folder.glob("image_*.jpg"))
    return sorted(number for number in found if number <= FIRST)


def file_of(thing: str, number: int) -> str:
    """A photo's path below the index."""
    return f"{NAME}/{thing}/image_{number:04d}.jpg"


def split_of(file: str) -> str:
    """By the name alone, whatever the photo looks like."""
    if int(hashlib.md5(file.encode()).hexdigest(), 16) % 5:
        return "train"
    return TEST_SPLIT if int(hashlib.sha256(file.encode()).hexdigest(), 16) % 3 else CONFIRM_SPLIT


def index_lines(photos: Path, things: Things) -> Iterator[dict[str, str]]:
    """The lines of an index: what is there to train on, and what the table says to ask about."""
    for thing, told in things.items():
        there = [n for n in numbers_in(photos / thing) if split_of(file_of(thing, n)) == "train"]
        for split, numbers in {"train": there, **told["asked"]}.items():
            for number in numbers:
                file = file_of(thing, number)
                yield {"file": file, "label": thing, "text": told["noun"], "split": split}


def chosen(photos: Path, things: Things) -> Things:
    """The table with what to ask about chosen anew."""
    known: dict[str, list[Bits]] = defaultdict(list)  # by noun, each photo both ways round
    fresh: Things = {
        thing: {"noun": told["noun"], "asked": {TEST_SPLIT: [], CONFIRM_SPLIT: []}}
        for thing, told in things.items()
    }
    for split in ("train", TEST_SPLIT, CONFIRM_SPLIT):
        for thing, told in fresh.items():
            seen, kept = known[told["noun"]], told["asked"].get(split, [])
            for number in numbers_in(photos / thing):
                file = file_of(thing, number)
                if split_of(file) != split:
                    continue
                bits, mirrored = difference_hashes(photos / thing / Path(file).name)
                if split == "train" or not any((bits != other).sum() <= ALIKE for other in seen):
                    seen += [bits, mirrored]
                    kept.append(number)
    return fresh


def difference_hashes(path: Path) -> tuple[Bits, Bits]:
    """Where a small grey copy gets lighter to the right, bool `[256]`; and of its mirror image."""
    frame = av.VideoFrame.from_ndarray(Photo(path, "").pixels(), format="rgb24")
    small = frame.reformat(width=17, height=16, format="gray", interpolation="AREA")
    grey = np.asarray(small.to_ndarray(), np.int16)
    steps = np.diff(grey, axis=1)
    return (steps > 0).ravel(), (steps[:, ::-1] < 0).ravel()


def write_index(photos: Path, things: Things, index: Path) -> Counter[str]:
    """Write the index and the link that its paths go through; counts photos by split.

    Raises:
        FileExistsError: where the link should be lies something else.
    """
    lines = list(index_lines(photos, things))
    index.parent.mkdir(parents=True, exist_ok=True)
    link = index.parent / NAME
    if link.resolve() != photos.resolve():
        if link.exists() and not link.is_symlink():
            raise FileExistsError(f"{link}: is no link; move it, or give another INDEX")
        link.unlink(missing_ok=True)  # it leads to where they were
        link.symlink_to(photos.resolve())
    with replacing(index) as path:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Counter(line["split"] for line in lines)


def main() -> None:
    """Write the index, or choose what is asked about; print how many photos."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photos", type=Path, metavar="FOLDER")
    parser.add_argument("index", type=Path, metavar="INDEX", nargs="?")
    parser.add_argument("--split", action="store_true")
    arguments = parser.parse_args()
    if not arguments.photos.is_dir():
        parser.error(f"{arguments.photos}: no such folder")
    things: Things = json.loads(TABLE.read_text(encoding="utf-8"))
    if arguments.split:
        things = chosen(arguments.photos, things)
        lines = (f"{json.dumps(thing)}: {json.dumps(told)}" for thing, told in things.items())
        TABLE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    elif arguments.index is None:
        parser.error("give INDEX, or --split")
    if arguments.index is not None:
        try:
            counts = write_index(arguments.photos, things, arguments.index)
        except FileExistsError as error:
            parser.error(str(error))
        print(", ".join(f"{split} {count}" for split, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
