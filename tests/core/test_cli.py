"""The command line: help texts as they are on file, exit codes, and errors of one line."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import pytest
import typer
from command_line import Outcome, run_vqedge, vqedge_here
from tiny_bundle import write_bundle

import vqedge.cli
from vqedge.commands import doctor
from vqedge.data.suites import suite_items
from vqedge.errors import BundleError
from vqedge_runtime import VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel, Generation

ROOT = Path(__file__).parents[2]
HELP = ROOT / "tests/golden/help"
RECIPE, TINY = ROOT / "recipes/world.yaml", ROOT / "models/tiny"
COMMANDS_OF = typer.main.get_command(vqedge.cli.app).commands  # type: ignore[attr-defined]
COMMANDS = sorted(COMMANDS_OF)
PLAIN = {"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`vqedge ...` in this process, with an empty folder for the current one."""
    for name, value in PLAIN.items():
        monkeypatch.setenv(name, value)
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH"):
        monkeypatch.delenv(name, raising=False)
    return vqedge_here(monkeypatch, capsys)


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


class FakeBundle(NamedTuple):
    path: Path
    llm: FakeLanguageModel
    encoder: FakeEncoder


@pytest.fixture
def bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeBundle:
    """A bundle whose models are stand-ins; opening it with `-m` works."""
    written = write_bundle(tmp_path / "fake.vqedge")
    encoder, llm = FakeEncoder(codes=32, width=576), FakeLanguageModel()

    def fake_open(path: Path, **_: Any) -> VideoQA:
        if path != written.root:
            raise BundleError(f"{path}: no such folder; give the folder that `vqedge export` wrote")
        return VideoQA(encoder, FakeBridge(576), llm, written.manifest)

    monkeypatch.setattr(VideoQA, "open", fake_open)
    return FakeBundle(written.root, llm, encoder)


def assert_one_line(found: Outcome, *words: str, code: int = 1) -> None:
    """The code, nothing on stdout, and one complaint; talk may stand before it."""
    assert (found.code, found.out) == (code, "")
    complaints = [line for line in found.err.splitlines() if line.startswith("vqedge: ")]
    assert len(complaints) == 1, found.err
    assert found.err.endswith(f"{complaints[0]}\n")
    assert "Traceback" not in found.err
    for word in words:
        assert word in complaints[0]


# ---- help


@pytest.mark.parametrize("command", ["vqedge", *COMMANDS])
def test_help_is_the_one_on_file(run: Any, request: pytest.FixtureRequest, command: str) -> None:
    found = run(*([] if command == "vqedge" else [command]), "--help")
    text = "\n".join(line.rstrip() for line in found.out.strip().splitlines()) + "\n"
    path = HELP / f"{command}.txt"
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert found.code == 0 and found.err == ""
    assert path.read_text(encoding="utf-8") == text, "changed: run scripts/test --update-golden"


def test_there_is_a_help_file_for_every_command_and_no_other() -> None:
    assert sorted(path.stem for path in HELP.iterdir()) == sorted(["vqedge", *COMMANDS])


@pytest.mark.parametrize(
    "command", ["ask", "chat", "encode", "train", "export", "assemble", "eval"]
)
def test_help_has_an_example(command: str) -> None:
    assert f"Example: vqedge {command} " in (HELP / f"{command}.txt").read_text(encoding="utf-8")


def test_h_is_help_and_no_command_is_usage(run: Any) -> None:
    assert run("ask", "-h").out == run("ask", "--help").out
    found = run()
    assert found.code == 2
    assert all(f" {command} " in found.out + found.err for command in COMMANDS)


