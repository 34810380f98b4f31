"""What of the benchmarks can be checked without a GPU: the reference, and a plain refusal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import av
import pytest
import torch
from bench_memory import FPS, KEY_EVERY, peak_mb, write_clip
from bench_recipe import Seconds, minutes_of
from float64_reference import agreement, float64_choice
from other_runtime import served

from vqedge.nearest_codebook import Metric, nearest_codebook
from vqedge.recipe import OptimConfig, TrainConfig

HERE = Path(__file__).parent


@pytest.mark.parametrize("metric", get_args(Metric))
@pytest.mark.parametrize("codes", [1, 9])
def test_the_float64_reference_agrees_with_numpy(codes: int, metric: Metric) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 20, generator=generator)
    codebook = torch.randn(codes, 20, generator=generator)
    x[4, 3] = torch.nan
    found = [torch.from_numpy(a) for a in nearest_codebook(x.numpy(), codebook.numpy(), metric)]
    result = agreement(found[0], found[1], float64_choice(x, codebook, metric), 1e-4)
    assert (result.flipped, result.wrong) == (0, 0)
    assert result.worst_margin < 1e-4


def test_agreement_counts_flips_and_those_that_matter() -> None:
    x, codebook = torch.tensor([[0.0], [0.999], [5.0]]), torch.tensor([[0.0], [2.0]])
    reference = float64_choice(x, codebook, "l2")  # margins 4, about 0.004, 16
    result = agreement(torch.tensor([1, 1, 1]), reference.margin, reference, 0.1)
    assert (result.flipped, result.wrong, result.ok) == (2, 1, False)


@pytest.mark.parametrize(("kind", "keys"), list(zip(KEY_EVERY, (3, 1), strict=True)))
def test_clips_have_the_key_frames_that_their_kind_says(
    tmp_path: Path, kind: str, keys: int
) -> None:
    write_clip(tmp_path / "a.mp4", 6, KEY_EVERY[kind])
    with av.open(str(tmp_path / "a.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert container.duration == 6_000_000
    assert (len(packets), sum(packet.is_keyframe for packet in packets)) == (6 * FPS, keys)


def test_the_peak_is_that_of_the_process_itself(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import sys; bytes([1]) * int(sys.argv[1])"]
    small, large = (peak_mb([*program, str(n)], tmp_path / "log") for n in (0, 200_000_000))
    assert small < 50 and 190 < large - small < 210
    with pytest.raises(SystemExit, match="no such module"):
        peak_mb([sys.executable, "-c", "raise ImportError('no such module')"], tmp_path / "log")


@pytest.mark.parametrize(("workers", "minutes"), [(0, 4.0), (1, 3.0), (2, 1.5), (9, 1.0)])
def test_the_minutes_of_a_recipe_are_those_of_its_clips_and_steps(
    workers: int, minutes: float
) -> None:
    config = TrainConfig(optim=OptimConfig(steps=120, naming_steps=60))
    took = Seconds(draw=0.3, encode=0.08, quantise=0.02, naming=2.0, step=0.5)
    found = minutes_of(took, config, 600, workers)
    assert found == {"clips": minutes, "naming": 2.0, "steps": 1.0}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_benchmark_refuses_in_one_line_without_a_gpu() -> None:
    script = str(HERE / "bench_nearest_codebook.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr == "bench: PyTorch sees no NVIDIA GPU; run this where there is one\n"


def test_a_server_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"(?s)no server: .*(none\.gguf|xllamacpp)"),
        served(tmp_path / "none.gguf", tmp_path),
    ):
        raise AssertionError("there is no model to serve")
