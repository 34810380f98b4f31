"""Every package that `.venv` gets has a fitting pin, and pages name the pinned versions."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11")  # of the markers in constraints.txt
EXTRAS = ("export", "dev", "fuzz")  # the others are for devices and have no pins
PAGES = ("README.md", "docs/jetson.md")
UNPINNED = (  # how names begin
    "setuptools",  # a build tool
    "tensorrt-rtx-cu13-",  # parts of a package that has a pin
    *("cuda-", "nvidia-", "triton"),  # of PyTorch for CUDA
)


def main() -> int:
    """Print what is missing, outside its range or told otherwise on a page.

    Returns:
        the exit status.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    extras = project["optional-dependencies"]
    wanted = list(_named([*project["dependencies"], f"vqedge[{','.join(EXTRAS)}]"], extras))
    faults = [fault for python in PYTHONS for fault in _faults(wanted, pins, python)]
    faults += [f"no pin for {name}" for name in _brought(wanted, pins)]
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        faults += [f"{page} has {told}" for told in _told_otherwise(text, pins)]
    sys.stderr.writelines(f"constraints.txt: {fault}\n" for fault in faults)
    return int(bool(faults))


def _named(texts: Iterable[str], extras: Mapping[str, Iterable[str]]) -> Iterator[Requirement]:
    """The requirements, those of vqedge's extras in the place of vqedge."""
    for requirement in map(Requirement, texts):
        if requirement.name == "vqedge":
            yield from _named(
                (text for name in requirement.extras for text in extras[name]), extras
            )
        else:
            yield requirement


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
    if name not in pins:
        return f"no pin for {name}"
    return "" if wanted.specifier.contains(pins[name]) else f"{name}=={pins[name]}, want {wanted}"


def _brought(wanted: Iterable[Requirement], pins: Iterable[Requirement]) -> list[str]:
    """What the installed packages bring along without a pin, on the Python that runs this."""
    pinned = {pin.name for pin in pins if pin.marker is None or pin.marker.evaluate()}
    rest, seen = list(_parts(wanted)), set[tuple[str, str]]()
    named = {name for name, _ in rest}
    while rest:
        name, extra = part = rest.pop()
        if part not in seen:
            seen.add(part)
            rest += _parts(_requirements(name), extra)
    brought = {name for name, _ in seen if not name.startswith(UNPINNED)}
    return sorted(brought - named - pinned)


def _parts(requirements: Iterable[Requirement], extra: str = "") -> Iterator[tuple[str, str]]:
    """Name and extra of each that applies, and each without an extra."""
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            for wanted in ("", *requirement.extras):
                yield canonicalize_name(requirement.name), wanted


def _requirements(name: str) -> list[Requirement]:
    try:
        return [Requirement(line) for line in requires(name) or []]
    except PackageNotFoundError:  # the extra fuzz is installed by hand
        return []


def _told_otherwise(text: str, pins: Iterable[Requirement]) -> list[str]:
    """Versions in a text that are not the pinned ones."""
    pinned = {(pin.name, next(iter(pin.specifier)).version) for pin in pins}
    told = re.findall(r"([\w-]+)==([\d.]*\d)", text)
    return [f"{name}=={version}" for name, version in told if (name, version) not in pinned]


if __name__ == "__main__":
    sys.exit(main())