# ---- 2: usage


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["aks"], "No such command 'aks'"),
        (["ask"], "Missing argument 'video'"),
        (["ask", "a.mp4", "What?", "--budgett", "3"], "--budgett"),
        (["ask", "a.mp4", "What?", "--start", "soon"], "'--start'"),
        (["ask", "a.mp4", "What?", "--max-tokens", "0"], "'--max-tokens'"),
        (["eval", "--limit", "0"], "'--limit'"),
        (["bench", "--threads", "0"], "'--threads'"),
        (["export", "models/tiny"], "Missing option '-o' / '--out'"),
    ],
)
def test_wrong_usage(run: Any, arguments: list[str], words: str) -> None:
    found = run(*arguments)
    assert (found.code, found.out) == (2, "")
    assert "Usage: vqedge" in found.err
    assert words in " ".join(re.sub("[│╭╮╰╯─]", " ", found.err).split())
    assert "Traceback" not in found.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", "a.mp4", "What?", "--budget", "many"], "--budget many: give a number of tokens"),
        (["ask", "a.mp4", "What?", "--budget", "0"], "--budget 0: give a number of tokens"),
        (["ask", "a.mp4", "What?", "--start", "5", "--end", "3"], "5 is not before --end 3"),
        (["ask", "a.mp4", "What?", "--start", "-1"], "--start -1.0 is not a time"),
        (["ask", "a.mp4", "What?", "--end", "nan"], "--end nan is not a time"),
        (["ask", "a.mp4", "What?", "--choices", "red"], "--choices 'red': give two or more"),
        (["ask", "a.mp4", "What?", "--questions", "q.txt"], "or --questions, not both"),
        (["ask", "a.mp4", "What", "is", "it?"], "'is' is one argument too many; put the question"),
        (["ask", "a.mp4", "fake.vqedge", "What?"], "ask takes one video, or a folder of .vqt"),
        (["ask", "What is it?", "fake.vqedge"], "first: vqedge ask fake.vqedge 'What is it?'"),
        (["fetch", "smollm3"], "fetch smollm3: choose one of dinov2-s14-focus"),
        (["ask", "a.mp4", "--questions", "q.txt", "--evidence"], "are for one question"),
        (["ask", "a.mp4", "What?", "--backend", "none", "-m", "BUNDLE"], "no encoder backend"),
        (["ask", "a.mp4", "What?", "--backend", "none", "-m", "gone"], "no encoder backend"),
        (["ask", "a.mp4", "What?", "--top-p", "0", "-m", "gone"], "top_p 0.0: give more than 0"),
        (["ask", "a.mp4", "What?", "--temperature", "inf"], "inf: give 0, or 0.001 to 1000"),
        (["chat", "a.mp4", "--seed", "4294967295"], "seed 4294967295: give 0 to 4294967294"),
        (["chat", "a.mp4", "--backend", "none"], "no encoder backend"),
        (["ask", "a.mp4", "What?", "--threads", "513"], "--threads 513: give 1 to 512"),
        (["chat", "a.mp4", "--threads", "20000"], "--threads 20000: give 1 to 512"),
        (["chat", "a.mp4", "--budget", "many"], "--budget many"),
        (["chat", "a.mp4", "--budget", "-3"], "--budget -3"),
        (["chat", "a.mp4", "--start", "inf"], "--start inf is not a time"),
        (["chat", "a.mp4", "--start", "3", "--end", "2"], "--start 3 is not before --end 2"),
        (["encode", "a.mp4"], "say where to: -o FILE.vqt or -o FOLDER/; or --as text"),
        (["encode", "a.mp4", "-o", "b", "--budget", "many"], "--budget many"),
        (["encode", "a.mp4", "-o", "b", "--segment", "inf"], "--segment inf: give seconds"),
        (["encode", "a.mp4", "-o", "b", "--end", "0"], "--start 0 is not before --end 0"),
        (["encode", "a.mp4", "-o", "b", "--end", "9", "--segment", "2"], "--segment: cuts all"),
        (["encode", "a.mp4", "b.mp4", "-o", "b", "--start", "1"], "--end are for one video"),
        (["encode", "-", "-o", "out/"], "-o out/: what comes through a pipe has no name"),
        (["encode", "a.mp4", "-", "-o", "b"], "a pipe is for one video"),
        (["encode", "a.mp4", "-o", "-", "--json"], "-o -: the file goes to a pipe"),
        (["encode", "a.mp4", "-o", "b", "--backend", "none"], "no encoder backend 'none'"),
        (["encode", "a.mp4", "--as", "ids", "--backend", "none"], "no encoder backend 'none'"),
        (["encode", "a.mp4", "-o", "b", "--threads", "513"], "--threads 513: give 1 to 512"),
        (["encode", "a.mp4", "--as", "ids", "--threads", "513"], "--threads 513: give 1 to 512"),
        (["encode", "a.mp4", "--as", "poem"], "--as poem: choose one of text, ids"),
        (["encode", "a.mp4", "--as", "ids", "--bits", "4"], "--bits does not go with it"),
        (["encode", "a.mp4", "--as", "ids", "--budget", "many"], "--budget many"),
        (["encode", "a.mp4", "--as", "ids", "--start", "-1"], "--start -1.0 is not a time"),
        (["encode", "a.mp4", "--question", "What?"], "--question: give --as ids too"),
        (["viz", "a.mp4", "-o", "a.gif"], "-o a.gif: give a name that ends in .png, .html, .mp4"),
        (["viz", "a.mp4", "-o", "a.png", "--budget", "many"], "--budget many"),
        (["viz", "a.mp4", "-o", "a.png", "--question", " "], "the question is empty"),
        (["viz", "a.mp4", "-o", "a.png", "--start", "1", "--end", "1"], "1 is not before --end 1"),
        (["viz", "a.mp4", "-o", "a.png", "--backend", "none"], "no encoder backend"),
        (["viz", "a.mp4", "-o", "a.png", "--threads", "513"], "--threads 513: give 1 to 512"),
        (["search", "a.vqt", ".", "--threads", "513"], "--threads 513: give 1 to 512"),
        (["bench", "a.mp4", "--threads", "513"], "--threads 513: give 1 to 512"),
        (["search", "a.vqt", ".", "--backend", "none"], "no encoder backend"),
        (["search", "a.vqt", ".", "--end", "0"], "--start 0 is not before --end 0"),
        (["search", "a.vqt", ".", "--novel", "--duplicates"], "are two questions"),
        (["train", str(RECIPE), "optim.steps"], "an override reads key.sub=value"),
        (["train", str(RECIPE), "optim.step=3"], "'optim.step=3': no such key; did you mean steps"),
        (["export", "x", "-o", "y", "--target", "onxx"], "--target onxx: choose one of onnx"),
        (["export", "x", "-o", "y", "--precision", "fp8"], "--precision fp8: choose one of fp32"),
        (["export", "x", "-o", "y", "--llm-quant", "Q9"], "--llm-quant Q9: choose one of"),
        (["export", "x", "-o", "y", "--sm", "86"], "--sm is about engines"),
        (["export", str(TINY), "-o", "y", "--record", "--no-check"], "leave out --no-check"),
        (["assemble", "x", "-o", "y", "--precision", "fp16"], "fp16: choose one of fp32, int8"),
        (["assemble", "x", "-o", "y", "--precision", "f8"], "--precision f8: choose one of"),
        (["assemble", "x", "-o", "y", "--llm-quant", "Q9"], "--llm-quant Q9: choose one of"),
        (["build", "x", "--target", "onnx"], "--target onnx: choose one of tensorrt"),
        (["build", "x", "--precision", "fp8"], "--precision fp8: choose one of fp32, fp16, int8"),
        (["check", "x", "-m", "y"], "the bundle is named twice, x and -m y; name it once"),
        (["check", "x", "--backend", "none"], "no encoder backend 'none'"),
        (["build", "x", "-m", "y"], "the bundle is named twice, x and -m y; name it once"),
        (["doctor", "x", "-m", "y"], "the bundle is named twice, x and -m y; name it once"),
        (["build", "x", "--typing", "strict"], "--typing strict: choose one of strong, weak"),
        (["build", "x", "--device", "npu"], "--device npu: choose one of gpu, dla"),
        (["build", "x", "--sm", "new"], "--sm 'new': want compute capabilities"),
        (["build", "x", "--calibrate", "."], "--calibrate .: fp16 needs no calibration"),
        (["build", "x", "--target", "tensorrt-rtx", "--plugin", "auto"], "takes a plugin"),
        (["import", ".", "-o", "y", "--mode", "none"], "--mode none: choose one of official"),
        (["import", ".", "-o", "y", "--reducer", "none"], "--reducer none: choose one of"),
        (["eval", "--suite", "nothing"], "--suite nothing: choose one of"),
        (["eval", "--suite", "photos"], "--suite photos: give the photos' index"),
        (["eval", "--suite", "a.csv"], "needs --videos DIR"),
        (["eval", "--suite", "none.jsonl", "--backend", "none"], "no encoder backend"),
        (["eval", "--threads", "513"], "--threads 513: give 1 to 512"),
        (["eval", "--budget", "many"], "--budget many"),
        (["eval", "--budget", "0"], "--budget 0: give a number of tokens"),
        (["eval", "--limit", "1", "--checkpoint", "x", "-m", "y"], "-m) or --checkpoint, not both"),
        (["eval", "--limit", "1", "--checkpoint", "x", "--threads", "1"], "leave out --backend"),
        (["eval", "--reducers", "all"], "give --checkpoint DIR"),
        (["eval", "--reducers", "none", "--checkpoint", "x"], "--reducers none: choose all"),
        (["eval", "--reducers", "all", "--show"], "leave out --show"),
        (["eval", "--reducers", "all", "--baselines-dir", "x"], "leave out --baselines-dir"),
        (["eval", "--baselines-dir", "x"], "--baselines-dir: is where --baselines looks"),
        (["eval", "--reducers-dir", "x"], "--reducers-dir: is where --reducers looks"),
        (["eval", "--reducers", "tome", "--checkpoint", str(TINY), "--budget", "8,x"], "--budget"),
    ],
)
def test_words_that_no_file_makes_right(run: Any, arguments: list[str], words: str) -> None:
    written = write_bundle(Path("fake.vqedge"))
    given = [str(written.root) if word == "BUNDLE" else word for word in arguments]
    assert_one_line(run(*given), words, code=2)
    assert [path.name for path in Path().iterdir()] == ["fake.vqedge"]


