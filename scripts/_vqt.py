"""Measures `.vqt` files: are answers and rows those of the video, and how large are the files?

    python scripts/_vqt.py BUNDLE [--clips 300] [--videos FOLDER] [--threads N] [--write NAME]

Clips are held out (the synthetic suite's). One process encodes them, asks one question each and
saves files; another one, which never sees a frame, reads the files and asks the same. Where codes
are numbers of their own, not ids, the first also saves files with fewer bits a number and asks
those. --write puts the result into docs/measured/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from vqedge.bundle import open_bundle
from vqedge.commands.encode import VIDEO_SUFFIXES
from vqedge.commands.measured import versions
from vqedge.data.generated import GeneratedClips
from vqedge.data.seeds import SYNTHETIC_SEED
from vqedge_runtime import Video, VideoQA

Rounded = dict[int, list[tuple[int, bool]]]  # by bits
Same = dict[str, tuple[bool, bool]]  # rows and answer, by name

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "docs/measured"
BITS = (8, 6, 4, 3, 2)
FALLBACK = "What is in the video?"


def questions(count: int) -> list[str]:
    """One question a clip; their kinds take turns."""
    clips = GeneratedClips(SYNTHETIC_SEED, count)
    asked = (clips[i].one_question_per_kind(np.random.default_rng(i)) for i in range(count))
    return [items[i % len(items)].question for i, items in enumerate(asked)]


def videos_in(folder: Path) -> list[Path]:
    """Real videos, if there are any."""
    return sorted(p for p in folder.glob("*") if p.suffix.lower() in VIDEO_SUFFIXES)


def encoded(qa: VideoQA, count: int, folder: Path) -> Iterator[tuple[str, Video]]:
    """Name and video of every clip."""
    spec = qa.manifest.encoder
    for number, clip in enumerate(GeneratedClips(SYNTHETIC_SEED, count)[i] for i in range(count)):
        yield f"clip{number:04}", qa.encode_frames(clip.frames(spec.frames, spec.size))
    for path in videos_in(folder):
        yield path.name, qa.encode(path)


def save_and_ask(
    bundle: Path, count: int, folder: Path, out: Path, threads: int | None, rounded: Rounded
) -> dict[str, Any]:
    """The way of the video: key of the rows and answer, by name; files go to `out`.

    Of files with fewer bits, size and whether the answer is the same go to `rounded`.
    """
    asked, found = questions(count), {}
    with VideoQA.open(bundle, threads=threads) as qa:
        for number, (name, video) in enumerate(encoded(qa, count, folder)):
            qa.save(video, out / f"{name}.vqt")
            question = asked[number] if number < count else FALLBACK
            answer = qa.ask(video, question).text
            found[name] = [video.tokens.key(), question, answer]
            for bits in BITS if video.tokens.ids is None else ():
                path = out / f"{name}.{bits}bits.vqt"
                qa.save(video, path, bits)
                same = qa.ask(path, question).text == answer
                rounded.setdefault(bits, []).append((path.stat().st_size, same))
            print(f"\r{number + 1} encoded", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def read_and_ask(bundle: Path, folder: Path, found: dict[str, Any], threads: int | None) -> Same:
    """The way of the file, in a process of its own: rows and answers that are the same."""
    same: Same = {}
    with VideoQA.open(bundle, threads=threads) as qa:
        for name, (key, question, answer) in found.items():
            video = qa.encode(folder / f"{name}.vqt")
            same[name] = video.tokens.key() == key, qa.ask(video, question).text == answer
    return same


def compared(bundle: Path, folder: Path, found: dict[str, Any], threads: int | None) -> Same:
    """`read_and_ask` in a fresh interpreter."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(read_and_ask, bundle, folder, found, threads).result()


def summary(paths: list[Path]) -> dict[str, float]:
    """Mean and largest size in bytes."""
    sizes = [path.stat().st_size for path in paths]
    return {"mean": round(statistics.mean(sizes), 1), "max": max(sizes)}


def document_of(
    found: dict[str, Any], same: Same, rounded: Rounded, folder: Path, clips: int
) -> dict[str, Any]:
    """What was measured: of the first `clips` names, of the videos after them, of fewer bits."""
    names = list(found)
    document: dict[str, Any] = {
        kind: {
            "clips": len(group),
            "same_rows": sum(same[item][0] for item in group),
            "same_answers": sum(same[item][1] for item in group),
            "bytes": summary([folder / f"{item}.vqt" for item in group]),
        }
        for kind, group in (("held_out", names[:clips]), ("real", names[clips:]))
        if group
    }
    document["bits"] = {
        bits: {
            "files": len(rows),
            "bytes_mean": round(statistics.mean(size for size, _ in rows), 1),
            "same_answers": sum(same for _, same in rows),
        }
        for bits, rows in rounded.items()
    }
    return document


def main() -> None:
    """Measure and print; write if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--videos", type=Path, default=ROOT / "../shared/data/videos")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", metavar="NAME")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rounded: Rounded = {}
        ways = (options.bundle, options.clips, options.videos, folder, options.threads)
        found = save_and_ask(*ways, rounded)
        same = compared(options.bundle, folder, found, options.threads)
        document = document_of(found, same, rounded, folder, options.clips)
    document["budget"] = open_bundle(options.bundle).manifest.quantizer.default_budget
    document["versions"] = versions()
    text = json.dumps(document, indent=2) + "\n"
    print(text, end="")
    if options.write:
        (MEASURED / f"{options.write}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
