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
HEARING = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
os.execv(sys.executable, [sys.executable, "-m", "vqedge", *sys.argv[1:]])
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_command_that_is_ended_leaves_no_temporary_file(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """Also if it is told twice, as by `timeout`, or by a shell and its terminal."""
    env, pipe = {**os.environ, "TMPDIR": str(tmp_path)}, subprocess.PIPE
    command = [sys.executable, "-c", HEARING, "ask", "-", "What?"]
    with subprocess.Popen(command, stdin=pipe, stderr=pipe, env=env) as child:
        deadline = time.monotonic() + 60.0
        while not any(tmp_path.glob("*/stdin")):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        child.send_signal(number)
        child.send_signal(number)
        assert child.wait(timeout=60.0) == code
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


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As SIGHUP by `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _terminable():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("buffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["fetch", "--help"]])
def test_a_command_that_nobody_reads_ends_as_by_sigpipe(words: list[str], buffered: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    env = {**os.environ, "PYTHONUNBUFFERED": buffered}
    done = subprocess.run(
        [*VQEDGE, *words], stdout=writing, stderr=subprocess.PIPE, env=env, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_an_output_that_is_full_is_one_line(tmp_path: Path, buffered: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    line = f"exec {shlex.join([*VQEDGE, 'inspect', str(tmp_path), '--json'])} > /dev/full"
    env = {**os.environ, "PYTHONUNBUFFERED": buffered}
    found = subprocess.run(["sh", "-c", line], stderr=subprocess.PIPE, text=True, env=env)
    assert found.returncode == 1 and found.stderr.count("\n") == 1
    assert found.stderr.startswith("vqedge: standard output: No space left on device; make room")


def test_a_standard_input_that_is_closed_is_empty(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").touch()
    line = f"exec {shlex.join([*VQEDGE, 'ask', 'clip.mp4'])} <&-"
    found = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert found.returncode == 1 and found.stderr.startswith("vqedge: the question is empty")


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_an_output_that_is_closed_is_one_that_nobody_reads(tmp_path: Path, closed: str) -> None:
    line = f"exec {shlex.join([*VQEDGE, 'encode', 'none.mp4', '-o', '-', '-m', 'none'])} {closed}"
    found = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.startswith("vqedge: none: no such folder") == ("2>" not in closed)


def test_no_file_gets_the_number_of_an_output_that_is_closed(tmp_path: Path) -> None:
    """It would get what C libraries write there."""
    code = "import vqedge.cli as c; c._open_closed(); print(open('a', 'w').fileno())"
    line = f"exec {shlex.join([sys.executable, '-c', code])} 2>&-"
    found = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd=tmp_path)
    assert int(found.stdout) > 2


def test_a_terminal_that_says_it_is_endless() -> None:
    env = {**os.environ, "COLUMNS": "99999999"}
    found = subprocess.run([*VQEDGE, "ask", "--help"], env=env, capture_output=True, timeout=60.0)
    assert found.returncode == 0
    assert max(map(len, found.stdout.decode().splitlines())) <= 999