PATHS = [  # (command, an argument's place or an option)
    (name, parameter.opts[0] if parameter.param_type_name == "option" else place)
    for name, command in COMMANDS_OF.items()
    for place, parameter in enumerate(command.params)
    if "Path" in str(get_type_hints(command.callback, include_extras=True).get(parameter.name))
]


@pytest.mark.parametrize(
    ("command", "where"), [*PATHS, ("encode", "-o"), ("import", 0)], ids=lambda value: str(value)
)
def test_an_empty_path_is_not_the_current_folder(run: Any, command: str, where: int | str) -> None:
    """As of a variable that is not set."""
    words = ["x"] * where if isinstance(where, int) else [where]
    found = run(command, *words, "")
    assert (found.code, found.out) == (2, "") and "it is empty; give a path" in found.err
    assert not list(Path().iterdir())


def test_paths_are_of_every_kind() -> None:
    assert {("ask", 0), ("encode", 0), ("search", 1), ("ask", "-m"), ("viz", "-o")} <= set(PATHS)


# ---- 1: what a user can fix


def test_no_bundle_anywhere(run: Any, clip: Path) -> None:
    assert_one_line(run("ask", clip, "What?"), "give -m NAME.vqedge", "vqedge assemble")


def test_a_bundle_that_is_not_there(run: Any, clip: Path) -> None:
    assert_one_line(run("ask", clip, "What?", "-m", "none.vqedge"), "none.vqedge: ")
    assert_one_line(run("check", "none.vqedge"), "none.vqedge: ")
    assert_one_line(run("inspect", "none.vqedge"), "none.vqedge: no such file or folder")


