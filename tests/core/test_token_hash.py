"""The token hash by hand, and VQ-Attention behind it: K rows that do not know their number."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vqedge.config import AttentionConfig, EncoderConfig, LlmConfig, ModelConfig, QuantizerConfig
from vqedge.model.encoder import Bridge
from vqedge.model.token_hash import TokenHash, hash_width, token_hash

FRAMES, GRID, CODES = 3, 4, 6
CONFIG = ModelConfig(
    encoder=EncoderConfig(frames=FRAMES, size=GRID * 14),
    quantizer=QuantizerConfig(codes=CODES, default_budget=CODES),
    attention=AttentionConfig(width=24, heads=3, depth=2),
    llm=LlmConfig(width=40),
)

# ---- the hash


def test_a_small_map_by_hand() -> None:
    top_row, right_column = [0, 0, 1, 1], [1, 0, 1, 0]
    hashed = token_hash(torch.tensor([top_row + right_column]), frames=2, codes=3)
    assert hashed.features.shape == (1, 3, hash_width(2)) == (1, 3, 13)
    assert hashed.mask.tolist() == [[True, True, False]]
    mass = 4 * math.sqrt(0.5)
    # presence, mass, x, y, spread; patch centres lie at -0.5 and 0.5; frames at -0.5 and 0.5 too,
    # so that the slopes of x, y and mass are the differences
    wanted = [
        [1, mass, 0, -0.5, 0.5, 1, mass, 0.5, 0, 0.5, 0.5, 0.5, 0],
        [1, mass, 0, 0.5, 0.5, 1, mass, -0.5, 0, 0.5, -0.5, -0.5, 0],
        [0] * 13,
    ]
    torch.testing.assert_close(hashed.features[0], torch.tensor(wanted, dtype=torch.float32))


def test_a_frame_without_the_code_is_zero_and_one_patch_has_no_spread() -> None:
    grid = torch.zeros(1, 2, 9, dtype=torch.int32)
    grid[0, 1, 5] = 1  # second frame, middle row, right column
    hashed = token_hash(grid.flatten(1), frames=2, codes=2)
    wanted = [0, 0, 0, 0, 0, 1, 4 / 3, 2 / 3, 0, 0, 0, 0, 0]
    torch.testing.assert_close(hashed.features[0, 1], torch.tensor(wanted))


def test_slopes_are_those_of_a_straight_line_over_the_frames_with_the_code() -> None:
    """One patch goes right by a column a frame and is hidden in one; another grows by a patch."""
    maps = torch.zeros(1, 4, 4, 4, dtype=torch.int32)
    for frame in (0, 1, 3):
        maps[0, frame, 2, frame] = 1
    maps[0, 2, 0, :2], maps[0, 3, 0, :3] = 2, 2
    motion = token_hash(maps.flatten(1), frames=4, codes=3).features[0, :, -3:]
    column = 0.5  # its width; a frame is as long
    torch.testing.assert_close(motion[1], torch.tensor([column / 0.5, 0.0, 0.0]))
    grown = 4 * (math.sqrt(3 / 16) - math.sqrt(2 / 16)) / 0.5
    torch.testing.assert_close(motion[2], torch.tensor([0.5 * column / 0.5, 0.0, grown]))


@pytest.mark.parametrize("frames", [31, 32, 64, 512])
def test_two_frames_are_enough_for_a_slope_however_long_the_clip(frames: int) -> None:
    maps = torch.zeros(1, frames, 2, 2, dtype=torch.int32)
    maps[0, frames - 2, 0, 0] = maps[0, frames - 1, 0, 1] = 1  # a column in the last frame
    maps[0, frames - 1, 1, 0] = 2
    motion = token_hash(maps.flatten(1), frames, codes=3).features[0, :, -3:]
    torch.testing.assert_close(
        motion[1], torch.tensor([frames / 2, 0.0, 0.0]), atol=1e-3, rtol=1e-3
    )
    assert not motion[2].any(), "one frame has no slope"


def test_clips_of_a_batch_do_not_mix() -> None:
    maps = _random_maps(4)
    together = token_hash(maps, FRAMES, CODES)
    for number in range(4):
        alone = token_hash(maps[number : number + 1], FRAMES, CODES)
        torch.testing.assert_close(together.features[number], alone.features[0])


@pytest.mark.parametrize("seed", range(3))
def test_renumbering_codes_moves_rows_and_changes_nothing_else(seed: int) -> None:
    maps, renumber = _random_maps(2, seed), _permutation(seed)
    before = token_hash(maps, FRAMES, CODES)
    after = token_hash(renumber[maps], FRAMES, CODES)
    assert torch.equal(after.features[:, renumber], before.features)
    assert torch.equal(after.mask[:, renumber], before.mask)


def test_position_and_time_are_told_apart() -> None:
    plain = torch.zeros(1, FRAMES * GRID**2, dtype=torch.long)
    features = set()
    for place in range(FRAMES * GRID**2):
        spotted = plain.clone()
        spotted[0, place] = 1
        features.add(tuple(token_hash(spotted, FRAMES, 2).features[0, 1].tolist()))
    assert len(features) == FRAMES * GRID**2


# ---- VQ-Attention behind it


def _random_maps(batch: int, seed: int = 0, codes: int = CODES - 1) -> Tensor:
    """Maps that leave the last code out."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(codes, (batch, FRAMES * GRID**2), generator=generator)


