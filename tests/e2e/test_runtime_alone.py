"""The device runtime without torch: its own environment, an answer from the bundle."""

from __future__ import annotations

import json
import os
import re
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = ("torch", "transformers", "onnx", "gguf", "safetensors")
GIVEN_UP = "Max retries exceeded|Read timed out|(429|5[0-9]{2}) (Client|Server) Error"
"""What pip says of an address that it tried as often as it was told, or that is too busy."""


def no_index(stdout: str, stderr: str) -> bool:
    """Whether `pip -vv` failed since no index answered: of a page it tells that among its talk,
    and of a file at the end; what it tried again and got says nothing."""
    pages = re.search(f"Could not fetch URL .*({GIVEN_UP})", stdout + stderr)
    return bool(pages or re.search(rf"^ERROR: [\s\S]*({GIVEN_UP})", stderr, re.MULTILINE))


@pytest.mark.parametrize(
    ("stdout", "stderr", "expected"),
    [
        (
            "Could not fetch URL https://a/av/: connection error: Max retries exceeded - skipping",
            "ERROR: No matching distribution found for av",
            True,
        ),
        (
            "Could not fetch URL https://a/av/: 429 Client Error: Too Many Requests - skipping",
            "ERROR: No matching distribution found for av",
            True,
        ),
        ("", "ERROR: Exception:\nTraceback\nReadTimeoutError: Read timed out.", True),
        ("", "ERROR: Could not install: 503 Server Error: Busy for url: https://a/av.whl", True),
        (
            "",
            "WARNING: Retrying after connection broken by 'ReadTimeoutError(Read timed out.)'\n"
            "ERROR: Cannot install av==1 and vqedge: these package versions have conflicts",
            False,
        ),
        (
            "Could not fetch URL https://a/av/: 404 Client Error: Not Found - skipping",
            "ERROR: No matching distribution found for av",
            False,
        ),
    ],
)
def test_only_an_index_that_does_not_answer_is_an_excuse(
    stdout: str, stderr: str, expected: bool
) -> None:
    assert no_index(stdout, stderr) == expected


def install_runtime(python: Path, wheel: str, folder: Path) -> None:
    """`pip install vqedge`, with the llama.cpp that is built; skips the test offline."""
    install = [python, "-m", "pip", "--disable-pip-version-check", "-vv", "install"]
    patient = ["--retries", "5", "--timeout", "60"]
    pinned = ["-c", ROOT / "constraints.txt", wheel, ROOT]
    command = [*install, *patient, *pinned]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode and no_index(done.stdout, done.stderr):
        pytest.skip("no package index can be reached, and pip has not all that vqedge needs")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_runtime_installed_alone_answers(bundle: Path, demo_clip: Path, tmp_path: Path) -> None:
    wheel = os.environ.get("VQEDGE_LLAMA_WHEEL")
    if not wheel:
        pytest.skip("VQEDGE_LLAMA_WHEEL names no built llama.cpp; scripts/test sets it")
    home = tmp_path / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin/python"
    install_runtime(python, wheel, tmp_path)
    probe = f"import importlib.util as u; print([n for n in {ABSENT!r} if u.find_spec(n)])"
    found = subprocess.run(
        [python, "-c", probe], check=True, capture_output=True, text=True, cwd=tmp_path
    )
    assert found.stdout.strip() == "[]"
    question = "How many objects are there?"
    ask = [python, "-m", "vqedge", "ask", demo_clip, question, "-m", bundle]
    done = subprocess.run([*ask, "--json"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["answer"].strip()