def test_a_bundle_named_by_the_environment(
    run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQEDGE_BUNDLE", "named.vqedge")
    assert_one_line(run("ask", clip, "What?"), "named.vqedge: ")


def test_check_takes_the_bundle_in_any_way(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(write_bundle(Path("fake.vqedge")).root)
    assert_one_line(run("check"), "no bundle: give -m NAME.vqedge")
    for named in ((root,), ("-m", root)):
        assert run("check", *named, "--files-only").out == f"{root}\n"
    monkeypatch.setenv("VQEDGE_BUNDLE", root)
    assert run("check", "--files-only").out == f"{root}\n"
    assert_one_line(run("check", "none.vqedge"), "none.vqedge: ")


@pytest.mark.parametrize("command", [("ask", "{}", "What?"), ("chat", "{}"), ("bench", "{}")])
@pytest.mark.parametrize("video", ["none.mp4", "none.vqt"])
def test_a_video_that_is_not_there_is_told_before_a_bundle_is_opened(
    run: Any, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], video: str
) -> None:
    monkeypatch.setattr(VideoQA, "open", lambda *_, **__: pytest.fail("a bundle was opened"))
    found = run(*(word.format(video) for word in command), "-m", "gone")
    assert_one_line(found, f"{video}: no such file", "; check the path")


@pytest.mark.parametrize("command", [("ask", "p", "What?"), ("viz", "p", "-o", "a.png")])
def test_a_pipe_that_has_a_path_is_told_how_to_be_read(run: Any, command: tuple[str, ...]) -> None:
    """As `<(...)` of a shell; FFmpeg cannot seek in it."""
    os.mkfifo("p")
    assert_one_line(run(*command), "p: is not a regular file; pipe it into -, as: ... | vqedge ask")


def test_no_room_for_what_comes_through_a_pipe_names_its_folder(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vqedge.commands.pipe._copy_stdin", fails)
    monkeypatch.setattr("tempfile.tempdir", str(Path.cwd()))
    found = run("ask", "-", "What?", stdin=b"video")
    assert_one_line(found, f"-: {Path.cwd()}: No space left on device; make room there", "TMPDIR")


NO_VIDEOS = {
    "clip.mp4": "videos: the folder holds no images; give a video",
    "a.vqt": "videos: holds .vqt files, which are encoded already; name one of them",
    "manifest.json": "videos: is a bundle; name it with -m",
}


@pytest.mark.parametrize(
    ("command", "holds"),
    [
        *((command, holds) for command in ("chat", "bench") for holds in NO_VIDEOS),
        *(("ask", holds) for holds in ("clip.mp4", "manifest.json")),  # it takes many .vqt
    ],
)
def test_a_folder_that_is_no_video_is_told_before_a_bundle_is_opened(
    run: Any, monkeypatch: pytest.MonkeyPatch, command: str, holds: str
) -> None:
    monkeypatch.setattr(VideoQA, "open", lambda *_, **__: pytest.fail("a bundle was opened"))
    Path("videos").mkdir()
    Path("videos", holds).touch()
    question = ["What?"] if command == "ask" else []
    assert_one_line(run(command, "videos", *question, "-m", "gone"), NO_VIDEOS[holds])


def test_a_folder_is_walked_once_and_one_named_as_a_file_is_none(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoQA, "open", lambda *_, **__: pytest.fail("a bundle was opened"))
    Path("videos/a/b/c.vqt").mkdir(parents=True)
    looked: list[str] = []
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: looked.append(str(path)) or real(path))
    assert_one_line(run("ask", "videos", "What?", "-m", "gone"), "holds no images")
    assert [looked.count(folder) for folder in ("videos/a/b", "videos/a/b/c.vqt")] == [1, 1]


@pytest.mark.parametrize("question", ["", " \t "])
def test_an_empty_question(run: Any, clip: Path, bundle: FakeBundle, question: str) -> None:
    for words in (("ask", clip, question), ("encode", clip, "--as", "ids", "--question", question)):
        assert_one_line(run(*words, "-m", bundle.path), "the question is empty", code=2)
    assert_one_line(
        run("ask", clip, "-m", bundle.path, stdin=question.encode()), "the question is empty"
    )
    assert not bundle.encoder.calls, "the video was read first"


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("33", "budget 33: this bundle takes 1 to 32 tokens"),
        ("auto", "budget auto"),
    ],
)
def test_a_budget_out_of_range(
    run: Any, clip: Path, bundle: FakeBundle, budget: str, words: str
) -> None:
    for command in (("ask", clip, "What?"), ("chat", clip)):
        found = run(*command, "-m", bundle.path, "--budget", budget)
        assert_one_line(found, words)
        assert "encoder:" not in found.err, "it was opened first, which may take seconds"


