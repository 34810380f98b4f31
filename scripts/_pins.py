"""Every requirement that `.venv` installs has a fitting pin in constraints.txt."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = ("train", "assemble", "export", "dev")  # the others are for devices and have no pins


def main() -> int:
    """Print what is missing or outside its range.

    Returns:
        the exit status.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    extras = project["optional-dependencies"]
    texts = [*project["dependencies"], *(text for name in EXTRAS for text in extras[name])]
    faults = [fault for text in texts if (fault := _fault(Requirement(text), pins))]
    sys.stderr.writelines(f"constraints.txt: {fault}\n" for fault in faults)
    return int(bool(faults))


def _fault(wanted: Requirement, pins: dict[str, str]) -> str:
    name = canonicalize_name(wanted.name)
    if name == "vqedge":
        return ""
    if name not in pins:
        return f"no pin for {name}"
    return "" if wanted.specifier.contains(pins[name]) else f"{name}=={pins[name]}, want {wanted}"


if __name__ == "__main__":
    sys.exit(main())
