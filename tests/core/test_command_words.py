"""What the command line shares: `--quiet`, completion, words of other programs, times."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import vqedge_here
from tiny_bundle import write_bundle

from vqedge.commands.output import counted
from vqedge.commands.search import _say_state
from vqedge.seconds import seconds_from_text
from vqedge_runtime import VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel
from vqedge_runtime.search import Refresh


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return vqedge_here(monkeypatch, capsys)


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeLanguageModel:
    """Of the session that every command opens."""
    made = FakeLanguageModel()
    manifest = write_bundle(tmp_path / "fake.vqedge").manifest
    qa = VideoQA(FakeEncoder(32, 576), FakeBridge(576), made, manifest)
    monkeypatch.setattr(VideoQA, "open", lambda *_, **__: qa)
    monkeypatch.setenv("VQEDGE_BUNDLE", "any")
    return made


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
@pytest.mark.parametrize("before", [True, False])
def test_quiet_leaves_out_talk_and_progress(
    run: Any, llm: FakeLanguageModel, clip: Path, flag: str, before: bool
) -> None:
    llm.enqueue("Red.")
    words = ["ask", clip, "What?", "--evidence"]
    found = run(*([flag, *words] if before else [*words, flag]))
    assert (found.code, found.err) == (0, "") and found.out.startswith("Red.\nevidence: ")
    assert logging.getLogger("vqedge_export").level == logging.WARNING


def test_quiet_keeps_warnings(run: Any, llm: FakeLanguageModel, clip: Path) -> None:
    llm.enqueue("")
    (line,) = run("ask", clip, "What?", "-q").err.splitlines()
    assert line.startswith("the model gave no words; ")


def test_quiet_keeps_errors_and_ends_with_the_command(
    run: Any, llm: FakeLanguageModel, clip: Path
) -> None:
    assert run("ask", "gone.mp4", "What?", "-q").err.startswith("vqedge: gone.mp4: no such file")
    llm.enqueue("Red.")
    assert "visual tokens" in run("ask", clip, "What?").err
    assert logging.getLogger("vqedge_export").level == logging.INFO


def test_one_is_no_plural(capsys: pytest.CaptureFixture[str]) -> None:
    assert [counted(count, "clip") for count in (0, 1, 2)] == ["0 clips", "1 clip", "2 clips"]
    _say_state(Refresh(files=1, clips=1, read=1, gone=0, bad=()))
    assert capsys.readouterr().err == "1 clip in 1 file; 1 read anew, 0 gone\n"


@pytest.mark.parametrize(
    ("words", "told"), [("vqedge en", "encode"), ("vqedge ask --ev", "--evidence")]
)
def test_a_shell_completes_commands_and_options(words: str, told: str) -> None:
    place = str(len(words.split()) - 1)
    asked = {"_VQEDGE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": place}
    command = [sys.executable, "-m", "vqedge"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True)
    assert done.stdout.split() == [told], done.stderr


@pytest.mark.parametrize(
    ("word", "here"),
    [
        ("verify", "check"),
        ("info", "inspect"),
        ("download", "fetch"),
        ("predict", "ask"),
        ("run", "ask"),
        ("version", "--version"),
        ("help", "--help"),
    ],
)
def test_a_command_of_other_programs(run: Any, word: str, here: str) -> None:
    found = run(word, "x")
    assert found == (2, "", f"vqedge: {word}: no such command; it is: vqedge {here}\n")


def test_a_device_is_no_option_where_nothing_chooses_it(run: Any) -> None:
    assert "--device" in run("doctor", "--device", "cpu").err
    assert "--backend" not in run("train", "a.yaml", "--device", "cpu").err
    assert "--gpu-layers" not in run("encode", "a.mp4", "-o", "a.vqt", "--device", "cpu").err


@pytest.mark.parametrize("device", [["--device", "0"], ["--device=cuda"]])
def test_a_device_is_chosen_by_two_other_options(run: Any, device: list[str]) -> None:
    found = run("ask", "a.mp4", "What?", *device)
    assert (found.code, found.out) == (2, "")
    assert "--backend says where the encoder runs, --gpu-layers where" in found.err
    assert "--device npu: choose one of" in run("build", "x", "--device", "npu").err


@pytest.mark.parametrize(
    ("text", "time_s"),
    [
        ("90", 90.0),
        ("1e1", 10.0),
        ("1:30", 90.0),
        ("00:01", 1.0),
        ("90:00", 5400.0),
        ("0:01:30.25", 90.25),
        ("1:00:00", 3600.0),
    ],
)
def test_a_time(text: str, time_s: float) -> None:
    assert seconds_from_text(text) == time_s


@pytest.mark.parametrize("text", ["soon", "", "1:75", "1:60:00", "1:5", ":30", "1:", "-1:30"])
@pytest.mark.parametrize("command", ["ask", "chat", "encode", "viz", "search"])
def test_no_time(run: Any, command: str, text: str) -> None:
    for option in ("--start", "--end"):
        found = run(command, "a.mp4", f"{option}={text}")
        assert (found.code, found.out) == (2, "")
        told = " ".join(found.err.replace("\u2502", " ").split())
        assert f"'{option}': {text!r}: give seconds, as 90, or 1:30, or 0:01:30" in told


def test_a_part_of_a_video_by_the_clock(run: Any, llm: FakeLanguageModel, clip: Path) -> None:
    llm.enqueue("Red.")
    found = run("ask", clip, "What?", "--start", "0:01", "--end", "00:00:02.5", "--json")
    assert '"start_s": 1.0, "end_s": 2.5' in found.out
