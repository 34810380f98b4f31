"""The fuzzers, for a short while; longer by hand: `python tests/fuzz/fuzz_vqt.py 600`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fuzz_vqt", "fuzz_manifest", "fuzz_hf"])
def test_a_fuzzer_finds_nothing(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; pip install 'vqedge[fuzz]'")
    script = Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, str(script), "10"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    print(done.stderr[-2000:])
    assert done.returncode == 0
    assert "stat::number_of_executed_units" in done.stderr
