"""Training the last blocks of the backbone: what they give, learn, keep and export."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tiny_model import CONFIG, random_backbone
from tiny_run import TINY_PARTS, config_for, killed_and_resumed, run

from vqedge.config import EncoderConfig, ModelConfig
from vqedge.data.generated import GeneratedClips
from vqedge.errors import CheckpointError
from vqedge.model.checkpoint import MODEL, open_checkpoint
from vqedge.model.last_blocks import LastBlocks
from vqedge.recipe import OptimConfig
from vqedge.training.folder import STATE

BLOCKS, LAST = 2, 1


def config_of(trained: int) -> ModelConfig:
    encoder = CONFIG.encoder.model_copy(update={"block": BLOCKS, "trained_blocks": trained})
    return CONFIG.model_copy(update={"encoder": encoder})


FROZEN, TRAINED = config_of(0), config_of(LAST)


@pytest.fixture(scope="module", autouse=True)
def _parts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A tiny language model, a random backbone, and a cache that nothing is in yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQEDGE_CACHE", str(tmp_path_factory.mktemp("cache")))
        for name, part in TINY_PARTS.items():
            patch.setattr(name, part)
        for user in ("vqedge.train", "vqedge.model.checkpoint"):
            patch.setattr(f"{user}.clip_quantizer", random_backbone)
        yield


@pytest.fixture(scope="module")
def init(_parts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose backbone is frozen."""
    folder = tmp_path_factory.mktemp("run") / "init"
    run(config_for(folder, steps=1, model=FROZEN))
    return folder


def frames(number: int = 0) -> torch.Tensor:
    encoder = TRAINED.encoder
    clip = GeneratedClips(1, 3)[number]
    return torch.from_numpy(clip.frames(encoder.frames, encoder.size))


@pytest.mark.parametrize("unit_means", [False, True])
@pytest.mark.parametrize("budget", [2, 5])
def test_in_training_a_clip_has_the_codes_it_has_when_deployed(
    budget: int, unit_means: bool
) -> None:
    quantizer = TRAINED.quantizer.model_copy(update={"unit_means": unit_means})
    whole = random_backbone(TRAINED.model_copy(update={"quantizer": quantizer}))
    rows = whole.trunk(frames())
    found = LastBlocks(TRAINED.encoder, whole.vit, whole.quantizer)(
        torch.stack([rows, rows]), budget
    )
    with torch.inference_mode():
        wanted = whole(frames(), torch.tensor(budget))
    assert len(wanted.indices.unique()) > 1
    for place in (0, 1):
        assert torch.equal(found.indices[place].int(), wanted.indices)
        assert torch.allclose(found.codes[place], wanted.codes[:budget], atol=1e-5)


def test_the_loss_of_codes_reaches_all_trained_weights_and_no_others() -> None:
    whole = random_backbone(TRAINED)
    tail = LastBlocks(TRAINED.encoder, whole.vit, whole.quantizer)
    codes = tail(whole.trunk(frames())[None], 5).codes
    codes.square().sum().backward()
    for name, parameter in tail.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert {id(p) for p in whole.vit.parameters() if p.requires_grad} == {
        id(p) for p in tail.parameters()
    }


def blocks_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / MODEL)
    return {name: value for name, value in tensors.items() if name.startswith("quantizer.vit.")}


def test_they_are_trained_kept_and_loaded(tmp_path: Path, init: Path) -> None:
    assert set(blocks_of(init)) == {"quantizer.vit.position"}
    quick = OptimConfig(steps=2, clips_per_step=2, encoder_learning_rate=1e-3)
    run(config_for(tmp_path / "on", model=TRAINED, init=init, optim=quick))
    kept = blocks_of(tmp_path / "on")
    base = random_backbone(TRAINED).vit.state_dict()
    names = [name for name in base if name.startswith(("blocks.1.", "norm."))]
    assert set(kept) == {f"quantizer.vit.{name}" for name in [*names, "position"]}
    loaded = open_checkpoint(tmp_path / "on").encoder().quantizer.vit.state_dict()
    for name, value in loaded.items():
        trained = kept.get(f"quantizer.vit.{name}", base[name]).float()
        assert torch.equal(value, trained), name
        assert torch.equal(trained, base[name]) == (name not in names), name


def test_a_killed_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, init: Path) -> None:
    run(config_for(tmp_path / "whole", model=TRAINED, init=init))
    expected = load_file(tmp_path / "whole" / STATE)
    config = config_for(tmp_path / "killed", model=TRAINED, init=init)
    found = killed_and_resumed(monkeypatch, config)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_run_goes_on_from_blocks_that_were_trained(tmp_path: Path, init: Path) -> None:
    run(config_for(tmp_path / "first", steps=1, model=TRAINED, init=init))
    still = OptimConfig(
        steps=1,
        clips_per_step=2,
        learning_rate=1e-12,
        bridge_learning_rate=1e-12,
        encoder_learning_rate=1e-12,
    )
    run(config_for(tmp_path / "on", model=TRAINED, init=tmp_path / "first", optim=still))
    first, on = blocks_of(tmp_path / "first"), blocks_of(tmp_path / "on")
    assert all(torch.equal(on[name], value) for name, value in first.items())
    with pytest.raises(CheckpointError, match="its encoder differs"):
        run(config_for(tmp_path / "back", steps=1, model=FROZEN, init=tmp_path / "first"))


def test_what_does_not_go_with_trained_blocks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="fewer than `block`"):
        EncoderConfig(block=3, trained_blocks=3)
    with pytest.raises(ValidationError, match=r"goes with quantizer\.kind kmeans"):
        ModelConfig.model_validate(
            {"encoder": {"trained_blocks": 1}, "quantizer": {"kind": "codebook"}}
        )
    with pytest.raises(ValidationError, match="want init"):
        config_for(tmp_path, model=TRAINED)


def test_a_model_without_them_is_described_as_before() -> None:
    assert "trained_blocks" not in EncoderConfig().model_dump()
    assert EncoderConfig().fingerprint() != EncoderConfig(trained_blocks=1).fingerprint()
    trunk = EncoderConfig(block=9, trained_blocks=2).trunk
    assert (trunk.block, trunk.final_norm, trunk.trained_blocks) == (7, False, 0)
    assert np.isclose(OptimConfig().encoder_learning_rate, 3e-5)
