"""Everything a user can get wrong ends in an answer, or in one clear line and exit code 1 or 2."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from command_line import run_vqedge

from vqedge.errors import VqedgeError
from vqedge_runtime import DecodingOptions, VideoQA

ODD = Path(__file__).parents[3] / "shared" / "data" / "odd"


def assert_one_line(done: subprocess.CompletedProcess[str], code: int = 1) -> None:
    complaints = [line for line in done.stderr.splitlines() if line.startswith("vqedge: ")]
    assert done.returncode == code, done.stderr
    assert len(complaints) == 1
    assert "Traceback" not in done.stderr
    assert not done.stdout.strip()


@pytest.mark.slow
@pytest.mark.skipif(not ODD.is_dir(), reason="the folder of odd files is not beside this checkout")
def test_every_odd_file_gives_an_answer_or_one_line(qa: VideoQA) -> None:
    answered = refused = 0
    for path in sorted(ODD.iterdir()):
        try:
            answer = qa.ask(path, "What is in the video?", options=DecodingOptions(max_tokens=8))
        except VqedgeError as error:
            assert "\n" not in str(error), path
            refused += 1
        else:
            assert answer.text.strip(), path
            answered += 1
    assert answered and refused


def test_missing_bundle(demo_clip: Path, tmp_path: Path) -> None:
    done = run_vqedge("ask", demo_clip, "What moves?", "-m", tmp_path / "none.vqedge")
    assert_one_line(done)
    assert "none.vqedge" in done.stderr


@pytest.mark.parametrize("name", ["manifest.json", "encoder.onnx", "llm.gguf", "parity.json"])
def test_flipped_byte(bundle_copy: Path, demo_clip: Path, name: str) -> None:
    path = bundle_copy / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert_one_line(run_vqedge("ask", demo_clip, "What moves?", "-m", bundle_copy))


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        ([""], "question is empty", 1),
        (["What moves?", "--budget", "0"], "--budget 0", 2),
        (["What moves?", "--budget", "65"], "budget 65", 1),
        (["What moves?", "--budget", "many"], "--budget many", 2),
        (["What moves?", "--choices", "red"], "separated by |", 2),
        (["What moves?", "--start", "90"], "90", 1),
        (["What moves?", "--start", "2", "--end", "1"], "is not before --end 1", 2),
    ],
)
def test_bad_argument(
    bundle: Path, demo_clip: Path, arguments: list[str], words: str, code: int
) -> None:
    done = run_vqedge("ask", demo_clip, *arguments, "-m", bundle)
    assert_one_line(done, code)
    assert words in done.stderr


def test_text_named_mp4(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "notes.mp4"
    path.write_text("not a video")
    done = run_vqedge("ask", path, "What moves?", "-m", bundle)
    assert_one_line(done)
    assert "notes.mp4" in done.stderr
