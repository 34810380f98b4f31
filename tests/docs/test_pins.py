"""Pins for each Python that is supported, and one oldest Python wherever it is named."""

from __future__ import annotations

from pathlib import Path

import _pins
import pytest
from packaging.requirements import Requirement

from vqedge.commands import doctor

ROOT = Path(__file__).parents[2]


def _told(wanted: str, *pins: str) -> list[str]:
    lists = [Requirement(wanted)], [Requirement(line) for line in pins]
    return [fault for python in _pins.PYTHONS for fault in _pins._faults(*lists, python)]


def test_a_pin_for_each_python() -> None:
    old, new = 'av==17.1; python_version < "3.11"', 'av==18.1; python_version >= "3.11"'
    assert _told("av>=17", old, new) == []
    assert _told("av>=18", old, new) == ["av==17.1, want av>=18, Python 3.10"]
    assert _told("av>=17", new) == ["no pin for av, Python 3.10"]
    assert _told("tomli>=2; python_version < '3.11'", "tomli==1.0", old) == [
        "tomli==1.0, want tomli>=2; python_version < '3.11', Python 3.10".replace("'", '"')
    ]


def test_two_pins_for_one_python_are_told() -> None:
    assert _told("av>=17", "av==17.1", 'av==18.1; python_version >= "3.11"') == [
        "two pins for one package, Python 3.11"
    ]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("pyproject.toml", 'requires-python = ">=3.{}"'),
        ("pyproject.toml", 'target-version = "py3{}"'),
        ("pyproject.toml", 'python_version = "3.{}"'),
        ("scripts/_env.sh", "sys.exit(sys.version_info < (3, {}))"),
        ("docs/jetson.md", "Python 3.{} or newer"),
    ],
)
def test_the_oldest_python_is_the_same_everywhere(path: str, line: str) -> None:
    major, minor = doctor._MIN_PYTHON
    assert (major, f"3.{minor}") == (3, _pins.PYTHONS[0])
    assert line.format(minor) in (ROOT / path).read_text(encoding="utf-8")
