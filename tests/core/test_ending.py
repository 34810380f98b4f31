"""How a command ends that is told to, and one that nothing can be read from."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vqedge.cli import _terminable

VQEDGE = [sys.executable, "-m", "vqedge"]


def test_sigterm_leaves_no_temporary_file(tmp_path: Path) -> None:
    """Also if it comes twice, as `timeout` sends it."""
    env, pipe = {**os.environ, "TMPDIR": str(tmp_path)}, subprocess.PIPE
    command = [*VQEDGE, "ask", "-", "What?"]
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, env=env) as child:
        deadline = time.monotonic() + 60.0
        while not any(tmp_path.glob("*/stdin")):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        child.terminate()
        child.terminate()
        assert child.wait(timeout=60.0) == 143
        assert child.stderr is not None and not child.stderr.read()
    assert not list(tmp_path.iterdir())


def test_sigterm_may_be_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it raises in a callback of a C library is lost."""
    now_s = [100.0]
    monkeypatch.setattr("vqedge.cli.time.monotonic", lambda: now_s[0])
    with _terminable():
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        now_s[0] += 2.0
        with pytest.raises(SystemExit):
            signal.raise_signal(signal.SIGTERM)


def test_a_standard_input_that_is_closed_is_empty(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    line = f"exec {shlex.join([*VQEDGE, 'ask', 'clip.mp4'])} <&-"
    found = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 1 and found.stderr.startswith("vqedge: the question is empty")
