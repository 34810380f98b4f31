"""Where Hypothesis is told to draw the same inputs at every run, it does."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def drawn() -> list[int]:
    """What a test without a random seed is given."""
    numbers: list[int] = []

    @settings(derandomize=True, database=None, max_examples=300)
    @given(st.integers(0, 10**9))
    def collect(number: int) -> None:
        numbers.append(number)

    collect()
    return numbers


def test_inputs_are_the_same_whichever_modules_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = drawn()
    path = tmp_path / "numbers.py"
    path.write_text(f"NUMBERS = {list(range(123_000, 123_500))}\n")
    spec = importlib.util.spec_from_file_location("some_local_module", path)
    assert spec is not None
    monkeypatch.setitem(sys.modules, spec.name, importlib.util.module_from_spec(spec))
    assert drawn() == before
