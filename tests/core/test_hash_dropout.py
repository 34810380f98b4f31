"""What training leaves out of the token hash, and that nothing else does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import CODES, CONFIG, FRAMES, random_codes, random_maps
from torch import Tensor

from vqedge.model.encoder import Bridge
from vqedge.model.hash_dropout import HashDropout
from vqedge.model.token_hash import token_hash
from vqedge.recipe import OptimConfig, read_recipe

CLIPS = 64
CODED = random_codes(CLIPS), random_maps(CLIPS)


def bridge_with(dropout: HashDropout) -> Bridge:
    torch.manual_seed(0)
    made = Bridge(CONFIG)
    made.attention.dropout = dropout
    return made.requires_grad_(False).train()


def rows_with(dropout: HashDropout, training: bool = True) -> Tensor:
    return bridge_with(dropout).train(training)(*CODED).tokens


def test_without_the_hash_of_any_clip_it_is_a_model_that_has_none() -> None:
    attention = CONFIG.attention.model_copy(update={"hash": "none"})
    plain = Bridge(CONFIG.model_copy(update={"attention": attention}))
    weights = bridge_with(HashDropout()).state_dict()
    plain.load_state_dict({name: value for name, value in weights.items() if "hash" not in name})
    assert torch.equal(rows_with(HashDropout(clips=1.0)), plain(*CODED).tokens)


def test_a_clip_is_told_of_its_hash_whole_or_not_at_all() -> None:
    torch.manual_seed(1)
    found = rows_with(HashDropout(clips=0.25))
    told, silent = (rows_with(HashDropout(clips=share)) for share in (0.0, 1.0))
    dropped = (found == silent).flatten(1).all(dim=1)
    assert 6 < dropped.sum() < 26
    torch.testing.assert_close(found[~dropped], told[~dropped], atol=0, rtol=0)


def test_frames_are_left_out_whole_of_the_features_and_of_no_mask() -> None:
    _codes, maps = CODED
    torch.manual_seed(1)
    counted = HashDropout(frames=0.25).counted(maps, FRAMES, CODES).unflatten(1, (FRAMES, -1))
    dropped = (counted == CODES).all(dim=2)
    assert 0.15 < dropped.float().mean() < 0.35
    assert torch.equal(counted[~dropped], maps.unflatten(1, (FRAMES, -1))[~dropped])
    bridge = bridge_with(HashDropout(frames=0.5))
    state = torch.get_rng_state()
    bridged = bridge(*CODED)
    torch.set_rng_state(state)
    left = token_hash(bridge.attention.dropout.counted(maps, FRAMES, CODES), FRAMES, CODES)
    whole = token_hash(maps, FRAMES, CODES)
    assert torch.equal(bridged.mask, whole.mask)
    wanted = bridge.attention(CODED[0], left.features, whole.mask)
    assert torch.equal(bridged.tokens, wanted) and not torch.equal(left.features, whole.features)


def test_after_training_all_is_told_and_no_number_is_drawn() -> None:
    plain = rows_with(HashDropout(), training=False)
    state = torch.get_rng_state()
    for training, dropout in ((False, HashDropout(0.5, 0.5)), (True, HashDropout())):
        assert torch.equal(rows_with(dropout, training), plain)
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", ["frame_dropout", "hash_dropout"])
def test_a_recipe_drops_nothing_unless_it_says_so(tmp_path: Path, name: str) -> None:
    assert getattr(OptimConfig(), name) == 0.0
    recipe = tmp_path / "run.yaml"
    recipe.write_text("")
    assert getattr(read_recipe(recipe, [f"optim.{name}=0.2"]).optim, name) == 0.2
