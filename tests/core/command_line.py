"""`vqedge` as a user calls it, in this process or in one of its own."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

import vqedge.cli


class Outcome(NamedTuple):
    """A command's exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


def vqedge_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """`vqedge ...` in this process; `stdin` is what a pipe brings."""

    def command(*arguments: object, stdin: bytes = b"") -> Outcome:
        monkeypatch.setattr(sys, "argv", ["vqedge", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as caught:
            vqedge.cli.main()
        return Outcome(int(caught.value.code or 0), *capsys.readouterr())

    return command


def run_vqedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`vqedge ...` in a process of its own; nothing comes in on stdin."""
    command = [sys.executable, "-m", "vqedge", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
