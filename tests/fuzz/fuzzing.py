"""What the fuzzers share: made files to start from, a time to run, an error at a finding."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris


def run(one_input: Callable[[bytes], None], seeds: Sequence[bytes], max_bytes: int) -> None:
    """Fuzz for as many seconds as the command line says."""
    seconds = sys.argv[1]
    with tempfile.TemporaryDirectory() as corpus:
        for number, data in enumerate(seeds):
            (Path(corpus) / str(number)).write_bytes(data)
        flags = [f"-max_total_time={seconds}", f"-max_len={max_bytes}", "-timeout=10"]
        flags += ["-rss_limit_mb=2048", "-verbosity=1", "-print_final_stats=1"]
        atheris.Setup([sys.argv[0], *flags, corpus], one_input)
        atheris.Fuzz()
