"""Windows of all sizes: which merge, and what a key patch is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from small_clip import CODES, FRAMES, GRID, PATCHES, Array, attention_of, clip_of, first

from vqedge.model.reducers.windows import WindowMerging, bound_for, merging, window_levels

CLIP, ATTENTION = clip_of(41), attention_of(41)
REDUCER = WindowMerging(CODES, FRAMES, GRID)


def spread(rows: Array) -> float:
    """Sum of squared distances of unit vectors to their mean."""
    looks = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return float(((looks - looks.mean(axis=0)) ** 2).sum())


@pytest.mark.parametrize(("frames", "grid"), [(1, 4), (4, 6), (5, 5), (8, 16)])
def test_every_window_lies_in_one_of_the_level_before(frames: int, grid: int) -> None:
    levels, starts = window_levels(frames, grid)
    assert not levels[0].any() and levels[-1].tolist() == list(range(frames * grid * grid))
    for outer, inner in pairwise(levels):
        around = {int(i): set() for i in inner}
        for big, small in zip(outer.tolist(), inner.tolist(), strict=True):
            around[small].add(big)
        assert all(len(bigs) == 1 for bigs in around.values())
    sizes = [int(level.max()) + 1 for level in levels]
    assert starts == [sum(sizes[:n]) for n in range(len(sizes) + 1)]


def test_spread_is_that_of_the_patches_inside() -> None:
    rows, key = CLIP.flatten(0, 1), torch.zeros(FRAMES * PATCHES, dtype=torch.bool)
    key[::7] = True
    windows = REDUCER.measured(rows, key)
    levels, starts = window_levels(FRAMES, GRID)
    for level, start in zip(levels[:-1], starts, strict=False):
        for window in range(int(level.max()) + 1):
            inside = rows[(level == window) & ~key].double().numpy()
            found = float(windows.spread[start + window])
            assert bool(windows.filled[start + window]) == (len(inside) > 0)
            if len(inside) > 1:
                assert found == pytest.approx(spread(inside), abs=1e-3)


def test_more_windows_with_a_smaller_bound_and_the_budget_is_kept() -> None:
    windows = REDUCER.measured(CLIP.flatten(0, 1), torch.zeros(FRAMES * PATCHES, dtype=torch.bool))
    counts = [
        int(merging(windows, torch.tensor(bound)).sum()) for bound in np.geomspace(300, 0.001, 40)
    ]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == FRAMES * PATCHES
    for budget in (1, 3, 8, 20):
        bound = bound_for(windows, torch.tensor(budget))
        assert int(merging(windows, bound).sum()) <= budget
        assert int(merging(windows, bound * 0.99).sum()) > budget


@pytest.mark.parametrize("budget", [2, 8, 12])
def test_key_patches_stay_alone_and_all_others_are_merged_where_they_lie(budget: int) -> None:
    found = REDUCER.reduce(CLIP, torch.tensor(budget), ATTENTION)
    number = -(-8 * (budget - 1) // 100)
    keys = first(ATTENTION.flatten().numpy(), number)
    rows, flat = found.assign.flatten(), CLIP.flatten(0, 1)
    for place, patch in enumerate(keys):
        assert int(rows[patch]) == place and int(found.sizes[place]) == 1
        assert torch.equal(found.tokens[place], flat[patch])
    levels, _ = window_levels(FRAMES, GRID)
    for row in range(number, int(rows.max()) + 1):
        inside = (rows == row).nonzero()[:, 0]
        torch.testing.assert_close(found.tokens[row], flat[inside].mean(dim=0))
        others = [i for i in range(len(rows)) if i not in keys]
        assert any(
            {i for i in others if level[i] == level[inside[0]]} == set(inside.tolist())
            for level in levels
        ), "a token is a whole window but for its keys"


def whole_windows(rows: Array, keys: list[int], budget: int) -> list[frozenset[int]]:
    """The windows that merge at the least bound within the budget, by trying every bound.

    In the order of tokens: the largest first, and in their order within a level.
    """
    levels = [level.tolist() for level in window_levels(FRAMES, GRID)[0]]
    windows: list[list[frozenset[int]]] = []
    for level in levels:
        groups: dict[int, set[int]] = {n: set() for n in range(max(level) + 1)}
        for i, n in enumerate(level):
            groups[n] |= {i} - {*keys}
        windows.append([frozenset(group) for group in groups.values()])
    spreads = {
        group: spread(rows[sorted(group)]) if len(group) > 1 else -1.0
        for level in windows
        for group in level
        if group
    }
    for bound in sorted(spreads.values()):
        chosen, taken = [], set[int]()
        for group in (group for level in windows for group in level if group):
            if spreads[group] <= bound and not group & taken:
                chosen.append(group)
                taken |= group
        if len(chosen) <= budget:
            return chosen
    raise AssertionError("the whole clip is a window")


@pytest.mark.parametrize("budget", [1, 2, 5, 8, 12])
@pytest.mark.parametrize("seed", [41, 42, 43])
def test_the_windows_are_those_of_the_least_bound_that_keeps_the_budget(
    seed: int, budget: int
) -> None:
    clip = clip_of(seed)
    rows = clip.flatten(0, 1).double().numpy()
    keys = first(ATTENTION.flatten().numpy(), -(-8 * (budget - 1) // 100))
    wanted = [frozenset([key]) for key in keys]
    wanted += whole_windows(rows, keys, budget - len(keys))
    found = REDUCER.reduce(clip, torch.tensor(budget), ATTENTION)
    assign = found.assign.flatten()
    for row, group in enumerate(wanted):
        assert (assign == row).nonzero()[:, 0].tolist() == sorted(group)
        mean = rows[sorted(group)].mean(axis=0)
        assert np.abs(found.tokens[row].numpy() - mean).max() < 1e-4
    assert int(assign.max()) == len(wanted) - 1


def test_what_is_alike_is_merged_and_what_is_not_is_split() -> None:
    clip = clip_of(1, 1, 8)[:, :1].expand(1, 64, -1).clone()
    clip[0, [0, 1, 8, 9]] = torch.randn(4, 16, generator=torch.Generator().manual_seed(3)) * 5
    found = WindowMerging(CODES, 1, 8).reduce(clip, torch.tensor(11), torch.full((1, 64), 1 / 64))
    busy = found.assign[0].reshape(8, 8)[:2, :2]
    assert len(busy.unique()) == 4, "the four odd patches have a token each"