@pytest.mark.parametrize("choices", ["red", "red|", "", "|", "red| |blue", "red|blue | red"])
def test_choices_that_are_none(run: Any, clip: Path, bundle: FakeBundle, choices: str) -> None:
    found = run("ask", clip, "What?", "-m", bundle.path, "--choices", choices)
    assert_one_line(found, "--choices", "separated by |", code=2)


@pytest.mark.parametrize("suite", ["none.jsonl", "photos:none.jsonl"])
def test_a_suite_that_is_not_there(run: Any, bundle: FakeBundle, suite: str) -> None:
    found = run("eval", "-m", bundle.path, "--suite", suite)
    assert_one_line(found, "none.jsonl: cannot be read (No such file or directory); check the path")


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("33", "budget 33: this bundle takes 1 to 32 tokens"),
        ("auto", "budget auto: this bundle has a fixed budget"),
    ],
)
def test_eval_with_a_budget_out_of_range(
    run: Any, bundle: FakeBundle, budget: str, words: str
) -> None:
    found = run("eval", "-m", bundle.path, "--limit", "1", "--budget", budget)
    assert_one_line(found, words)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "none.yaml"],
        ["export", "none", "-o", "x.vqedge"],
        ["assemble", "none", "-o", "x.vqedge"],
        ["eval", "--checkpoint", "none", "--limit", "1"],
    ],
)
def test_what_is_not_there_is_named(run: Any, arguments: list[str]) -> None:
    found = run(*arguments)
    assert_one_line(found, "no")
    assert not list(Path().iterdir()), "something was left behind"


