"""How many cores a container may use, and the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vqedge.cores import MOST_THREADS, check_threads, quota_cores
from vqedge.errors import UsageError


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "150000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "nonsense"}, None),
        ({"cpu/cpu.cfs_quota_us": "300000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({}, None),
    ],
)
def test_quota(tmp_path: Path, files: dict[str, str], cores: int | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert quota_cores(tmp_path, tmp_path / "none") == cores


@pytest.mark.parametrize(
    ("own", "cores"),
    [
        ("0::/system.slice/ask.service\n", 2),
        ("1:cpu:/\n0::/system.slice/ask.service/deep\n", 2),
        ("0::/system.slice\n", 6),
        ("0::/\n", 8),
        ("0::/../elsewhere\n", 8),
        ("nonsense", 8),
    ],
)
def test_the_smallest_quota_of_a_service_and_of_what_it_is_in(
    tmp_path: Path, own: str, cores: int
) -> None:
    (tmp_path / "system.slice/ask.service").mkdir(parents=True)
    (tmp_path / "cpu.max").write_text("800000 100000\n")
    (tmp_path / "system.slice/cpu.max").write_text("600000 100000\n")
    (tmp_path / "system.slice/ask.service/cpu.max").write_text("200000 100000\n")
    (tmp_path / "own").write_text(own)
    assert quota_cores(tmp_path, tmp_path / "own") == cores


def test_more_threads_than_llama_cpp_takes_are_refused() -> None:
    for fits in (None, 1, MOST_THREADS):
        check_threads(fits)
    for wrong in (0, -1, MOST_THREADS + 1):
        with pytest.raises(UsageError, match=f"--threads {wrong}: give 1 to 512, or leave it out"):
            check_threads(wrong, "--threads")


@pytest.mark.parametrize("told", ["4,2", ""])
def test_tests_start_whatever_openmp_was_told(told: str) -> None:
    code = "import conftest, os; print(os.environ['OMP_NUM_THREADS'])"
    tests = Path(__file__).parents[1]
    environment = os.environ | {"OMP_NUM_THREADS": told}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tests, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() in ("1", "2"), done.stderr
