"""How far a command is: a bar at a terminal, lines in a log."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import vqedge.progress as module
from vqedge.base.weights import llm_weights
from vqedge.config import LlmConfig
from vqedge.progress import byte_progress, progress


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_a_log_gets_a_line_now_and_then(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training", total=1000, completed=100) as advance:
        for step in range(8):
            clock.now += 10.0
            advance(f"loss {step}")
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "training: 103/1000, 2:29:30 left  loss 2",
        "training: 106/1000, 2:29:00 left  loss 5",
    ]
    assert not printed.out


def test_a_log_tells_how_fast_the_latest_steps_were(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("encoding", total=200, unit=("clips", 64)) as advance:
        for step in range(60):
            clock.now += 32.0 if step < 20 else 2.0
            advance("" if step < 20 else "slept")
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "encoding: 1/200, 1:46:08 left  2.0 clips/s"
    assert told[-1].endswith("left  slept  32.0 clips/s"), "20 steps of 2 s, none of 32 s"


@pytest.mark.parametrize("how", [{"total": 3, "shown": False}, {"total": 0}])
def test_nothing_is_told_where_nothing_is_to_be(
    clock: Clock, capsys: pytest.CaptureFixture[str], how: dict[str, int]
) -> None:
    with progress("training", **how) as advance:
        clock.now += 100.0
        advance("")
    assert capsys.readouterr() == ("", "")


def terminal_for(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """A terminal in the place of stderr."""
    made = io.StringIO()
    monkeypatch.setattr(made, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", made)
    monkeypatch.setenv("TERM", "xterm")
    return made


def test_a_bar_at_a_terminal_takes_no_results(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = terminal_for(monkeypatch)
    with progress("of a [x264].mp4", total=1) as advance:
        print("a result")
        advance("")
    assert capsys.readouterr().out == "a result\n"
    assert "of a [x264].mp4" in terminal.getvalue()


# ---- bytes


def test_bytes_that_come_are_a_bar_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_for(monkeypatch)
    with byte_progress() as tell:
        tell("waiting", 0, 0)
        assert terminal.getvalue() == "waiting\n"
        for done in (0, 40_000_000):
            tell("downloading [a]", done, 90_000_000)
        tell("extracting", 7_000_000, 7_000_000)
    shown = terminal.getvalue()
    assert "downloading [a]" in shown and "90.0/90.0 MB" in shown and "7.0/7.0 MB" in shown
    assert shown.endswith("\x1b[?25h"), "the cursor is hidden"


def test_weights_that_come_get_a_line_in_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fetched(name: str, progress: Callable[[str, int, int], None]) -> None:
        for done in range(3):
            progress(f"downloading {name}", done, 3)

    monkeypatch.setattr("vqedge.base.weights.fetch", fetched)
    llm_weights(LlmConfig(), tmp_path)
    assert capsys.readouterr() == ("", "downloading smollm2-135m-instruct\n")
