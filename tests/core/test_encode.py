"""`vqedge encode` and what takes its files, with stand-ins for the models."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np
import pytest
from command_line import Outcome, vqedge_here
from timed_llm import Timed
from tiny_bundle import tiny_facts, tiny_quantizer, write_bundle

import vqedge.commands.encode as command
import vqedge.commands.words as words_command
import vqedge_runtime.batch as batches
import vqedge_runtime.video.clip as clip_module
from vqedge.budget import ADAPTIVE
from vqedge.bundle import Bundle
from vqedge.errors import BackendUnavailable, ConfigError, VideoError, VqtError
from vqedge_runtime import VideoQA, bench
from vqedge_runtime.batch import BatchEncoder, Job
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders import ENCODERS, EncoderBackend, auto
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.encoders.protocol import Missing
from vqedge_runtime.llm import FakeLanguageModel
from vqedge_runtime.video import source as source_module
from vqedge_runtime.video.source import Source
from vqedge_runtime.video_words import PromptPiece
from vqedge_runtime.vqt import open_vqt


@pytest.fixture
def clip(demo_clip: Path) -> Path:
    """Three seconds, in another folder than the test's."""
    return demo_clip


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    facts = tiny_facts(quantizer=tiny_quantizer(adaptive_error=0.2))
    return write_bundle(tmp_path_factory.mktemp("bundle") / "fake.vqedge", facts=facts)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> FakeEncoder:
    """The encoder that `vqedge encode` opens."""
    fake = FakeEncoder(32, 576)
    monkeypatch.setattr(command, "open_encoder", lambda *_: fake)
    return fake


@pytest.fixture
def qa(bundle: Bundle, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch) -> VideoQA:
    """The session that other commands open."""
    session = VideoQA(encoder, FakeBridge(576), FakeLanguageModel(), bundle.manifest)

    def reopened(*_: Any, **__: Any) -> VideoQA:
        session._closed = session.llm.closed = False  # type: ignore[attr-defined]
        return session

    monkeypatch.setattr(VideoQA, "open", reopened)
    return session


