"""Peak memory of `vqedge encode` for a minute of video and for two hours of it.

    python tests/bench/bench_memory.py BUNDLE [--minutes 120] [--segment 20] [--backend auto]

Clips of small H.264 frames are made here, with a key frame every two seconds and with one alone.
Each is encoded in segments in a process of its own, and the whole file is read. The peak is what
the system says of that process (mapped files count too). One JSON document, and a line a row.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import numpy as np

from vqedge.cores import processor_name, usable_cores

WIDTH, HEIGHT, FPS = 128, 96, 25
KEY_EVERY = {"a key frame every 2 s": 2 * FPS, "one key frame": 1 << 30}  # frames
_PER_KB = 1 if sys.platform == "linux" else 1024  # of what ru_maxrss counts in
_LAUNCH = """
import resource, subprocess, sys
with open(sys.argv[1], "wb") as log:
    code = subprocess.run(sys.argv[2:], stdout=log, stderr=log).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""  # a small process between: a peak is never less than that of whoever starts a process
_TOOLS = ("vqedge", "av", "onnxruntime", "openvino", "numpy")


def write_clip(path: Path, seconds: int, key_every: int) -> None:
    """A bar that wanders over a grey that changes, H.264 in MP4."""
    with av.open(str(path), "w") as output:
        options = {"preset": "ultrafast", "sc_threshold": "0"}
        stream = output.add_stream("libx264", rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.gop_size = key_every
        pixels = np.full((HEIGHT * 3 // 2, WIDTH), 128, np.uint8)
        for number in range(seconds * FPS):
            pixels[:HEIGHT] = number % 200
            pixels[:HEIGHT, number % WIDTH] = 255
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="yuv420p")))
        output.mux(stream.encode(None))


def peak_mb(command: list[str], log: Path) -> float:
    """The largest resident memory of a process, in MB; its output goes to a file."""
    done = subprocess.run(
        [sys.executable, "-c", _LAUNCH, str(log), *command], stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {log.read_text(errors='replace')}")
    return round(int(done.stdout) * 1024 / _PER_KB / 1e6, 1)


def encoded(video: Path, bundle: Path, segment_s: float, backend: str) -> dict[str, Any]:
    """Encode a video; peak memory, seconds, and the segments that came of it."""
    log = video.with_suffix(".log")
    options = ["--segment", f"{segment_s:g}", "--backend", backend, "-m", str(bundle), "--json"]
    command = [sys.executable, "-m", "vqedge", "encode", str(video), "-o", f"{video}.vqt"]
    began = time.perf_counter()
    peak = peak_mb([*command, *options], log)
    seconds = time.perf_counter() - began
    lines = log.read_text().splitlines()
    (done,) = next(json.loads(line) for line in lines if line.startswith("{"))["files"]
    encoder = next(line for line in lines if line.startswith("encoder: ")).partition(": ")[2]
    return {
        "encoder": encoder,
        "segments": done["segments"],
        "video_bytes": video.stat().st_size,
        "seconds": round(seconds, 1),
        "peak_mb": peak,
    }


def measured(bundle: Path, minutes: int, segment_s: float, backend: str) -> dict[str, Any]:
    """A minute and many of each kind of clip."""
    kinds: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, key_every in KEY_EVERY.items():
            rows = {}
            for length in (1, minutes):
                clip = Path(folder) / f"{length}.mp4"
                write_clip(clip, 60 * length, key_every)
                if not kinds and not rows:
                    encoded(clip, bundle, segment_s, backend)  # chooses the backend, reads the disk
                    Path(f"{clip}.vqt").unlink()
                rows[length] = encoded(clip, bundle, segment_s, backend)
                Path(f"{clip}.vqt").unlink()
            ratio = rows[minutes]["peak_mb"] / rows[1]["peak_mb"]
            kinds[kind] = {"short": rows[1], "long": rows[minutes], "ratio": round(ratio, 3)}
            told = ", ".join(f"{row['peak_mb']} MB of {length} min" for length, row in rows.items())
            sys.stderr.write(f"{kind}: {told}: {ratio:.3f} times\n")
    return kinds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--minutes", type=int, default=120)
    parser.add_argument("--segment", type=float, default=20.0)
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    document = {
        "minutes": [1, options.minutes],
        "segment_s": options.segment,
        "frames": f"{WIDTH} x {HEIGHT}, {FPS} a second",
        "clips": measured(options.bundle, options.minutes, options.segment, options.backend),
        "bundle": options.bundle.name,
        "machine": f"{processor_name()}, {usable_cores()} cores",
        "versions": {tool: version(tool) for tool in _TOOLS},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