@pytest.mark.parametrize(
    ("arguments", "heavy", "words"),
    [
        (["train", "none.yaml"], "vqedge_export.onnx_export", "none.yaml: no such file"),
        (["export", "none", "-o", "x"], "vqedge_export.pipeline", "none: no such folder; give one"),
        (["eval", "--checkpoint", "none"], "vqedge.model.answer", "none: no such folder; give one"),
    ],
)
def test_what_is_not_there_is_told_before_torch_is_loaded(
    run: Any, monkeypatch: pytest.MonkeyPatch, arguments: list[str], heavy: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, heavy, None)
    assert_one_line(run(*arguments), words)


@pytest.fixture
def ask_failing_with(run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`ask` where opening the bundle raises an error."""

    def ask(error: Exception) -> Any:
        def fails(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(VideoQA, "open", fails)
        return run("ask", clip, "What?", "-m", "x.vqedge")

    return ask


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ModuleNotFoundError("No module named 'gguf'", name="gguf"),
            "gguf is not installed; pip install 'vqedge[assemble]'",
        ),
        (ModuleNotFoundError("gone", name="av.error"), "av.error is not installed; pip install"),
        (ImportError("libx.so: not there", name="av._core"), "av._core does not load (libx.so"),
        (ModuleNotFoundError("gone", name="yaml"), "--force-reinstall 'pyyaml>="),
        (ModuleNotFoundError("gone", name="PIL"), "pip install 'vqedge[viz]'"),
        (ModuleNotFoundError("gone", name="torch"), "pip install 'vqedge[export]'"),
    ],
)
def test_a_library_that_is_missing_or_broken(
    ask_failing_with: Any, error: Exception, words: str
) -> None:
    assert_one_line(ask_failing_with(error), words)


def test_an_import_that_fails_in_vqedge_itself_is_a_fault_of_ours(ask_failing_with: Any) -> None:
    found = ask_failing_with(ImportError("cannot import name 'x'", name="vqedge.files"))
    assert_one_line(found, "internal error", code=3)


@pytest.mark.parametrize("state", ["gone", "half removed", "broken"])
@pytest.mark.parametrize("library", ["numpy", "av", "onnxruntime"])
def test_the_doctor_names_a_library_that_does_not_load(
    tmp_path: Path, library: str, state: str
) -> None:
    """In a process of its own, where nothing holds the library yet."""
    (tmp_path / library).mkdir()
    text = "raise RuntimeError('two versions')" if state == "broken" else ""
    (tmp_path / library / "__init__.py").write_text(text)
    before = f"sys.modules[{library!r}] = None" if state == "gone" else "sys.path.insert(0, '')"
    run = "sys.argv[1:] = ['doctor', '--json']; from vqedge.cli import main; main()"
    command = [sys.executable, "-c", f"import sys; {before}; {run}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    checks = json.loads(done.stdout.splitlines()[-1])["checks"]
    line = next(row for row in checks if row["check"] == library)
    assert not line["ok"] and f"--force-reinstall '{library}" in line["fix"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/cache/engines/a.engine"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_no_fault_of_ours(ask_failing_with: Any, error: Exception) -> None:
    found = ask_failing_with(error)
    assert_one_line(found, getattr(error, "filename", ""), "No space left", "VQEDGE_CACHE")


def test_a_file_that_a_program_forgot_is_a_fault_of_ours(
    run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(VideoQA, "open", lambda *_, **__: Path("forgotten").stat())
    found = run("ask", clip, "What?", "-m", "x.vqedge")
    assert_one_line(found, "internal error: FileNotFoundError", code=3)


@pytest.mark.parametrize("flags", [{"amx_bf16"}, {"avx512_bf16"}, {"avx2", "avx_vnni"}])
def test_the_doctor_recommends_openvino_where_the_cpu_has_bfloat16(
    monkeypatch: pytest.MonkeyPatch, flags: set[str]
) -> None:
    monkeypatch.setattr("vqedge_runtime.llm.build_flags.cpu_flags", lambda: flags)
    monkeypatch.setattr(doctor, "_version", lambda _: None)
    (line,) = doctor._openvino(None)
    assert line.needed.startswith("recommended") == ("avx2" not in flags)
    assert not line.ok and not line.required and line.fix == "pip install 'vqedge[openvino]'"


def test_the_version_is_printed(run: Any) -> None:
    found = run("--version")
    assert (found.code, found.out) == (0, f"vqedge {vqedge.__version__}\n")


@pytest.mark.parametrize("before", [True, False])
def test_verbose_is_taken_anywhere(run: Any, bundle: FakeBundle, clip: Path, before: bool) -> None:
    bundle.llm.enqueue("Red.")
    arguments = ["ask", clip, "What?", "-m", bundle.path]
    assert run(*(["--verbose", *arguments] if before else [*arguments, "--verbose"])).code == 0


def test_names_and_questions_that_are_no_unicode_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    out, given = io.BytesIO(), io.BytesIO(b"What\xff?")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="utf-8"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(given, encoding="utf-8"))
    vqedge.cli._take_any_text()
    print(os.fsdecode(b"caf\xe9.vqt"), flush=True)
    assert out.getvalue() == b"caf\xe9.vqt\n"
    assert sys.stdin.read() == "What\ufffd?"


# ---- 3: our fault; and --debug


@pytest.fixture
def broken(bundle: FakeBundle, monkeypatch: pytest.MonkeyPatch) -> FakeBundle:
    def fail(*_: Any) -> None:
        raise RuntimeError("a fault of ours\nin two lines, one of them \x1b[31mred")

    monkeypatch.setattr(bundle.encoder, "encode", fail)
    return bundle


def test_an_internal_error(run: Any, clip: Path, broken: FakeBundle) -> None:
    found = run("ask", clip, "What?", "-m", broken.path)
    assert_one_line(
        found,
        "internal error: RuntimeError: a fault of ours in two lines, one of them \\x1b[31mred",
        "please report it",
        code=3,
    )


@pytest.mark.parametrize("before", [True, False])
def test_debug_shows_the_traceback_and_keeps_the_code(
    run: Any, clip: Path, broken: FakeBundle, before: bool
) -> None:
    arguments = ["ask", clip, "What?", "-m", broken.path]
    found = run(*(["--debug", *arguments] if before else [*arguments, "--debug"]))
    assert found.code == 3
    assert "Traceback (most recent call last)" in found.err
    assert "test_cli.py" in found.err and "RuntimeError: a fault of ours" in found.err
    found = run("--debug", "ask", "none.mp4", "What?", "-m", broken.path)
    assert found.code == 1
    assert "Traceback" in found.err and "VideoError" in found.err


def test_an_interrupt(
    run: Any, clip: Path, bundle: FakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle.encoder, "encode", interrupted)
    found = run("ask", clip, "What?", "-m", bundle.path)
    assert found.code == 130 and "Traceback" not in found.err


# ---- 0: answers on stdout, talk on stderr


@pytest.mark.parametrize("flags", [[], ["--no-stream"]])
def test_an_answer(
    run: Any, clip: Path, bundle: FakeBundle, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    monkeypatch.setattr(Generation, "tokens_per_s", 41.6)
    bundle.llm.enqueue("A red circle.")
    found = run("ask", clip, "What moves?", "-m", bundle.path, *flags)
    assert (found.code, found.out) == (0, "A red circle.\n")
    assert "encoder: fake encoder; llm: fake" in found.err
    assert "32 of 2048 visual tokens" in found.err and ", 42 tokens/s\n" in found.err
    assert bundle.llm.closed, "the models were not freed"


def test_a_question_from_a_pipe(run: Any, clip: Path, bundle: FakeBundle) -> None:
    bundle.llm.enqueue("Yes.")
    found = run("ask", clip, "-m", bundle.path, stdin=b"What moves?\n")
    assert (found.code, found.out) == (0, "Yes.\n")
    assert bundle.llm.calls[0][1].strip() == "What moves?"


def test_an_answer_as_json(run: Any, clip: Path, bundle: FakeBundle) -> None:
    bundle.llm.enqueue("A red circle.")
    found = run("ask", clip, "What moves?", "-m", bundle.path, "--budget", "8", "--json")
    document = json.loads(found.out.splitlines()[-1])
    assert found.code == 0 and len(found.out.splitlines()) == 1
    assert (document["answer"], document["tokens"]) == ("A red circle.", 8)
    stages = {"decode", "preprocess", "encode", "prefill", "first_token", "total"}
    assert set(document["timings_ms"]) == stages
    assert set(document["backend"]) == {"encoder", "llm"}
    assert document["question"] == "What moves?"
    span = {"start_s": 0.0, "end_s": 3.0, "duration_s": 3.0}
    assert document["video"] == {"path": str(clip), "frames": 8, **span}


def test_choices(run: Any, clip: Path, bundle: FakeBundle) -> None:
    bundle.llm.enqueue_scores(-9.0, -1.0)
    found = run("ask", clip, "What?", "-m", bundle.path, "--choices", "red | blue", "--json")
    document = json.loads(found.out)
    assert document["answer"] == "blue"
    assert list(document["choices"]) == ["red", "blue"]
    assert sum(document["choices"].values()) == pytest.approx(1.0)


@pytest.mark.parametrize("flags", [["--json"], ["--json", "--evidence"], [], ["--no-stream"]])
def test_an_empty_answer_is_told_and_no_error(
    run: Any, clip: Path, bundle: FakeBundle, flags: list[str]
) -> None:
    bundle.llm.enqueue("")
    found = run("ask", clip, "What?", "-m", bundle.path, *flags)
    assert found.code == 0 and "the model gave no words; ask in other words" in found.err
    assert found.out == "\n" or json.loads(found.out)["answer"] == ""


def test_empty_answers_among_many_are_counted(run: Any, clip: Path, bundle: FakeBundle) -> None:
    Path("q.txt").write_text("What?\nWho?\nWhy?\n")
    for text in ("", "Red.", ""):
        bundle.llm.enqueue(text)
    found = run("ask", clip, "-m", bundle.path, "--questions", "q.txt")
    assert found.code == 0 and "2 answers have no words" in found.err
    assert [line.split("\t")[2] for line in found.out.splitlines()] == ["", "Red.", ""]


def test_eval_prints_its_report(run: Any, clip: Path, bundle: FakeBundle, tmp_path: Path) -> None:
    suite = tmp_path / "mine.jsonl"
    line = {"video": str(clip), "question": "What?", "answer": "red"}
    suite.write_text("\n".join(json.dumps(line) for _ in range(2)))
    for text in ("Red.", "blue"):
        bundle.llm.enqueue(text)
    found = run("eval", "-m", bundle.path, "--suite", suite, "--show", "--json")
    document = json.loads(found.out)
    assert (found.code, document["n"], document["accuracy"]) == (0, 2, 0.5)
    assert document["backend"] == {"encoder": "fake encoder", "llm": "fake"}
    assert bundle.encoder.calls == 1, "a clip is encoded once for all its questions"
    assert "ok  What?" in found.err and "--  What?" in found.err


def test_eval_tells_which_facts_descriptions_tell(run: Any, bundle: FakeBundle) -> None:
    (item,) = suite_items("captions", 1)
    bundle.llm.enqueue(item.facts[0])
    found = run("eval", "-m", bundle.path, "--suite", "captions", "--limit", "1")
    count = len(item.facts)
    told = f"  {1 / count:.1%} of the {count} things told as they are; 0.0% of the clips whole"
    assert count > 1 and told in found.out


def test_eval_scores_choices_and_asks_about_part_of_a_video(
    run: Any, clip: Path, bundle: FakeBundle, tmp_path: Path
) -> None:
    suite = tmp_path / "mine.jsonl"
    whole = {"video": str(clip), "question": "Which?", "answer": "b", "choices": ["a", "b"]}
    part = {"video": str(clip), "question": "What?", "answer": "red", "start": 1, "end": 2}
    suite.write_text("\n".join(map(json.dumps, (whole, part))))
    bundle.llm.enqueue_scores(-9.0, -1.0)
    bundle.llm.enqueue("red")
    found = run("eval", "-m", bundle.path, "--suite", suite, "--budget", "8", "--json")
    document = json.loads(found.out)
    assert (document["accuracy"], document["tokens_mean"]) == (1.0, 8.0)
    assert bundle.encoder.calls == 2, "the part is a clip of its own"
    (first, _), (second, _) = bundle.llm.calls
    assert first != second, "the same frames were shown for the whole and for the part"


# ---- as a program


def test_the_program_exits_with_these_codes() -> None:
    assert run_vqedge("--help").returncode == 0
    missing = run_vqedge("ask", __file__, "What?", "-m", "none.vqedge")
    assert_one_line(Outcome(missing.returncode, missing.stdout, missing.stderr), "none.vqedge")
    assert run_vqedge("ask").returncode == 2
