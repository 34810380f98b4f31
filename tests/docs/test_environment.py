"""The environment that the scripts make: which versions, and of which Python."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = {"PYTHON", "VQEDGE_PINS", "VQEDGE_TORCH_INDEX"}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose `.venv` is of the Python that runs this."""
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for name in ("constraints.txt", "pyproject.toml", "runtime", "scripts"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def made(clone: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Make the environment; pip only says what it would do."""
    pip = 'install_llama() { :; }; run_pip() { echo "$*"; }'
    command = f". scripts/_env.sh; {pip}; need_environment full"
    inherited = {name: text for name, text in os.environ.items() if name not in SETTINGS}
    return subprocess.run(
        ["sh", "-euc", command, clone / "scripts" / "some"],
        cwd=clone,
        env=inherited | {"VQEDGE_WHEELS": str(clone / "wheels")} | settings,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("pins", ["constraints.txt", "/dev/null"])
def test_versions_come_from_one_file(clone: Path, pins: str) -> None:
    made(clone, VQEDGE_PINS="pyproject.toml")  # other pins, other environment
    assert made(clone, VQEDGE_PINS=pins).stdout.splitlines() == [
        f"install --constraint {pins} torch",
        f"install --constraint {pins} --editable .[export,dev]",
    ]
    assert made(clone, VQEDGE_PINS=pins).stdout == ""


def test_an_environment_of_another_python_is_refused(clone: Path) -> None:
    assert made(clone, PYTHON=sys.executable).returncode == 0
    other = clone / "python"
    other.write_text("#!/bin/sh\necho Python 3.99.0\n")
    other.chmod(0o755)
    refused = made(clone, PYTHON=str(other))
    assert refused.returncode == 1 and refused.stderr == (
        f"vqedge: .venv is of Python {platform.python_version()}, PYTHON={other} is Python 3.99.0: "
        "use another clone, or remove .venv\n"
    )


@pytest.mark.parametrize("page", ["README.md", "docs/jetson.md"])
def test_pages_build_llama_cpp_over_another_and_leave_the_scripts_environment(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if "--no-binary llama-cpp-python" in line]
    assert lines and all("--force-reinstall --no-deps " in line for line in lines)
    assert re.findall(r"python3 -m venv (?:--\S+ )?([^ `]+)", text) == ["~/vqedge-env"]
