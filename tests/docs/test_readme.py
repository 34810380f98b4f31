"""The README tells the truth: its tree exists, its figures are measured ones, its examples run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from vqedge.checkpoint import steps_of
from vqedge.cli import app
from vqedge_runtime import VideoQA

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CAME_TO = ("budget_32", "confirmed", "confirmed_photos")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_every_path_of_the_tree_exists() -> None:
    tree = next(block for block in blocks("text") if block.startswith("vqedge/"))
    folder = ROOT
    for line in tree.splitlines():
        names = line[2:26] if line.startswith("  ") else line[:26]
        base = folder if line.startswith("  ") else ROOT
        paths = [base / name.strip() for name in names.split(",") if name.strip()]
        assert paths, line
        for path in paths:
            assert path.exists(), line
        if not line.startswith("  "):
            folder = paths[0]


def test_every_top_level_folder_is_in_the_tree() -> None:
    done = subprocess.run(
        ["git", "ls-files", "--", "*/*"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    folders = {line.split("/")[0] for line in done.stdout.splitlines()} - {".ci"}
    tree = next(block for block in blocks("text") if block.startswith("vqedge/"))
    assert folders <= {re.split(r"[/ ]", line)[0] for line in tree.splitlines()}


def test_figures_are_those_of_docs_measured() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts/_readme.py"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_what_made_models_tiny_is_told_with_its_steps_and_result() -> None:
    told = README.split("It was made in eight runs")[1].split("\n- ")[0]
    assert f"{steps_of(ROOT / 'models' / 'tiny'):,} steps" in told
    figures = (ROOT / "docs" / "measured" / f"{name}.json" for name in CAME_TO)
    shares = [json.loads(path.read_text(encoding="utf-8"))["accuracy"] for path in figures]
    assert re.findall(r"[\d.]+ %", told) == [f"{100 * share:.1f} %" for share in shares]


@pytest.mark.slow
def test_the_python_example_prints_what_its_comments_say(
    bundle: Path, demo_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = blocks("python")[0]
    code = code.replace("build/tiny.vqedge", str(bundle)).replace("build/demo.mp4", str(demo_clip))
    code = code.replace("build/demo.vqt", str(tmp_path / "demo.vqt"))
    exec(compile(code, "README.md", "exec"), {})
    expected = re.findall(r"print\(.*\)  # (.+)", code)
    assert expected
    assert capsys.readouterr().out.splitlines() == expected


def test_the_console_example_of_ask_prints_what_it_shows(bundle: Path, demo_clip: Path) -> None:
    shown = re.search(r"^\$ \.venv/bin/vqedge (ask .*)\n(?!\$)(.+)$", README, flags=re.MULTILINE)
    assert shown
    words = [
        {"build/demo.mp4": str(demo_clip), "build/tiny.vqedge": str(bundle)}.get(word, word)
        for word in shlex.split(shown[1])
    ]
    command = [sys.executable, "-m", "vqedge", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shown[2]


def test_the_demo_prints_what_the_readme_shows(qa: VideoQA, demo_clip: Path) -> None:
    script = (ROOT / "scripts/demo").read_text(encoding="utf-8")
    question = re.search(r'"\$\{1:-(.+?)\}"', script)
    shown = re.search(r"^\$ scripts/demo .*\n(.+)$", README, flags=re.MULTILINE)
    assert question and shown
    assert qa.ask(demo_clip, question[1]).text == shown[1]


def test_the_command_table_lists_every_command() -> None:
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert commands == set(re.findall(r"^\| `vqedge (\w+)", README, flags=re.MULTILINE))


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ([], "--numprocesses 2 --dist loadfile"),
        (["quick", "tests/core"], "--numprocesses 2 --dist loadfile -m not slow tests/core"),
        (["-k", "quick"], "-k quick"),
    ],
)
def test_what_scripts_test_runs(given: list[str], chosen: str) -> None:
    script = (ROOT / "scripts/test").read_text(encoding="utf-8")
    choice = script[script.index('if [ "') :]
    command = ["sh", "-euc", f"python=echo\n{choice}", "test", *given]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"-m pytest {chosen}\n"


def test_the_scripts_of_the_first_example_exist() -> None:
    for name in re.findall(r"^\$ (scripts/\w+)", README, flags=re.MULTILINE):
        assert (ROOT / name).stat().st_mode & 0o100
