"""From nothing to the first token: the encoder loaded beside the rest, and after it.

    python tests/bench/bench_start.py BUNDLE [VIDEO] [--runs 9] [--backend auto]

Every sample is a process of its own, the two ways by turns: it imports vqedge, opens the bundle,
encodes the clip (a generated one unless VIDEO is given) and asks for one token. Prints one JSON
document, medians in milliseconds: `ahead` and `after` (`encoder_ahead` of `VideoQA.open`) with
`import`, `open` and `first_token`, each since the process began, and `after_over_ahead`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from vqedge.commands.bench import machine_facts
from vqedge.data.demo import write_demo

_SAMPLE = """
import sys, time
began = time.perf_counter()
from vqedge_runtime import DecodingOptions, VideoQA
ready = time.perf_counter()
bundle, video, backend, ahead = sys.argv[1:]
with VideoQA.open(bundle, encoder=backend, encoder_ahead=ahead == "ahead") as qa:
    opened = time.perf_counter()
    qa.ask(video, "What is there?", options=DecodingOptions(max_tokens=1))
    asked = time.perf_counter()
print(*(1e3 * (now - began) for now in (ready, opened, asked)))
"""
_WAYS, _STAGES = ("ahead", "after"), ("import", "open", "first_token")


def sample(bundle: Path, video: Path, backend: str, way: str) -> dict[str, float]:
    """Milliseconds since the beginning at the end of each stage, of one process."""
    command = [sys.executable, "-c", _SAMPLE, str(bundle), str(video), backend, way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"a sample failed with exit code {done.returncode}")
    return dict(zip(_STAGES, map(float, done.stdout.split()), strict=True))


def run(bundle: Path, video: Path, backend: str, runs: int) -> dict[str, Any]:
    """Both ways by turns; the first sample of each does not count."""
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
    for _ in range(runs + 1):
        for way, samples in taken.items():
            samples.append(sample(bundle, video, backend, way))
    medians = {
        way: {stage: round(median(one[stage] for one in samples[1:]), 1) for stage in _STAGES}
        for way, samples in taken.items()
    }
    ahead, after = (medians[way]["first_token"] for way in _WAYS)
    return {**medians, "after_over_ahead": round(after / ahead, 3), "runs": runs}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("video", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = options.video or Path(folder) / "demo.mp4"
        if options.video is None:
            write_demo(video)
        document = run(options.bundle, video, options.backend, options.runs)
    told = {"backend": options.backend, "video": str(options.video or "generated demo clip")}
    print(json.dumps(document | told | {"machine": machine_facts()}, indent=2))


if __name__ == "__main__":
    main()
