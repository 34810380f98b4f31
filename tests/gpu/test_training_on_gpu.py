"""Training on a GPU: the CPU's losses, the same run again, and going on after a kill.

A tiny language model and random clips, so a minute in all; recipes are timed by
`tests/bench/bench_recipe.py`. Not run yet: no GPU was at hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from tiny_run import MODELS, config_for, fill_cache, kill_at, run, tiny_training

from vqedge.model.quantizer import KMeansQuantizer
from vqedge.training.folder import LOG, STATE

pytestmark = [
    pytest.mark.gpu,
    # PyTorch's, on this GPU; but for those of kernels whose sums do not repeat
    pytest.mark.filterwarnings("ignore", "error:.*determinis"),
]

Device = Literal["cpu", "cuda"]
SEEDS = (1, 2)  # of the clips that `config_for` trains on, and of those held out


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path) -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch sees no NVIDIA GPU")
    for config in MODELS.values():
        for seed in SEEDS:
            fill_cache(tmp_path / "cache", config, seed)
    with tiny_training(tmp_path / "cache"):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


def trained(output: Path, device: Device, **changes: Any) -> list[dict[str, Any]]:
    """What the log says of each step."""
    AcceleratorState._reset_state(reset_partial_state=True)  # it remembers the first run's device
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", str(device == "cpu").lower())
        run(config_for(output, **changes))
    assert AcceleratorState().device.type == device
    lines = [json.loads(line) for line in (output / LOG).read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-3), ("bf16", 0.05)])
def test_losses_are_those_of_the_cpu(tmp_path: Path, precision: str, tolerance: float) -> None:
    there = trained(tmp_path / "gpu", "cuda", precision=precision)
    here = trained(tmp_path / "cpu", "cpu", precision="fp32")
    assert [line["loss"] for line in there] == pytest.approx(
        [line["loss"] for line in here], rel=tolerance
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_run_goes_on_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str
) -> None:
    trained(tmp_path / "whole", "cuda", precision=precision)
    kill_at(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "killed", "cuda", precision=precision)
    torch.manual_seed(99)  # a new process has another random state
    run(config_for(tmp_path / "killed", precision=precision), resume=True)
    whole, killed = (load_file(tmp_path / name / STATE) for name in ("whole", "killed"))
    assert [name for name, value in whole.items() if not torch.equal(killed[name], value)] == []


def test_a_video_in_words_is_trained_too(tmp_path: Path) -> None:
    lines = trained(tmp_path / "words", "cuda", model=MODELS["words"])
    assert all(line["loss"] > 0 for line in lines) and len(lines) == 4


def test_clips_quantised_together_have_the_ids_of_each_alone_on_the_cpu() -> None:
    """Sums in another order may move a patch between codes; few, or it is another algorithm."""
    clips = torch.randn(5, 512, 64, generator=torch.Generator().manual_seed(0))
    quantizer, budgets = KMeansQuantizer(32, 8, 0.15), (8, 32)
    here = quantizer.at_budgets_of(clips, budgets)
    there = quantizer.to("cuda").at_budgets_of(clips.to("cuda"), budgets)
    for one, other in zip(here, there, strict=True):
        assert (one.indices == other.indices.cpu()).float().mean() > 0.99
        torch.testing.assert_close(one.codes, other.codes.cpu(), rtol=0.0, atol=0.1)
