"""docs/python.md tells the truth: its blocks run one after another and print what they say."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vqedge import errors
from vqedge.cli import app
from vqedge_runtime import VideoQA

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/python.md").read_text(encoding="utf-8")


def blocks() -> list[tuple[str, str]]:
    """Language and text of every block, in order."""
    return re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def said(code: str) -> list[str]:
    """The lines that a block says it prints: after a `print`, or alone where a loop prints them."""
    return re.findall(r"^(?: *print\(.*\)  )?# (.+)", code, flags=re.MULTILINE)


@pytest.mark.slow
def test_every_block_runs_and_prints_what_its_comments_say(
    bundle: Path,
    demo_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "tiny.vqedge").symlink_to(bundle)
    shutil.copy(demo_clip, tmp_path / "clip.mp4")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert [language for language, _ in blocks() if language not in ("console", "python")] == []
    for language, code in blocks():
        if language == "console":
            words = shlex.split(code)[2:]
            outcome = CliRunner().invoke(app, [*words, "--backend", "onnxruntime"])
            assert outcome.exit_code == 0, outcome.output
            continue
        code = code.replace('open("tiny.vqedge")', 'open("tiny.vqedge", encoder="onnxruntime")')
        exec(compile(code, "docs/python.md", "exec"), names)
        assert capsys.readouterr().out.splitlines() == said(code)
    assert isinstance(names["qa"], VideoQA)
    names["qa"].close()


def test_every_error_of_the_table_is_one() -> None:
    cells = re.findall(r"^\| (`[A-Z].*?) \|", PAGE, flags=re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    assert names
    assert all(issubclass(getattr(errors, name), errors.VqedgeError) for name in names)