@pytest.fixture
def run(
    bundle: Bundle,
    encoder: FakeEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:
    """`vqedge ...` in this process and an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VQEDGE_BUNDLE", str(bundle.root))
    return vqedge_here(monkeypatch, capsys)


def folder_of(clip: Path, *names: str) -> Path:
    """A folder `clips` with copies of a clip; a name that begins with "bad" is none."""
    for name in names:
        path = Path("clips") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.name.startswith("bad"):
            path.write_bytes(b"no video")
        else:
            shutil.copy(clip, path)
    return Path("clips")


def complaint(found: Outcome, code: int = 1) -> str:
    lines = [line for line in found.err.splitlines() if line.startswith("vqedge: ")]
    assert found.code == code and len(lines) == 1, found.err
    return lines[0]


# ---- one video


@pytest.mark.parametrize(
    ("out", "made"), [("a.vqt", "a.vqt"), ("a", "a.vqt"), ("new/a.b", "new/a.b.vqt")]
)
def test_one_video(run: Any, clip: Path, out: str, made: str) -> None:
    found = run("encode", clip, "-o", out)
    assert (found.code, found.lines) == (0, [made]), found.err
    size = Path(made).stat().st_size
    assert "encoder: fake encoder" in found.err
    assert f"1 encoded, 1 segment, {size} bytes" in found.err
    file = open_vqt(Path(made))
    assert file.spans_us == ((0, 3_000_000),)
    assert file.header.origin.size_bytes == clip.stat().st_size
    assert file.header.budget == file.segment(0).codes.count == 32


def test_into_a_folder_that_is_there(run: Any, clip: Path) -> None:
    Path("there").mkdir()
    assert run("encode", clip, "-o", "there").lines == ["there/demo.mp4.vqt"]
    assert run("encode", clip, "-o", "new/").lines == ["new/demo.mp4.vqt"]


def test_a_budget(run: Any, clip: Path) -> None:
    for budget, wanted, count in [("8", 8, 8), ("auto", 0, 16)]:
        run("encode", clip, "-o", "a.vqt", "--budget", budget)
        file = open_vqt(Path("a.vqt"))
        assert (file.header.budget, file.segment(0).codes.count) == (wanted, count)
    found = run("encode", clip, "-o", "b.vqt", "--budget", "33")
    assert "budget 33: this bundle takes 1 to 32" in complaint(found)
    assert not Path("b.vqt").exists()


def test_a_video_from_a_pipe(run: Any, clip: Path) -> None:
    found = run("encode", "-", "-o", "a.vqt", stdin=clip.read_bytes())
    assert (found.code, found.lines) == (0, ["a.vqt"]), found.err
    run("encode", clip, "-o", "b.vqt")
    assert Path("a.vqt").read_bytes() == Path("b.vqt").read_bytes()
    assert "a pipe is for one video" in complaint(run("encode", "-", clip, "-o", "c"), 2)
    assert "-o out/: what comes through a pipe has no name" in complaint(
        run("encode", "-", "-o", "out/", stdin=clip.read_bytes()), 2
    )
    Path("out").mkdir()
    assert "-o out: a folder, and a pipe's video has no name" in complaint(
        run("encode", "-", "-o", "out", stdin=clip.read_bytes())
    )


def test_what_is_no_video_in_a_pipe_is_called_so(run: Any) -> None:
    found = run("encode", "-", "-o", "a.vqt", stdin=b"no video")
    assert complaint(found).startswith("vqedge: -: is not a video")
    found = run("encode", "-", "-o", "a.vqt", "--json", stdin=b"no video")
    assert json.loads(found.lines[0])["files"][0]["video"] == "-"


def test_a_file_into_a_pipe(run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("encode", clip, "-o", "a.vqt")
    pipe = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(pipe))
    assert run("encode", clip, "-o", "-").code == 0
    sys.stdout.flush()
    assert pipe.getvalue() == Path("a.vqt").read_bytes()
    assert [path.name for path in Path().iterdir()] == ["a.vqt"]
    folder_of(clip, "a.mp4", "b.mp4")
    for arguments, words, code in (
        (("clips", "-o", "-"), "clips: a folder; -o - writes one video", 1),
        (("clips/a.mp4", "clips/b.mp4", "-o", "-"), "a pipe is for one video", 2),
        ((clip, "-o", "-", "--json"), "-o -: the file goes to a pipe, without --json", 2),
    ):
        assert words in complaint(run("encode", *arguments), code)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "-o -: the file goes to a pipe" in complaint(run("encode", clip, "-o", "-"), 2)
    assert pipe.getvalue() == Path("a.vqt").read_bytes(), "nothing but the file"


def test_a_pipe_without_end(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vqedge.commands.pipe.MAX_STDIN_BYTES", 1000)
    found = run("encode", "-", "-o", "a.vqt", stdin=bytes(1001))
    assert "more than 0 GiB from the pipe" in complaint(found)
    assert not Path("a.vqt").exists()


def test_a_video_that_cannot_be_read(run: Any) -> None:
    Path("a.mp4").write_bytes(b"no video")
    assert complaint(run("encode", "a.mp4", "-o", "a")).startswith("vqedge: a.mp4: ")
    assert complaint(run("encode", "none.mp4", "-o", "a")).startswith("vqedge: none.mp4: no such")
    assert [path.name for path in Path().iterdir()] == ["a.mp4"], "something was left behind"


def test_what_is_no_file_is_not_hashed(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody writes to, and a device without end."""
    monkeypatch.setattr("vqedge_runtime.stored.file_sha256", lambda _: pytest.fail("it was read"))
    os.mkfifo("pipe.mp4")
    for name in ("pipe.mp4", "/dev/zero"):
        found = run("encode", name, "-o", "a.vqt")
        assert f"{name}: is not a regular file; pipe it into -" in complaint(found)


def test_a_folder_of_frames_is_one_video(run: Any, clip: Path) -> None:
    Path("frames").mkdir()
    with av.open(str(clip)) as container:
        for number, frame in zip(range(9), container.decode(video=0), strict=False):
            frame.to_image().save(f"frames/{number}.png")
    assert run("encode", "frames", "-o", "a").lines == ["a.vqt"]
    origin = open_vqt(Path("a.vqt")).header.origin
    assert origin.size_bytes == sum(path.stat().st_size for path in Path("frames").iterdir())
    Path("frames/3.png").write_bytes(Path("frames/4.png").read_bytes())
    run("encode", "frames", "-o", "a")
    assert open_vqt(Path("a.vqt")).header.origin.sha256 != origin.sha256


# ---- many


def test_a_folder_with_a_bad_file(run: Any, clip: Path, encoder: FakeEncoder) -> None:
    videos = folder_of(clip, "a.mp4", "bad.mp4", "c.MTS", "sub/b.mkv", ".hidden.mp4", "notes.txt")
    found = run("encode", videos, "-o", "out")
    assert found.lines == ["out/a.mp4.vqt", "out/c.MTS.vqt", "out/sub/b.mkv.vqt"]
    assert "1 of 4 videos could not be encoded" in complaint(found)
    assert "failed: clips/bad.mp4: is not a video" in found.err
    assert encoder.calls == 3
    assert sorted(map(str, Path("out").rglob("*.*"))) == found.lines


def test_a_link_that_leads_nowhere_is_a_video_that_fails(run: Any, clip: Path) -> None:
    """As to a disk that is not mounted."""
    videos = folder_of(clip, "a.mp4")
    (videos / "b.mp4").symlink_to("nowhere.mp4")
    (videos / "notes.txt").symlink_to("nowhere.txt")
    found = run("encode", videos, "-o", "out")
    assert found.lines == ["out/a.mp4.vqt"] and "1 of 2 videos" in complaint(found)
    assert "failed: clips/b.mp4: no such file or folder" in found.err


def test_a_full_disk_is_told_by_the_name_of_the_file(
    run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(batches.VqtWriter, "finish", full)
    told = "out/a.vqt: No space left on device; make room there or allow more"
    assert complaint(run("encode", clip, "-o", "out/a.vqt")) == f"vqedge: {told}"
    found = run("encode", clip, "-o", "out/a.vqt", "--json")
    assert json.loads(found.lines[0])["files"][0]["error"] == told
    assert not list(Path("out").iterdir())


def test_paths_go_to_stdout_while_the_bar_is_at_a_terminal(
    run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    found = run("encode", folder_of(clip, "a.mp4", "b [x264].mp4"), "-o", "out")
    assert found.lines == ["out/a.mp4.vqt", "out/b [x264].mp4.vqt"]
    assert "b [x264].mp4" in terminal.getvalue()


def test_an_interrupt_leaves_what_is_done_and_no_half(
    run: Any, clip: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos, encode = folder_of(clip, "a.mp4", "b.mp4", "c.mp4"), encoder.encode

    def interrupted(*arguments: Any) -> Any:
        if encoder.calls == 1:
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(encoder, "encode", interrupted)
    found = run("encode", videos, "-o", "out")
    assert (found.code, found.lines) == (130, ["out/a.mp4.vqt"])
    assert [path.name for path in Path("out").iterdir()] == ["a.mp4.vqt"]


def test_whoever_gives_up_waits_for_no_video(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = list[str](), Source._decoded

    def slowly(source: Source, packet: Any) -> Any:
        decoded.append(source.path.name)
        time.sleep(0.05 if source.path.name == "long.mpg" else 0)
        return decode(source, packet)

    monkeypatch.setattr(Source, "_decoded", slowly)
    write_slides(tmp_path / "short.mpg", 9, "mpeg2video", rate=25)
    write_slides(tmp_path / "long.mpg", 3000, "mpeg2video", rate=25)
    jobs = [Job(tmp_path / f"{name}.mpg", tmp_path / name) for name in ("short", "long")]
    running = BatchEncoder(FakeEncoder(32, 576), bundle.manifest, 32).run(jobs)
    assert not next(running).error
    running.close()
    assert decoded.count("long.mpg") < 3000


def test_the_same_encoder_runs_again(bundle: Bundle, clip: Path, tmp_path: Path) -> None:
    batch = BatchEncoder(FakeEncoder(32, 576), bundle.manifest, 32)
    job = Job(clip, tmp_path / "a.vqt")
    for _ in range(2):
        assert [outcome.segments for outcome in batch.run([job])] == [1]
        job.out.unlink()


def test_a_part_of_a_video(run: Any, clip: Path, qa: VideoQA) -> None:
    parts: dict[tuple[str, ...], tuple[float | None, float | None]] = {
        ("--start", "0.5", "--end", "2"): (0.5, 2.0),
        ("--start", "1"): (1.0, None),
        ("--end", "1.5"): (None, 1.5),
    }
    for flags, span in parts.items():
        assert run("encode", clip, "-o", "a.vqt", *flags).code == 0, "another part is another file"
        qa.save(qa.encode(clip, None, *span), "b.vqt")
        assert Path("a.vqt").read_bytes() == Path("b.vqt").read_bytes()
    assert "end 9 is outside the video" in complaint(run("encode", clip, "-o", "c", "--end", "9"))
    videos = folder_of(clip, "a.mp4", "b.mp4")
    found = run("encode", videos, "-o", "out", "--start", "1")
    assert "clips: a folder, and a part is of one video" in complaint(found)
    assert not Path("c.vqt").exists() and not Path("out").exists()


def test_what_is_up_to_date_is_left_alone(run: Any, clip: Path, encoder: FakeEncoder) -> None:
    videos = folder_of(clip, "a.mp4", "b.mp4", "c.mp4")
    assert run("encode", videos, "-o", "out").code == 0
    assert encoder.calls == 3
    found = run("encode", videos, "-o", "out")
    assert (found.code, encoder.calls) == (0, 3) and "3 were up to date" in found.err
    assert len(found.lines) == 3, "they are results all the same"
    with (videos / "a.mp4").open("ab") as file:
        file.write(b"more")
    Path("out/b.mp4.vqt").write_bytes(Path("out/b.mp4.vqt").read_bytes()[:-1])
    Path("out/c.mp4.vqt").unlink()
    assert "up to date" not in run("encode", videos, "-o", "out").err
    assert encoder.calls == 6
    run("encode", videos, "-o", "out", "--budget", "8")
    run("encode", videos, "-o", "out", "--budget", "8", "--segment", "1")
    assert encoder.calls == 6 + 3 + 9


def test_what_another_encoder_may_have_made_is_told_and_overwritten_if_asked(
    run: Any, clip: Path, encoder: FakeEncoder
) -> None:
    command = ("encode", clip, "-o", "a.vqt")
    run(*command)
    assert "whichever" not in run(*command).err
    found = run(*command, "--backend", "onnxruntime")
    assert (found.code, encoder.calls) == (0, 1)
    assert "1 were up to date, by whichever encoder: --overwrite encodes them anew" in found.err
    assert "1 encoded" in run(*command, "--backend", "onnxruntime", "--overwrite").err
    assert encoder.calls == 2


def test_no_encoder_is_opened_where_nothing_is_to_be_encoded(
    run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("encode", clip, "-o", "a.vqt")
    monkeypatch.setattr(command, "open_encoder", lambda *_: pytest.fail("it was opened"))
    found = run("encode", clip, "-o", "a.vqt", "--json")
    assert found.code == 0 and "encoder:" not in found.err
    assert json.loads(found.lines[0])["backend"] == {"encoder": "none (nothing to encode)"}
    assert "none.mp4: no such file" in complaint(run("encode", "none.mp4", "-o", "b.vqt"))


def test_an_encoder_that_cannot_run_is_no_fault_of_a_video(
    run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> FakeEncoder:
        raise BackendUnavailable("exported with --plugin-node")

    monkeypatch.setattr(command, "open_encoder", refuses)
    found = run("encode", folder_of(clip, "a.mp4", "b.mp4"), "-o", "out")
    assert complaint(found) == "vqedge: exported with --plugin-node"
    assert found.err.count("plugin-node") == 1 and not Path("out").exists()
    gone = EncoderBackend(refuses, lambda: Missing("not installed", "install it"))
    monkeypatch.setitem(ENCODERS, "openvino", gone)
    found = run("encode", "none.mp4", "-o", "a.vqt", "--backend", "openvino")
    assert "encoder backend openvino: not installed; install it" in complaint(found)


def test_what_came_before_the_first_video_is_told_though_no_encoder_opens(
    bundle: Bundle, clip: Path, tmp_path: Path
) -> None:
    def refuses() -> FakeEncoder:
        raise BackendUnavailable("no driver")

    jobs = [Job(path, tmp_path / path.stem) for path in (tmp_path / "none.mp4", clip)]
    running = BatchEncoder(refuses, bundle.manifest, 32).run(jobs)
    assert "no such file" in next(running).error
    with pytest.raises(BackendUnavailable, match="no driver"):
        next(running)


def test_a_vqt_is_refused_before_it_is_read_whole(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "origin_from_path", lambda _: pytest.fail("it was hashed"))
    jobs = [Job(tmp_path / name, tmp_path / "a") for name in ("there.vqt", "none.vqt")]
    jobs[0].video.touch()
    told = [outcome.error for outcome in BatchEncoder(FakeEncoder(), bundle.manifest, 8).run(jobs)]
    assert [line.rpartition(": ")[2] for line in told] == [
        "a .vqt is encoded already; give a video",
        "no such file; check the path",
    ]


def test_fewer_bits_make_a_smaller_file_that_is_another(
    run: Any, clip: Path, encoder: FakeEncoder
) -> None:
    sizes = []
    for bits in ((), ("--bits", "8"), ("--bits", "2")):
        assert run("encode", clip, "-o", "out.vqt", *bits).code == 0
        sizes.append(Path("out.vqt").stat().st_size)
    assert encoder.calls == 3, "none is up to date for another number of bits"
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 3
    assert open_vqt(Path("out.vqt")).header.bits == 2


def test_as_json(run: Any, clip: Path) -> None:
    videos = folder_of(clip, "a.mp4", "bad.mp4")
    found = run("encode", videos, videos / "a.mp4", "-o", "out", "--json")
    assert found.code == 1 and len(found.lines) == 1
    first, second = json.loads(found.lines[0])["files"]
    assert first["out"] == "out/a.mp4.vqt" and not first["error"]
    assert first["bytes"] == Path("out/a.mp4.vqt").stat().st_size and first["segments"] == 1
    assert second["video"] == "clips/bad.mp4" and "is not a video" in second["error"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["clips/a.mp4", "clips/sub/b.mp4", "-o", "x.vqt"], "2 videos go to a folder"),
        (["clips/a.mp4", "clips/sub/a.mp4", "-o", "out"], "two videos are called a.mp4"),
        (["clips", "-o", "x.vqt"], "3 videos go to a folder"),
        (["empty", "-o", "out"], "empty: no videos and no images in it (known endings: .3g2, "),
        (["clips/a.mp4", "empty", "-o", "out"], "empty: no videos and no images in it"),
        (["tokens", "-o", "out"], "tokens: holds .vqt files, which are encoded already; name one"),
        (["tokens/sub/a.vqt", "-o", "out/"], "a.vqt: a .vqt is encoded already; give a video"),
    ],
)
def test_what_cannot_be_asked(run: Any, clip: Path, arguments: list[str], words: str) -> None:
    folder_of(clip, "a.mp4", "sub/a.mp4", "sub/b.mp4")
    Path("empty").mkdir()
    Path("tokens/sub").mkdir(parents=True)
    Path("tokens/sub/a.vqt").write_bytes(b"VQT1")
    assert words in complaint(run("encode", *arguments))
    assert not Path("out").exists() and not Path("x.vqt").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_name_moves_no_cursor(
    run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    """A pipe gets the names as they are."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    folder_of(clip, "a\x1b[31m\u202f.mp4", "bad\x1b[32m.mp4")
    found = run("encode", "clips", "-o", "out")
    told = "a\\x1b[31m\u202f" if terminal else "a\x1b[31m\u202f"
    assert found.lines == [f"out/{told}.mp4.vqt"]
    assert r"failed: clips/bad\x1b[32m.mp4: " in found.err and "\x1b[3" not in found.err


# ---- segments


def test_segments(run: Any, clip: Path, qa: VideoQA) -> None:
    assert run("encode", clip, "-o", "a.vqt", "--segment", "1").code == 0
    file = open_vqt(Path("a.vqt"))
    assert file.spans_us == ((0, 10**6), (10**6, 10**6), (2 * 10**6, 10**6))
    assert file.header.window_us == 10**6
    times_us = [time for number in range(3) for time in file.segment(number).times_us]
    assert times_us == sorted(times_us) and len(times_us) == 24
    whole = qa.encode(clip, start_s=1.0, end_s=2.0)
    part = qa.encode("a.vqt", start_s=1.2)
    assert np.array_equal(part.tokens.rows, whole.tokens.rows)
    assert (part.start_s, part.duration_s, part.budget) == (1.0, 1.0, 32)


@pytest.mark.parametrize(
    ("segment_s", "count"), [(2.0, 2), (2.6, 1), (2.4, 2), (60, 1), (0.3, 10), (0.6666667, 4)]
)
def test_a_short_rest_is_no_segment(run: Any, clip: Path, segment_s: float, count: int) -> None:
    run("encode", clip, "-o", "a.vqt", "--segment", segment_s)
    spans = open_vqt(Path("a.vqt")).spans_us
    assert sum(length for _, length in spans) == 3_000_000
    assert len(spans) == count


def test_segments_that_no_file_holds_are_refused_before_any_work(
    run: Any, clip: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vqedge_runtime.vqt.file.MAX_SEGMENTS", 9)
    words = complaint(run("encode", clip, "-o", "a.vqt", "--segment", "0.3"))
    assert (
        "10 segments of 0.3 s, and one file is sure to hold only 9" in words
        and "--segment" in words
    )
    assert "give seconds" in complaint(run("encode", clip, "-o", "a.vqt", "--segment", "inf"), 2)
    words = complaint(run("encode", clip, "-o", "a.vqt", "--segment", "1e14"))
    assert "segments' length in microseconds 100000000000000000000 is not within 0" in words
    assert encoder.calls == 0


def test_a_claimed_length_of_ages_takes_no_memory(run: Any, encoder: FakeEncoder) -> None:
    write_far(Path("far.mkv"), 10**14)
    tracemalloc.start()
    words = complaint(run("encode", "far.mkv", "-o", "a.vqt", "--segment", "10000"))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "10000000 segments of 10000 s, and one file is sure to hold only" in words
    assert peak_bytes < 32 << 20


def test_times_that_no_file_holds_stop_no_other(run: Any, clip: Path) -> None:
    videos = folder_of(clip, "b.mp4")
    write_far(videos / "a.mkv", 2 * 10**16)
    found = run("encode", videos, "-o", "out")
    assert found.lines == ["out/b.mp4.vqt"]
    assert "1 of 2 videos could not be encoded" in complaint(found)
    assert "failed: out/a.mkv.vqt: a time is none that a file can hold" in found.err


@pytest.mark.parametrize("workers", [1, 5])
def test_segments_of_files_that_cannot_seek(bundle: Bundle, tmp_path: Path, workers: int) -> None:
    """In their order, whichever thread decodes them, and no file opened again for each."""
    jobs = []
    for number in range(2):
        path = tmp_path / f"{number}.mpg"
        write_slides(path, 200, "mpeg2video", rate=25)
        jobs.append(Job(path, tmp_path / f"{number}.vqt"))
    batch = BatchEncoder(FakeEncoder(32, 576), bundle.manifest, 32, 0.25, workers)
    with patch.object(clip_module, "opened", wraps=clip_module.opened) as opened:
        outcomes = list(batch.run(jobs))
    assert [outcome.error for outcome in outcomes] == ["", ""]
    assert opened.call_count <= 6  # for the length, and to find that it does not seek
    for job, outcome in zip(jobs, outcomes, strict=True):
        spans = open_vqt(job.out).spans_us
        assert outcome.segments == len(spans) >= 25
        assert spans == tuple(sorted(spans))


@pytest.mark.parametrize("share", [0.5, 0.55, 0.6])
def test_a_video_that_ends_early(run: Any, share: float) -> None:
    """The header says a minute, about half of the frames is there."""
    path = Path("cut.mkv")
    write_slides(path, 60)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    found = run("encode", path, "-o", "a.vqt", "--segment", "10")
    assert found.code == 0 and "cut.mkv: ends at " in found.err
    spans = open_vqt(Path("a.vqt")).spans_us
    assert 2 <= len(spans) <= 4 and spans[1] == (10_000_000, 10_000_000)


def test_a_disk_that_fails_for_a_moment_leaves_no_file_that_ends_there(
    run: Any, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = clip.stat().st_size // 2

    class Failing(source_module._NamelessFile):
        def __init__(self, file: io.FileIO) -> None:
            super().__init__(file)
            self._file, self.read = file, self._read

        def _read(self, size: int) -> bytes:
            if half < self.tell() < 1.8 * half:  # its index is after that
                raise OSError(5, "Input/output error")
            return bytes(self._file.read(size))

    arguments = ("encode", clip, "-o", "a.vqt", "--segment", "0.5")
    with monkeypatch.context() as patched:
        patched.setattr(source_module, "_READ_SIZE_BYTES", 4096)
        patched.setattr(source_module, "_NamelessFile", Failing)
        assert "demo.mp4: cannot be read from disk" in complaint(run(*arguments))
    assert not Path("a.vqt").exists()
    assert run(*arguments).code == 0
    assert sum(length for _, length in open_vqt(Path("a.vqt")).spans_us) == 3_000_000


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(bundle: Bundle, tmp_path: Path) -> None:
    """Two hours in windows of a minute take about as much memory as one minute.

    The frames of all windows would be 145 MB, one of each window 18 MB.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process is read from /proc/self/status, which Linux has")
    peaks_mb = []
    for minutes in (1, 120):
        path = tmp_path / f"{minutes}.mkv"
        write_slides(path, 60 * minutes)
        code = f"""
from pathlib import Path
from vqedge.bundle import open_bundle
from vqedge_runtime.batch import BatchEncoder, Job
from vqedge_runtime.encoders.fake import FakeEncoder
manifest = open_bundle(Path({str(bundle.root)!r})).manifest
batch = BatchEncoder(FakeEncoder(32, 576), manifest, 32, 60.0)
(outcome,) = batch.run([Job(Path({str(path)!r}), Path({str(path) + ".vqt"!r}))])
assert not outcome.error and outcome.segments == {minutes}, outcome
lines = Path("/proc/self/status").read_text().splitlines()
print(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks_mb.append(float(done.stdout))
    print(f"peak memory {peaks_mb[0]:.1f} MB of a minute, {peaks_mb[1]:.1f} MB of two hours")
    assert peaks_mb[1] - peaks_mb[0] < 16


def write_slides(path: Path, count: int, codec: str = "mpeg4", rate: int = 1) -> None:
    """Small frames, `rate` a second."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 10
        stream.codec_context.thread_count = 1  # more make other slices, and another file
        pixels = np.zeros((48, 64, 3), np.uint8)
        for number in range(count):
            pixels[:, number % 64] = number % 251
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))


def write_far(path: Path, last_ms: int) -> None:
    """Two frames, ages apart."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mjpeg", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for time_ms in (0, last_ms):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


# ---- in place of a video


def test_asking_a_file_reads_the_rows_of_the_video(run: Any, clip: Path, qa: VideoQA) -> None:
    assert isinstance(qa.llm, FakeLanguageModel)
    run("encode", clip, "-o", "a.vqt")
    for video in (clip, "a.vqt"):
        qa.llm.enqueue("Red.")
        found = run("ask", video, "What?", "--json")
        assert found.code == 0, found.err
        asked = json.loads(found.lines[0])["video"]
        span = {"start_s": 0.0, "end_s": 3.0, "duration_s": 3.0}
        assert asked == {"path": str(video), "frames": 8, **span}
    (first, _), (second, _) = qa.llm.calls
    assert first == second


def test_asking_about_a_segment(run: Any, clip: Path, qa: VideoQA) -> None:
    assert isinstance(qa.llm, FakeLanguageModel)
    run("encode", clip, "-o", "a.vqt", "--segment", "1")
    for text in ("Red.", "Blue.", "Gray."):
        qa.llm.enqueue(text)
    assert run("ask", "a.vqt", "What?").lines == [
        "a.vqt 0-1 s\tWhat?\tRed.",
        "a.vqt 1-2 s\tWhat?\tBlue.",
        "a.vqt 2-3 s\tWhat?\tGray.",
    ]
    for flags in (["--evidence"], ["--keep-kv"]):
        found = run("ask", "a.vqt", "What?", *flags)
        assert "about one video; name a .vqt, and of several segments one" in complaint(found)
    qa.llm.enqueue("Red.")
    found = run("ask", "a.vqt", "What?", "--start", "1.5")
    assert found.lines == ["Red."] and "segment from 1 to 2 s" in found.err
    for span in (["--start", "1.5", "--end", "2.9"], ["--start", "3"], ["--start", "99"]):
        told = complaint(run("ask", "a.vqt", "What?", *span))
        assert "no single segment holds " in told and "(segments: 3 of 1 s, from 0 to 3 s)" in told


def test_asking_about_what_comes_through_a_pipe(run: Any, clip: Path, qa: VideoQA) -> None:
    assert isinstance(qa.llm, FakeLanguageModel)
    run("encode", clip, "-o", "a.vqt", "--segment", "2")
    Path("q.txt").write_text("What?\nWho?\n")
    for _ in range(7):
        qa.llm.enqueue("Red.")
    video, tokens = clip.read_bytes(), Path("a.vqt").read_bytes()
    found = run("ask", "-", "What?", "--json", stdin=video)
    assert found.code == 0, found.err
    assert json.loads(found.lines[0])["video"]["path"] == "-"
    answers = ["-\tWhat?\tRed.", "-\tWho?\tRed."]
    assert run("ask", "-", "--questions", "q.txt", stdin=video).lines == answers
    found = run("ask", "-", "What?", stdin=tokens)
    assert [line.split("\t")[0] for line in found.lines] == ["- 0-2 s", "- 2-3 s"]
    assert run("ask", "-", "What?", "--start", "1", stdin=tokens).lines == ["Red."]
    assert complaint(run("ask", "-", "What?", stdin=b"x")).startswith("vqedge: -: is not a video")
    found = run("ask", "-", "--questions", "q.txt", "--json", stdin=b"x")
    assert json.loads(found.lines[0])["failed"][0].startswith("-: is not a video")
    for flags in ([], ["--questions", "-"]):
        found = run("ask", "-", *flags, stdin=video)
        assert "the video comes through the pipe; give the question" in complaint(found, 2)
    assert "--keep-kv: writes beside" in complaint(run("ask", "-", "What?", "--keep-kv"), 2)


def test_words_of_a_segment(
    run: Any, clip: Path, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The codes that become words are those from `--start` on."""
    monkeypatch.setattr(words_command, "vocabulary_of_bundle", lambda _: None)
    monkeypatch.setattr(words_command, "open_bridge", lambda *_: FakeBridge(576))
    monkeypatch.setattr(words_command, "open_encoder", lambda *_: encoder)
    told: list[Any] = []

    def piece(_: Any, tokens: Any) -> PromptPiece:
        told.append(tokens.codes.values)
        return PromptPiece("", (1, 2))

    monkeypatch.setattr(words_command, "prompt_piece", piece)
    run("encode", clip, "-o", "a.vqt", "--segment", "1")
    assert "say which with a start" in complaint(run("encode", "a.vqt", "--as", "ids"))
    for video in ("a.vqt", clip):
        found = run("encode", video, "--as", "ids", "--start", "2")
        assert found.lines == ["1 2"], found.err
    last = open_vqt(Path("a.vqt")).segment(2).codes.values
    assert all(np.array_equal(values, last) for values in told) and len(told) == 2
    assert run("encode", "-", "--as", "ids", stdin=clip.read_bytes()).lines == ["1 2"]
    assert "-: is not a video" in complaint(run("encode", "-", "--as", "ids", stdin=b"no video"))


def test_words_of_one_video_take_no_flags_of_files(run: Any, clip: Path) -> None:
    flags = ("-o", "x.vqt", "--segment", "1", "--bits", "4", "--jobs", "3")
    found = run("encode", clip, clip, "--as", "ids", *flags)
    named = "2 videos, -o, --segment, --bits, --jobs"
    assert complaint(found, 2).endswith(f"one video, whole; {named} does not go with it")


def test_a_budget_of_what_has_its_tokens(run: Any, clip: Path, qa: VideoQA) -> None:
    run("encode", clip, "-o", "a.vqt")
    found = run("ask", "a.vqt", "What?", "--budget", "8")
    assert "a.vqt has its tokens already; leave the budget out" in complaint(found)
    assert "a.vqt: a .vqt is encoded already; give a video" in complaint(run("bench", "a.vqt"))


def test_bench_with_a_budget(
    run: Any, clip: Path, qa: VideoQA, encoder: FakeEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    qa.llm = Timed()
    backend = EncoderBackend(lambda *_: encoder, lambda: None)
    for place in (bench, auto):
        monkeypatch.setattr(place, "ENCODERS", {"fake": backend})
    budgets, encode = list[int](), encoder.encode

    def noted(frames: Any, budget: int, *text: Any) -> Any:
        budgets.append(budget)
        return encode(frames, budget, *text)

    monkeypatch.setattr(encoder, "encode", noted)
    for flags, budget, count in (((), 32, 32), (("8",), 8, 8), (("auto",), ADAPTIVE, 16)):
        found = run("bench", clip, "--runs", "1", "--json", *(["--budget"] * len(flags)), *flags)
        assert found.code == 0, found.err
        assert json.loads(found.lines[0])["tokens"] == count
        assert budgets == [budget] * 4, "cold and side by side, warm-ups too"
        budgets.clear()
    found = run("bench", clip, "--budget", "33")
    assert "budget 33: this bundle takes 1 to 32" in complaint(found)
    assert not budgets


def test_saving_what_was_encoded(clip: Path, qa: VideoQA, tmp_path: Path) -> None:
    video = qa.encode(clip, budget=8)
    qa.save(video, tmp_path / "a.vqt")
    again = qa.encode(tmp_path / "a.vqt")
    qa.save(again, tmp_path / "b.vqt")
    assert (tmp_path / "a.vqt").read_bytes() == (tmp_path / "b.vqt").read_bytes()
    assert np.array_equal(again.tokens.rows, video.tokens.rows)
    assert again.tokens.margin is None and video.tokens.margin is not None
    assert again.times_s == pytest.approx(video.times_s, abs=1e-6)
    frames = np.zeros((8, 224, 224, 3), np.uint8)
    qa.save(qa.encode_frames(frames), tmp_path / "c.vqt")
    assert open_vqt(tmp_path / "c.vqt").header.origin.size_bytes == 0
    qa.save(video, tmp_path / "new/d.vqt")
    with pytest.raises(VqtError, match=r"a\.vqt: File exists; check the path"):
        qa.save(video, tmp_path / "a.vqt/d.vqt")
    qa.close()
    with pytest.raises(Exception, match="closed"):
        qa.encode(tmp_path / "a.vqt")


def test_what_cannot_be_kept_is_told(
    run: Any,
    clip: Path,
    qa: VideoQA,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert isinstance(qa.llm, FakeLanguageModel)
    monkeypatch.setenv("VQEDGE_CACHE", "cache")
    run("encode", clip, "-o", "a.vqt")
    Path("a.kv").write_text("another program's")
    qa.llm.enqueue("Red.")
    found = run("ask", "a.vqt", "What?", "--keep-kv")
    assert (found.code, found.lines) == (0, ["Red."])
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "a.kv: cannot be written, or is another program's" in record.getMessage()
    Path("a.kv").unlink()
    qa.llm.enqueue("Red.")
    run("ask", "a.vqt", "What?", "--keep-kv")
    assert Path("a.kv").exists() and len(caplog.records) == 1


def test_a_part_of_a_video_is_no_file_of_the_whole(
    run: Any, clip: Path, qa: VideoQA, encoder: FakeEncoder
) -> None:
    for span in ((1.0, 2.0), (None, 1.0)):
        qa.save(qa.encode(clip, None, *span), "a.vqt")
        qa.save(qa.encode("a.vqt"), "b.vqt")
        assert Path("a.vqt").read_bytes() == Path("b.vqt").read_bytes()
        for segments in ((), ("--segment", "1")):
            assert run("encode", clip, "-o", "a.vqt", *segments).code == 0
            spans = open_vqt(Path("a.vqt")).spans_us
            assert (spans[0][0], sum(spans[-1])) == (0, 3_000_000)
            qa.save(qa.encode("a.vqt", start_s=0.0), "a.vqt")
    qa.save(qa.encode(clip), "a.vqt")
    assert "1 were up to date" in run("encode", clip, "-o", "a.vqt").err


def test_a_video_that_has_changed_is_not_saved(clip: Path, qa: VideoQA, tmp_path: Path) -> None:
    """Its codes would carry the sha256 of another."""
    frames = tmp_path / "frames"
    frames.mkdir()
    with av.open(str(clip)) as container:
        for number, frame in zip(range(3), container.decode(video=0), strict=False):
            frame.to_image().save(frames / f"{number}.png")
    shutil.copy(clip, tmp_path / "a.mp4")
    for source, changed in ((tmp_path / "a.mp4",) * 2, (frames, frames / "1.png")):
        video = qa.encode(source)
        qa.save(video, tmp_path / "a.vqt")
        later_ns = changed.stat().st_mtime_ns + 10**9
        os.utime(changed, ns=(later_ns, later_ns + 10**12))
        with pytest.raises(VideoError, match="has changed since it was encoded; encode it again"):
            qa.save(video, tmp_path / "b.vqt")
    assert not (tmp_path / "b.vqt").exists()


LEARNED = {"kind": "codebook", "codebook": {"levels": 4, "entries": 1024, "sha256": "ab" * 32}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "codebook", "levels": 4, "width": 1024, "codebook_sha256": "ab" * 32}, "kind"),
        ({"bridge_sha256": "ab" * 32}, "another bundle .abababab, not .*give the bundle it was"),
        ({"width": 575}, "width 575, the bundle has 576"),
        ({"frames": 7}, r"map_shape \(7, 16, 16\), the bundle has \(8, 16, 16\)"),
        ({"codes": 64}, "codes 64, the bundle has 32"),
    ],
)
def test_a_file_of_another_bundle(
    clip: Path, qa: VideoQA, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    from vqedge_runtime.vqt import Header, check_fit

    path = tmp_path / "a.vqt"
    qa.save(qa.encode(clip), path)
    header = open_vqt(path).header
    check_fit(header, qa.manifest)
    with pytest.raises(VqtError, match=words):
        check_fit(Header(**{**vars(header), **change}), qa.manifest)


def test_a_file_of_another_codebook(tmp_path: Path) -> None:
    from vqedge_runtime.vqt import Header, check_fit, header_for

    facts = tiny_facts(quantizer=tiny_quantizer(**LEARNED))
    manifest = write_bundle(tmp_path / "a.vqedge", facts=facts).manifest
    header = header_for(manifest, 8)
    check_fit(header, manifest)
    with pytest.raises(VqtError, match=r"another codebook \(cdcdcdcd, not abababab\)"):
        check_fit(Header(**{**vars(header), "codebook_sha256": "cd" * 32}), manifest)


def test_eval_takes_a_file(run: Any, clip: Path, qa: VideoQA, encoder: FakeEncoder) -> None:
    assert isinstance(qa.llm, FakeLanguageModel)
    run("encode", clip, "-o", "a.vqt")
    calls = encoder.calls
    line = {"video": "a.vqt", "question": "What?", "answer": "red"}
    Path("mine.jsonl").write_text(json.dumps(line))
    qa.llm.enqueue("Red.")
    found = run("eval", "--suite", "mine.jsonl", "--json")
    assert json.loads(found.lines[0])["accuracy"] == 1.0 and encoder.calls == calls
    qa.llm.enqueue("Red.")
    shuffled = run("eval", "--suite", "mine.jsonl", "--baselines", "--json")
    assert "a.vqt holds no frames to shuffle" in complaint(shuffled)


def test_eval_refuses_a_budget_for_a_file_before_anything_is_asked(
    run: Any, clip: Path, qa: VideoQA
) -> None:
    assert isinstance(qa.llm, FakeLanguageModel)
    run("encode", clip, "-o", "a.vqt")
    lines = [{"video": str(v), "question": "What?", "answer": "red"} for v in (clip, "a.vqt")]
    Path("mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = run("eval", "--suite", "mine.jsonl", "--budget", "8")
    assert "--budget: a.vqt holds no frames to encode; name its video" in complaint(found)
    assert found.code == 1 and not qa.llm.calls


def test_inspecting_a_file(run: Any, clip: Path) -> None:
    run("encode", clip, "-o", "a.vqt", "--segment", "1.5")
    found = run("inspect", "a.vqt", "--json")
    facts = json.loads(found.lines[0])
    assert facts["kind"] == "vqt" and facts["size_bytes"] == Path("a.vqt").stat().st_size
    assert [part["tokens"] for part in facts["segments"]] == [32, 32]
    assert facts["origin"]["size_bytes"] == clip.stat().st_size
    assert facts["header"]["kind"] == "kmeans"
    for name in ("A.VQT", "tokens"):
        shutil.copy("a.vqt", name)
        assert json.loads(run("inspect", name, "--json").lines[0])["kind"] == "vqt"
    Path("a.vqt").write_bytes(b"x")
    assert complaint(run("inspect", "a.vqt")).startswith("vqedge: a.vqt: not a .vqt file")


def test_the_errors_are_of_their_kinds() -> None:
    assert issubclass(VqtError, Exception) and not issubclass(VqtError, VideoError | ConfigError)
