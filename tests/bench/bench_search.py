"""How long `vqedge search` takes in a folder of 10,000 clips.

    python tests/bench/bench_search.py [--clips N] [--json FILE]

The clips are made here: codes near a few hundred prototypes, as things in videos are near what one
has seen before; real `.vqt` files, written by the writer. Nothing is timed before its answer was
found equal to that of a comparison with every clip.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vqedge_runtime.search import Query, ask_folder, duplicates, novel, similar, space_of
from vqedge_runtime.search.measure import (
    Features,
    alignment,
    features_from_codes,
    matches,
    similarity,
)
from vqedge_runtime.search.schema import NAME
from vqedge_runtime.tokens import Codes
from vqedge_runtime.vqt import Header, Origin, Segment, vqt_bytes

FRAMES, GRID, CODES, WIDTH = 8, 16, 32, 384
LEVELS, ENTRIES = 5, 512
PROTOTYPES, SCENES, THINGS = 400, 40, 60  # a scene has some of all things, a clip some of those
QUERIES, HITS, LEAST = 20, 10, 0.9
EVERY = 20  # clips, one of which is the one before it, a little changed


@dataclass(frozen=True)
class Made:
    """A folder's clips and their header."""

    header: Header
    codes: tuple[Codes, ...]


@dataclass(frozen=True)
class Clip:
    """One of them, ready to be compared with."""

    name: bytes
    codes: Codes
    features: Features


