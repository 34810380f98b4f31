"""What a stranger's file is called, or asks, never moves a terminal's cursor."""

from __future__ import annotations

from pathlib import Path

import pytest

from vqedge.commands.evaluate import _print_table, _show
from vqedge.commands.output import copyable, say, say_note
from vqedge.data.jsonl import VideoFile
from vqedge.data.suites import Item
from vqedge.evaluate import EvalReport, Prior, Reply, Tally

RED, TOLD = "k\x1b[31m\x9bX", r"k\x1b[31m\x9bX"


def test_talk_keeps_its_own_lines_only(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{RED}\nnext")
    say_note(Path(RED), "ends early")
    assert capsys.readouterr().err == f"{TOLD}\nnext\n{TOLD}: ends early\n"


def test_a_suites_kinds_and_questions(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally([1], [1])
    report = EvalReport(RED, tally, {RED: tally}, {RED: Prior()}, 8.0, 2048, 8)
    _print_table(report)
    _show(Item(VideoFile(Path("a.mp4")), RED, f"{RED}\n?", RED), Reply(RED, 8), True)
    out, err = capsys.readouterr()
    assert out.startswith(f"{TOLD}: 100.0% of 1 ") and f"\n  {TOLD} " in out
    assert err.startswith(rf"ok  {TOLD}\n?  ") and err.count("\n") == 1
    assert "\x1b" not in out + err and "\x9b" not in out + err


def test_a_name_that_can_be_copied() -> None:
    assert copyable(f"{RED}\n\u202e") == rf"{TOLD}\n\u202e"
    usual = "at 3\u202fPM, \xe9\u4e2d \U0001f469\u200d\U0001f680.mp4"
    assert copyable(usual) == usual
