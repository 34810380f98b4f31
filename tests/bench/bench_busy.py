"""First token and speed of the language model while other programs take cores.

    python tests/bench/bench_busy.py BUNDLE [--busy 1] [--runs 12]

Each row is a process of its own: what vqedge sets (see `vqedge_runtime.llm.native`), and what
llama.cpp's OpenMP does by itself, on the machine as it is and beside `--busy` programs that never
rest. Medians.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OTHERS = {
    "vqedge": {},
    "OpenMP's own": {"GOMP_SPINCOUNT": "300000"},
    "asleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
}
QUESTIONS = ("What is in the video?", "How many objects are there?")


def measure(bundle: Path, runs: int) -> dict[str, float]:
    """One process: rows of noise as videos, two in turns, each asked twice."""
    import numpy as np

    from vqedge.bundle import open_bundle
    from vqedge_runtime.llm import DecodingOptions, VideoRows, open_llama_cpp

    options = DecodingOptions(max_tokens=24)
    firsts, again, speeds = [], [], []
    rng = np.random.default_rng(0)
    with open_llama_cpp(open_bundle(bundle, verify=False).path_of("llm")) as llm:
        for _ in range(runs):
            clip = VideoRows(rng.normal(0, 0.1, (32, llm.width)).astype(np.float32))
            cold, warm = (llm.ask(clip, question, options) for question in QUESTIONS)
            firsts.append(cold.first_token_ms)
            again.append(warm.first_token_ms)
            speeds.append(cold.tokens_per_s)
    return {
        "first_token_ms": round(statistics.median(firsts), 1),
        "again_ms": round(statistics.median(again), 1),
        "tokens_per_s": round(statistics.median(speeds), 1),
    }


def _spin() -> None:
    while True:
        pass


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Programs that take a core each."""
    programs = [multiprocessing.Process(target=_spin, daemon=True) for _ in range(count)]
    for program in programs:
        program.start()
    try:
        yield
    finally:
        for program in programs:
            program.terminate()


def main() -> None:
    """Every row, as it is done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--busy", type=int, default=1)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.bundle, arguments.runs)))
        return
    command = [
        sys.executable,
        __file__,
        str(arguments.bundle),
        "--one",
        "--runs",
        str(arguments.runs),
    ]
    for programs in (0, arguments.busy):
        with busy(programs):
            for name, settings in OTHERS.items():
                run = subprocess.run(
                    command, env=os.environ | settings, capture_output=True, text=True, check=True
                )
                print(f"{programs} busy  {name:<14} {run.stdout.strip()}", flush=True)


if __name__ == "__main__":
    main()