def _permutation(seed: int) -> Tensor:
    return torch.randperm(CODES, generator=torch.Generator().manual_seed(100 + seed))


def _codes(batch: int) -> Tensor:
    return torch.randn(batch, CODES, 384, generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def bridge() -> Bridge:
    torch.manual_seed(0)
    made = Bridge(CONFIG)
    for parameter in made.parameters():  # no zero and no one may hide a fault
        torch.nn.init.normal_(parameter, std=0.3)
    return made.requires_grad_(False).eval()


def test_exactly_k_rows_of_the_models_width(bridge: Bridge) -> None:
    tokens, mask, *_ = bridge(_codes(2), _random_maps(2))
    assert tokens.shape == (2, CODES, 40) and mask.shape == (2, CODES)
    assert mask.all(dim=0).tolist() == [True] * (CODES - 1) + [False]
    assert tokens[mask].any(dim=1).all()


def test_unused_rows_are_zero_and_do_not_influence_used_ones(bridge: Bridge) -> None:
    maps = _random_maps(2)
    codes = _codes(2)
    tokens, mask, *_ = bridge(codes, maps)
    codes[:, -1] = 1e3 * torch.linspace(-1, 1, 384)
    with_garbage = bridge(codes, maps).tokens
    assert not tokens[~mask].any() and not with_garbage[~mask].any()
    torch.testing.assert_close(with_garbage, tokens, atol=0, rtol=0)


def test_more_unused_rows_change_nothing(bridge: Bridge) -> None:
    codes, maps = _codes(1), _random_maps(1, codes=3)
    tokens = bridge(codes, maps).tokens
    fewer = bridge(codes[:, :3], maps).tokens
    torch.testing.assert_close(tokens[:, :3], fewer)


@pytest.mark.parametrize("seed", range(3))
def test_tokens_do_not_depend_on_the_numbers_of_the_codes(bridge: Bridge, seed: int) -> None:
    codes, maps, renumber = _codes(2), _random_maps(2, seed), _permutation(seed)
    before = bridge(codes, maps).tokens
    moved = torch.empty_like(codes)
    moved[:, renumber] = codes
    after = bridge(moved, renumber[maps]).tokens
    torch.testing.assert_close(after[:, renumber], before)


def test_used_rows_read_each_other(bridge: Bridge) -> None:
    codes, maps = _codes(1), _random_maps(1)
    before = bridge(codes, maps).tokens
    codes[0, 0] += 1.0 * torch.linspace(-1, 1, 384)
    after = bridge(codes, maps).tokens
    assert ((after - before)[0, : CODES - 1].abs().amax(dim=1) > 1e-4).all()


def test_where_a_code_occurs_changes_its_row(bridge: Bridge) -> None:
    codes, maps = _codes(1), _random_maps(1)
    turned = maps.unflatten(1, (FRAMES, -1)).flip(1).flatten(1)
    before = bridge(codes, maps).tokens
    after = bridge(codes, turned).tokens
    assert ((after - before)[0, : CODES - 1].abs().amax(dim=1) > 1e-4).all()


@pytest.mark.parametrize(("kind", "heeded"), [("occupancy", True), ("places", False)])
def test_places_are_all_but_the_slopes(kind: str, heeded: bool) -> None:
    attention = CONFIG.attention.model_copy(update={"hash": kind})
    torch.manual_seed(0)
    model = Bridge(CONFIG.model_copy(update={"attention": attention})).attention.eval()
    codes, hashed = _codes(1), token_hash(_random_maps(1), FRAMES, CODES)
    before = model(codes, *hashed)
    slopes, places = (hashed.features.clone() for _ in range(2))
    slopes[..., -3:] += 1.0
    places[..., -4] += 1.0
    assert torch.equal(model(codes, slopes, hashed.mask), before) is not heeded
    assert not torch.equal(model(codes, places, hashed.mask), before)


def test_a_clip_without_any_code_is_all_zero_and_finite(bridge: Bridge) -> None:
    hashed = TokenHash(
        torch.zeros(1, CODES, hash_width(FRAMES)), torch.zeros(1, CODES, dtype=torch.bool)
    )
    tokens = bridge.attention(_codes(1), hashed.features, hashed.mask)
    assert torch.equal(tokens, torch.zeros_like(tokens))
