"""Reducers that go by place alone: pooling and pruning."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from small_clip import CODES, FRAMES, GRID, PATCHES, clip_of, reduced

from vqedge.model.reducers.blocks import BlockReducer, near_square, square, square_windows
from vqedge.model.reducers.protocol import DROPPED
from vqedge.model.reducers.pruning import spread_priority

CLIP = clip_of(3)


@pytest.mark.parametrize("budget", [8, 16, 32, 64])
def test_uniform_pooling_cuts_frames_into_even_blocks(budget: int) -> None:
    frames, side = 8, 16
    features = clip_of(11, frames, side)
    found = BlockReducer(64, frames, side).reduce(features, torch.tensor(budget))
    patches = frames * side**2
    assert set(Counter(found.assign.flatten().tolist()).values()) == {patches // budget}
    maps = found.assign.reshape(frames, side, side)
    for block in range(budget):
        times, rows, columns = ((maps == block).nonzero()[:, axis].unique() for axis in range(3))
        assert len(times) == 1, "a block lies in one frame"
        assert len(rows) * len(columns) == patches // budget, "a block is a rectangle"
        assert max(len(rows), len(columns)) <= 2 * min(len(rows), len(columns))
        torch.testing.assert_close(found.tokens[block], features[found.assign == block].mean(dim=0))


def test_a_budget_below_the_frames_joins_frames() -> None:
    assign = BlockReducer(64, 8, 16).block_of_patch(torch.tensor(4))
    assert assign.amin(dim=1).tolist() == assign.amax(dim=1).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize(("budget", "side"), [(4, 1), (16, 2), (36, 3), (70, 4)])
def test_the_square_grid_is_adaptive_pooling(budget: int, side: int) -> None:
    frames, grid = 4, 12
    features = clip_of(4, frames, grid)
    found = BlockReducer(72, frames, grid, cut=square).reduce(features, torch.tensor(budget))
    images = features.reshape(frames, grid, grid, -1).permute(0, 3, 1, 2)
    pooled = F.adaptive_avg_pool2d(images, side).flatten(2).transpose(1, 2).flatten(0, 1)
    count = frames * side * side
    torch.testing.assert_close(found.tokens[:count], pooled)
    assert not found.tokens[count:].any() and not found.sizes[count:].any()


def test_spatial_pooling_has_windows_of_whole_patches() -> None:
    features = clip_of(5, 2, 16)
    reducer = BlockReducer(20, 2, 16, cut=square_windows, windows=True)
    assign = reducer.reduce(features, torch.tensor(18)).assign[0].reshape(16, 16)
    assert assign[0].tolist() == [0] * 6 + [1] * 6 + [2] * 4, "the last window is cut off"
    images = features.reshape(2, 16, 16, -1).permute(0, 3, 1, 2)
    pooled = F.avg_pool2d(images, 6, ceil_mode=True).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(reducer.reduce(features, torch.tensor(18)).tokens[:18], pooled)


@pytest.mark.parametrize("frames", [8, 7, 3])
def test_temporal_pooling_is_the_mean_of_four_frames(frames: int) -> None:
    features = clip_of(6, frames, 4)
    reducer = BlockReducer(32, frames, 4, pool=4)
    groups = -(-frames // 4)
    found = reducer.reduce(features, torch.tensor(groups * 16))
    for group in range(groups):
        mean = features[4 * group : 4 * group + 4].mean(dim=0)
        torch.testing.assert_close(found.tokens[group * 16 : group * 16 + 16], mean)


@pytest.mark.parametrize("frames", [8, 5])
def test_temporal_sampling_looks_at_every_second_frame(frames: int) -> None:
    features = clip_of(7, frames, 4)
    found = BlockReducer(128, frames, 4, sample=2).reduce(
        features, torch.tensor(-(-frames // 2) * 16)
    )
    torch.testing.assert_close(found.tokens[: len(features[::2]) * 16], features[::2].flatten(0, 1))
    assert (found.assign[1::2] == DROPPED).all() and (found.assign[::2] != DROPPED).all()


def test_storms_ratios_at_its_defaults() -> None:
    """A quarter, an eighth, and 3.13 % with 2 x 2 pooling as well."""
    for options, tokens in (({"pool": 4}, 64), ({"pool": 4, "sample": 2}, 32)):
        reducer = BlockReducer(256, 16, 4, **options)
        assert int((reducer.reduce(clip_of(8, 16, 4), torch.tensor(tokens)).sizes > 0).sum()) == (
            tokens
        )
    pooled = BlockReducer(256, 16, 4, pool=4, sample=2).reduce(clip_of(8, 16, 4), torch.tensor(8))
    assert int((pooled.sizes > 0).sum()) == 8 == round(0.03125 * 256)


def test_cuts_never_exceed_the_budget() -> None:
    for cut in (near_square, square, square_windows):
        for frames in (1, 3, 8):
            for budget in range(1, 65):
                blocks = cut(budget, frames, 16)
                assert 1 <= blocks.groups * blocks.rows * blocks.columns <= budget


@pytest.mark.parametrize("name", ["uniform-prune", "random-prune"])
@pytest.mark.parametrize("budget", [1, 3, 4, 7, CODES])
def test_pruned_tokens_are_patches(name: str, budget: int) -> None:
    found = reduced(name, CLIP, budget)
    kept = (found.assign != DROPPED).nonzero().tolist()
    assert len(kept) == budget == int(found.sizes.sum())
    for frame, patch in kept:
        assert torch.equal(found.tokens[found.assign[frame, patch]], CLIP[frame, patch])
    if name == "uniform-prune" and budget >= FRAMES:
        a_frame = [frame for frame, _ in kept]
        assert {a_frame.count(frame) for frame in range(FRAMES)} <= {
            budget // FRAMES,
            -(-budget // FRAMES),
        }


def test_patches_that_come_first_are_spread_over_the_frame() -> None:
    order = spread_priority(GRID).argsort(descending=True).tolist()
    assert sorted(order) == list(range(PATCHES)) and order[0] == 3 * GRID + 3
    where = [(place // GRID, place % GRID) for place in order]
    for count in range(1, PATCHES):
        gaps = [
            min((r - a) ** 2 + (c - b) ** 2 for a, b in where[:count]) for r, c in where[count:]
        ]
        assert gaps[0] == max(gaps), "the next is always the farthest"
