"""The fuzzers' targets on changed inputs, the same at every run; and atheris, where it is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from fuzz_manifest import sealed, seeds
from fuzzing import TARGETS, mutations

from vqedge.bundle.manifest import manifest_from_bytes

COUNTS = dict(fuzz_vqt=6000, fuzz_manifest=10000, fuzz_hf=1000, fuzz_kv=800, fuzz_index=250)


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_are_read_or_refused(name: str) -> None:
    target = import_module(name)
    for data in mutations(target.seeds(), COUNTS[name], target.MAX_BYTES):
        try:
            target.one_input(data)
        except Exception as error:
            raise AssertionError(f"{name}.one_input({data!r:.4000})") from error


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_the_same_for_every_user(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = import_module(name)
    seeds = target.seeds()
    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path / "another"))
    assert target.seeds() == seeds


def test_a_sealed_manifest_is_read_however_it_was_changed() -> None:
    (whole,) = seeds()
    changed = whole.replace(b'"default_budget": 32', b'"default_budget": 16')
    assert manifest_from_bytes(sealed(changed)).quantizer.default_budget == 16
    assert sealed(whole) == whole


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_atheris_finds_nothing(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed; pip install 'vqedge[fuzz]'")
    script = Path(__file__).with_name("fuzzing.py")
    command = [sys.executable, str(script), name, "10"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    print(done.stderr[-2000:])
    assert done.returncode == 0
    assert "stat::number_of_executed_units" in done.stderr