def main() -> int:
    """Make, check, time, perhaps write JSON.

    Returns:
        the exit status: 1 if an answer is not that of comparing with all.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kinds = {}
    for kind in ("kmeans", "codebook"):
        with tempfile.TemporaryDirectory() as folder:
            kinds[kind] = measured(Path(folder), made(kind, arguments.clips))
        sys.stderr.write(f"{kind}: {json.dumps(kinds[kind])}\n")
    document = {"clips": arguments.clips, "queries": QUERIES, **machine(), "kinds": kinds}
    if arguments.json:
        arguments.json.write_text(json.dumps(document) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(document) + "\n")
    return 0 if all(kind["equal"] for kind in kinds.values()) else 1


def made(kind: str, clips: int, seed: int = 0) -> Made:
    """Clips of things that recur; every twentieth is the one before it, a little changed."""
    rng = np.random.default_rng(seed)
    scale = (np.arange(WIDTH) + 1.0) ** -0.85  # 32 directions hold 94 %, as of models/tiny's codes
    things = rng.normal(size=(PROTOTYPES, WIDTH)) * scale * 8
    things[:, 0] += 6  # what all features have in common
    ids = rng.integers(0, ENTRIES, (PROTOTYPES, LEVELS))
    scenes = [rng.choice(PROTOTYPES, THINGS, replace=False) for _ in range(SCENES)]
    found: list[Codes] = []
    for number in range(clips):
        if number % EVERY == EVERY - 1:
            found.append(_changed(found[-1], rng))
            continue
        chosen = rng.choice(scenes[rng.integers(SCENES)], CODES, replace=False)
        values = (things[chosen] + rng.normal(size=(CODES, WIDTH)) * scale * 2).astype(np.float16)
        own = ids[chosen].astype(np.int32)
        own[:, -1] = rng.integers(0, ENTRIES, CODES)  # the last level is what differs
        found.append(Codes(_map(rng), own if kind == "codebook" else values))
    return Made(_header(kind), tuple(found))


def _map(rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Regions of a picture that move a little, numbered by first occurrence."""
    at = rng.uniform(0, GRID, (CODES, 2))
    move = rng.normal(size=(CODES, 2)) * 0.3
    place = np.stack(np.mgrid[0:GRID, 0:GRID], -1) + 0.5
    frames = [((place[:, :, None] - at - t * move) ** 2).sum(-1).argmin(-1) for t in range(FRAMES)]
    flat = np.stack(frames).ravel()
    flat[rng.choice(flat.size, CODES, replace=False)] = np.arange(CODES)  # each occurs
    _, first, number = np.unique(flat, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return order[number].reshape(FRAMES, GRID, GRID).astype(np.int32)


def _changed(codes: Codes, rng: np.random.Generator) -> Codes:
    """The same clip after another encoding."""
    values = codes.values.copy()
    if values.dtype.kind == "i":
        values[rng.random(len(values)) < 0.1, -1] = 0
    else:
        values = (values + rng.normal(size=values.shape) * 0.05).astype(np.float16)
    return Codes(codes.index_map, values)


def _header(kind: str) -> Header:
    learned: dict[str, Any] = {"levels": LEVELS, "width": ENTRIES, "codebook_sha256": "cc" * 32}
    return Header(
        kind="codebook" if kind == "codebook" else "kmeans",
        frames=FRAMES,
        grid_height=GRID,
        grid_width=GRID,
        codes=CODES,
        encoder_sha256="ee" * 32,
        bridge_sha256="bb" * 32,
        budget=CODES,
        origin=Origin(),
        **(learned if kind == "codebook" else {"levels": 0, "width": WIDTH}),
    )


def measured(folder: Path, clips: Made) -> dict[str, Any]:
    """Write, index, check and time."""
    for number, codes in enumerate(clips.codes):
        times = tuple(range(0, FRAMES * 1000, 1000))
        data = vqt_bytes(clips.header, [Segment(0, FRAMES * 1000, times, codes)])
        (folder / f"{number:06d}.vqt").write_bytes(data)
    index_s, _ = timed(lambda: ask_folder(folder, lambda _: None))
    refresh_s, _ = timed(lambda: ask_folder(folder, lambda _: None))
    picked = np.linspace(0, len(clips.codes) - 1, QUERIES).astype(int)
    picked[::2] = picked[::2] // EVERY * EVERY + EVERY - 2  # half of them have a duplicate
    queries = [query_of(clips, int(number)) for number in picked]
    everyone = prepared(clips)
    with closing(sqlite3.connect(folder / NAME)) as index:
        equal = all(agree(index, query, everyone) for query in queries)
        rows = {
            "similar_ms": spread(lambda q: similar(index, q, HITS), queries),
            "duplicates_ms": spread(lambda q: duplicates(index, q, LEAST, HITS), queries),
            "novel_ms": spread(lambda q: novel(index, q), queries),
            "compare_all_in_memory_ms": spread(lambda q: brute_similar(q, everyone), queries),
        }
    return {
        "equal": equal,
        "index_s": round(index_s, 2),
        "nothing_new_s": round(refresh_s, 3),
        "files_mb": round(sum(p.stat().st_size for p in folder.glob("*.vqt")) / 1e6, 1),
        "index_mb": round((folder / NAME).stat().st_size / 1e6, 1),
        **rows,
    }


def query_of(clips: Made, number: int) -> Query:
    """A clip of the folder, as a query."""
    name = os.fsencode(f"{number:06d}.vqt")
    return Query(clips.codes[number], space_of(clips.header), path=name)


def prepared(clips: Made) -> list[Clip]:
    """All that comparing needs of every clip, in memory."""
    return [
        Clip(os.fsencode(f"{number:06d}.vqt"), codes, features_from_codes(codes))
        for number, codes in enumerate(clips.codes)
    ]


def agree(index: sqlite3.Connection, query: Query, everyone: list[Clip]) -> bool:
    """Whether all three answers are those of comparing with every clip."""
    hits = [(hit.path, hit.similarity) for hit in similar(index, query, HITS)]
    same = [hit.path for hit in duplicates(index, query, LEAST, HITS)]
    best = [item.match for item in novel(index, query)]
    return (
        hits == brute_similar(query, everyone)
        and same == brute_duplicates(query, everyone)
        and np.allclose(best, brute_best(query, everyone), atol=1e-6)
    )


def others(query: Query, everyone: list[Clip]) -> Iterator[Clip]:
    return (clip for clip in everyone if clip.name != query.path)


def brute_similar(query: Query, everyone: list[Clip]) -> list[tuple[bytes, float]]:
    own = query.features
    scores = [(clip.name, similarity(own, clip.features)) for clip in others(query, everyone)]
    return sorted(scores, key=lambda item: (-item[1], item[0]))[:HITS]


def brute_duplicates(query: Query, everyone: list[Clip]) -> list[bytes]:
    own = query.features
    found = [
        (-alignment(query.codes, clip.codes), clip.name)
        for clip in others(query, everyone)
        if similarity(own, clip.features) >= LEAST
    ]
    return [name for score, name in sorted(found) if -score >= LEAST][:HITS]


def brute_best(query: Query, everyone: list[Clip]) -> np.ndarray[Any, np.dtype[np.float32]]:
    own, best = query.features.values, np.full(query.codes.count, -1, np.float32)
    for clip in others(query, everyone):
        best = np.maximum(best, matches(own, clip.features.values).max(1))
    return best


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def spread(action: Callable[[Query], Any], queries: list[Query]) -> dict[str, float]:
    """Median and 90th percentile over queries, each asked once after a warm-up."""
    action(queries[0])
    times_ms = [timed(lambda q=query: action(q))[0] * 1e3 for query in queries]  # type: ignore[misc]
    tenth = sorted(times_ms)[min(len(times_ms) - 1, round(0.9 * (len(times_ms) - 1)))]
    return {"median": round(statistics.median(times_ms), 1), "p90": round(tenth, 1)}


def machine() -> dict[str, Any]:
    names = {
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    }
    return {
        "cpu": ", ".join(sorted(names)) or platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "sqlite": sqlite3.sqlite_version,
    }


if __name__ == "__main__":
    sys.exit(main())
