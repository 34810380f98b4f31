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


def test_an_extra_stands_for_what_it_names() -> None:
    extras = {"export": ["vqedge[train]", "onnx"], "train": ["torch"]}
    named = [str(line) for line in _pins._named(["av", "vqedge[export]"], extras)]
    assert named == ["av", "torch", "onnx"]


def test_what_comes_along_has_a_pin_too(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {
        "av": ["dates[zones]; python_version > '3'", "never; python_version < '3'"],
        "dates": ["Time_Zones>=2; extra == 'zones'", "never; extra == 'other'", "setuptools"],
        "time-zones": ["av"],
    }
    needs = {name: [Requirement(line) for line in lines] for name, lines in installed.items()}
    monkeypatch.setattr(_pins, "_requirements", lambda name: needs.get(name, []))

    def brought(*pins: str) -> list[str]:
        return _pins._brought([Requirement("av>=17")], [Requirement(line) for line in pins])

    assert brought() == ["dates", "time-zones"]
    assert brought("dates==1.0", "time-zones==2.0; python_version < '3'") == ["time-zones"]
    assert brought("dates==1.0", "time-zones==2.0; python_version > '3'") == []


def test_pages_name_the_pinned_versions() -> None:
    pins = [Requirement("torch==2.13.0"), Requirement('av==17.1; python_version < "3.11"')]
    text = 'pip install torch==2.13.0 "av==17.1"; `torch==2.12.0`, llama-cpp-python==0.3.36.'
    told = ["torch==2.12.0", "llama-cpp-python==0.3.36"]
    assert _pins._told_otherwise(text, pins) == told


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
