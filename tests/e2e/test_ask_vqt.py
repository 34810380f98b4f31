"""`.vqt` files on the real bundle: same rows and answers as the video, by every road."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import run_vqedge

from vqedge.data.generated import GeneratedClips
from vqedge.data.seeds import SYNTHETIC_SEED
from vqedge.errors import ConfigError, VqtError
from vqedge_runtime import VideoQA
from vqedge_runtime.video import clip_from_path

QUESTIONS = ("What color is the circle?", "How many objects are there?", "What happens?")


def test_the_commands_agree_in_processes_of_their_own(
    bundle: Path, demo_clip: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.vqt"
    done = run_vqedge("encode", demo_clip, "-o", out, "-m", bundle, "--threads", "1")
    assert done.returncode == 0, done.stderr
    answers = []
    for video in (demo_clip, out):
        asked = run_vqedge("ask", video, QUESTIONS[0], "-m", bundle, "--json")
        assert asked.returncode == 0, asked.stderr
        answers.append(json.loads(asked.stdout.splitlines()[-1]))
    first, second = answers
    assert first["answer"] == second["answer"] == "red"
    assert first["tokens"] == second["tokens"]
    assert [answer["video"].pop("path") for answer in answers] == [str(demo_clip), str(out)]
    assert first["video"] == second["video"]
    assert second["timings_ms"]["preprocess"] == 0
    assert first["backend"]["encoder"].startswith("o")
    assert second["backend"]["encoder"] == "none (codes from a file)"
    refused = run_vqedge("ask", out, QUESTIONS[0], "-m", bundle, "--backend", "none")
    assert refused.returncode == 2 and "no encoder backend 'none'" in refused.stderr


@pytest.mark.slow
def test_rows_and_answers_of_held_out_clips(qa: VideoQA, tmp_path: Path) -> None:
    """A dozen here; `scripts/_vqt.py` does three hundred."""
    clips, spec = GeneratedClips(SYNTHETIC_SEED, 12), qa.manifest.encoder
    for number in range(12):
        budget = (8, 16, None)[number % 3]
        video = qa.encode_frames(clips[number].frames(spec.frames, spec.size), budget)
        qa.save(video, tmp_path / "a.vqt")
        again = qa.encode(tmp_path / "a.vqt")
        assert np.array_equal(again.tokens.rows, video.tokens.rows)
        assert again.tokens.rows.std() > 0
        question = QUESTIONS[number % len(QUESTIONS)]
        assert qa.ask(again, question).text == qa.ask(video, question).text
        assert (tmp_path / "a.vqt").stat().st_size < 30_000


def test_the_encoders_own_tokens_are_the_bridges(bundle: Path, qa: VideoQA) -> None:
    """Whoever takes `tokens` of the one graph gets the rows of the two."""
    import onnxruntime as ort

    session = ort.InferenceSession(bundle / "encoder.onnx", providers=["CPUExecutionProvider"])
    spec = qa.manifest.encoder
    frames = GeneratedClips(SYNTHETIC_SEED, 1)[0].frames(spec.frames, spec.size)
    feeds = {"frames": frames, "budget": np.array(32, np.int64)}
    (tokens,) = session.run(["tokens"], feeds)
    rows = qa.encode_frames(frames, 32).tokens.rows
    difference = np.abs(tokens[: len(rows)] - rows)
    print(f"max {difference.max():.2e}, mean {difference.mean():.2e}")
    assert difference.max() < 1e-5


def test_choices_and_choice_scores(qa: VideoQA, demo_clip: Path, tmp_path: Path) -> None:
    video = qa.encode(demo_clip)
    qa.save(video, tmp_path / "a.vqt")
    choices = ["red", "green", "purple"]
    first = qa.ask(video, QUESTIONS[0], choices=choices)
    second = qa.ask(tmp_path / "a.vqt", QUESTIONS[0], choices=choices)
    assert first.choice_scores == second.choice_scores


def test_what_a_bundle_refuses(qa: VideoQA, demo_clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.vqt"
    qa.save(qa.encode(demo_clip), path)
    with pytest.raises(ConfigError, match="has its tokens already"):
        qa.encode(path, budget=8)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(VqtError, match="checksum is not right"):
        qa.ask(path, QUESTIONS[0])


def test_what_was_read_is_kept_beside_the_file(
    bundle: Path, qa: VideoQA, demo_clip: Path, tmp_path: Path
) -> None:
    clip, other = tmp_path / "a.vqt", tmp_path / "b.vqt"
    qa.save(qa.encode(demo_clip), clip)
    spec = qa.manifest.encoder
    mirrored = clip_from_path(demo_clip, spec.frames, spec.size).frames_thwc[:, :, ::-1]
    qa.save(qa.encode_frames(mirrored), other)
    assert qa.encode(clip).tokens.count == qa.encode(other).tokens.count
    written_ns = []
    for _ in range(2):
        done = run_vqedge("ask", clip, QUESTIONS[0], "-m", bundle, "--json", "--keep-kv")
        assert json.loads(done.stdout.splitlines()[-1])["answer"] == "red"
        written_ns.append((tmp_path / "a.kv").stat().st_mtime_ns)
    assert written_ns[0] == written_ns[1], "the second took it as it was"
    kept = (tmp_path / "a.kv").read_bytes()
    with VideoQA.open(bundle) as later:
        assert later.prefill(later.encode(clip), tmp_path / "a.kv").reused
        assert (tmp_path / "a.kv").read_bytes() == kept
        assert not later.prefill(later.encode(other), tmp_path / "a.kv").reused
        assert (tmp_path / "a.kv").read_bytes() != kept
        assert later.ask(later.encode(other), QUESTIONS[0]).text == "red"
