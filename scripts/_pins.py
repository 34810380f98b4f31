"""Every requirement that `.venv` installs has a fitting pin, for each Python of constraints.txt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11")  # of the markers in constraints.txt
EXTRAS = ("train", "assemble", "export", "dev")  # the others are for devices and have no pins


def main() -> int:
    """Print what is missing or outside its range.

    Returns:
        the exit status.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in EXTRAS for text in extras[name])]
    wanted = [Requirement(text) for text in texts]
    faults = [fault for python in PYTHONS for fault in _faults(wanted, pins, python)]
    sys.stderr.writelines(f"constraints.txt: {fault}\n" for fault in faults)
    return int(bool(faults))


def _faults(wanted: list[Requirement], pins: list[Requirement], python: str) -> Iterator[str]:
    fitting = [pin for pin in pins if _applies(pin, python)]
    versions = {pin.name: next(iter(pin.specifier)).version for pin in fitting}
    if len(versions) < len(fitting):
        yield f"two pins for one package, Python {python}"
    for requirement in wanted:
        if _applies(requirement, python) and (fault := _fault(requirement, versions)):
            yield f"{fault}, Python {python}"


def _applies(requirement: Requirement, python: str) -> bool:
    marker = requirement.marker
    return marker is None or marker.evaluate({"python_version": python, "extra": ""})


def _fault(wanted: Requirement, pins: dict[str, str]) -> str:
    name = canonicalize_name(wanted.name)
    if name == "vqedge":
        return ""
    if name not in pins:
        return f"no pin for {name}"
    return "" if wanted.specifier.contains(pins[name]) else f"{name}=={pins[name]}, want {wanted}"


if __name__ == "__main__":
    sys.exit(main())
