"""Modules that are run in a process of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from vqedge.modules import module_command


def test_a_module_is_not_taken_from_the_working_directory(tmp_path: Path) -> None:
    for name in ("json", "runpy", "argparse"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger')")
    (tmp_path / "given").write_text("[1]")

    def said(command: list[str]) -> str:
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return run.stdout + run.stderr

    assert "a stranger" in said([sys.executable, "-m", "json.tool", "--compact", "given"])
    assert said(module_command("json.tool", "--compact", "given")) == "[1]\n"
