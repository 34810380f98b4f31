"""From nothing to the first token: the encoder loaded beside the rest and after it, and decoding.

    python tests/bench/bench_start.py BUNDLE [VIDEO ...] [--runs 9] [--backend auto]

Every sample is a process of its own, the two ways by turns: it imports vqedge, opens the bundle,
decodes and encodes the clip and asks for one token. Without VIDEO the clips are the demo's and ten
seconds of 1280 x 720, H.264, with one key frame and with one a second. Prints one JSON document,
medians in milliseconds: of every clip `ahead` and `after` (`encoder_ahead` of `VideoQA.open`) with
`import`, `open` and `first_token` since the process began and `decode`, which has preprocessing in
it; `after_over_ahead`; and what share `decode` is of the first token's time from the beginning of
the process (`decode_share`) and with the bundle open (`decode_share_open`), `after`: one thing at a
time.
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

import av
import numpy as np

from vqedge.commands.bench import machine_facts
from vqedge.data.demo import write_demo

WIDTH, HEIGHT, FPS, SECONDS = 1280, 720, 30, 10
_SAMPLE = """
import sys, time
began = time.perf_counter()
from vqedge_runtime import DecodingOptions, VideoQA
ready = time.perf_counter()
bundle, video, backend, ahead = sys.argv[1:]
with VideoQA.open(bundle, encoder=backend, encoder_ahead=ahead == "ahead") as qa:
    if ahead != "ahead":
        qa.backend  # opens the encoder
    opened = time.perf_counter()
    answer = qa.ask(video, "What is there?", options=DecodingOptions(max_tokens=1))
    asked = time.perf_counter()
print(*(1e3 * (now - began) for now in (ready, opened, asked)))
print(answer.timings.decode + answer.timings.preprocess)
"""
_WAYS, _STAGES = ("ahead", "after"), ("import", "open", "first_token", "decode")


def write_hd(path: Path, key_every: int) -> None:
    """A square that crosses a coarse pattern, which moves too: ten seconds of 720p."""
    blocks = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    pattern = blocks.repeat(8, axis=0).repeat(8, axis=1)
    with av.open(str(path), "w") as output:
        options = {"crf": "23", "sc_threshold": "0"}
        stream = output.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.gop_size = key_every
        for number in range(SECONDS * FPS):
            pixels = np.roll(pattern, 4 * number, axis=1)
            left = 3 * number
            pixels[300:420, left : left + 120] = (255, 0, 0)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))


def made_clips(folder: Path) -> dict[str, Path]:
    """The clips that are measured where none is named."""
    clips = {"demo": folder / "demo.mp4"}
    write_demo(clips["demo"])
    for name, seconds in {"720p, one key frame": SECONDS, "720p, a key frame a second": 1}.items():
        clips[name] = folder / f"{seconds}.mp4"
        write_hd(clips[name], seconds * FPS)
    return clips


def sample(bundle: Path, video: Path, backend: str, way: str) -> dict[str, float]:
    """What one process took, in milliseconds."""
    command = [sys.executable, "-c", _SAMPLE, str(bundle), str(video), backend, way]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"a sample failed with exit code {done.returncode}")
    return dict(zip(_STAGES, map(float, done.stdout.split()), strict=True))


def measured(bundle: Path, video: Path, backend: str, runs: int) -> dict[str, Any]:
    """Both ways by turns about one clip; the first sample of each does not count."""
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in _WAYS}
    for _ in range(runs + 1):
        for way, samples in taken.items():
            samples.append(sample(bundle, video, backend, way))
    ahead, after = (
        {stage: round(median(one[stage] for one in samples[1:]), 1) for stage in _STAGES}
        for samples in taken.values()
    )
    open_ms = after["first_token"] - after["open"]
    return {
        "ahead": ahead,
        "after": after,
        "after_over_ahead": round(after["first_token"] / ahead["first_token"], 3),
        "decode_share": round(after["decode"] / after["first_token"], 3),
        "decode_share_open": round(after["decode"] / open_ms, 3),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("videos", type=Path, nargs="*")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clips = {path.name: path for path in options.videos} or made_clips(Path(folder))
        document = {
            "clips": {
                name: measured(options.bundle, path, options.backend, options.runs)
                for name, path in clips.items()
            },
            "backend": options.backend,
            "runs": options.runs,
            "machine": machine_facts(),
        }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
