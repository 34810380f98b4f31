"""Merging of pairs and into chosen patches, against loops in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_clip import CODES, FRAMES, GRID, PATCHES, Array, clip_of, cosines, first, reduced

from vqedge.model.reducers.tome import BipartiteMerging
from vqedge.model.reducers.vtm import (
    CentreMerging,
    Live,
    MotionMerging,
    VideoTokenMerging,
    in_centre,
)

CLIP = clip_of(9)


def bipartite(rows: Array, budget: int) -> tuple[Array, list[list[int]]]:
    """ToMe's rounds on lists; members of every token in the order of tokens."""
    tokens, members = list(rows.astype(np.float64)), [[i] for i in range(len(rows))]
    while len(tokens) > budget:
        table = cosines(np.array(tokens[0::2]), np.array(tokens[1::2]))
        partner, likeness = table.argmax(axis=1), table.max(axis=1)
        going = set(first(likeness, len(tokens) - budget))
        sums = [token * len(part) for token, part in zip(tokens, members, strict=True)]
        for source in sorted(going):
            into = 2 * int(partner[source]) + 1
            sums[into] = sums[into] + sums[2 * source]
            members[into] = members[into] + members[2 * source]
        left = [i for i in range(len(tokens)) if i % 2 or i // 2 not in going]
        members = [members[i] for i in left]
        tokens = [sums[i] / len(part) for i, part in zip(left, members, strict=True)]
    return np.array(tokens), members


@pytest.mark.parametrize("budget", [1, 2, 5, 12])
@pytest.mark.parametrize("seed", [9, 10])
def test_tome_is_bipartite_matching_in_rounds(seed: int, budget: int) -> None:
    clip = clip_of(seed)
    found = reduced("tome", clip, budget)
    tokens, members = bipartite(clip.flatten(0, 1).numpy(), budget)
    assert np.abs(found.tokens[: len(tokens)].numpy() - tokens).max() < 1e-4
    for row, part in enumerate(members):
        assert (found.assign.flatten() == row).nonzero()[:, 0].tolist() == sorted(part)


def test_tome_tokens_are_means_of_all_their_patches() -> None:
    found = reduced("tome", CLIP, 6)
    for row in range(6):
        torch.testing.assert_close(found.tokens[row], CLIP[found.assign == row].mean(dim=0))


@settings(max_examples=25)
@given(
    budget=st.integers(1, 9),
    more=st.integers(0, 9),
    grid=st.integers(3, 5),
    frames=st.integers(2, 4),
)
def test_tome_reaches_its_budget_from_any_size(
    budget: int, more: int, grid: int, frames: int
) -> None:
    clip = clip_of(1, frames, grid)
    found = BipartiteMerging(budget + more, frames, grid).reduce(clip, torch.tensor(budget))
    assert int((found.sizes > 0).sum()) == budget
    assert int(found.sizes.sum()) == frames * grid * grid


def chosen_merge(rows: Array, targets: list[list[int]]) -> Array:
    """Plain means of every target and the tokens nearest to it, round by round."""
    tokens = rows.astype(np.float64)
    for picked in targets:
        others = [i for i in range(len(tokens)) if i not in picked]
        nearest = cosines(tokens[others], tokens[picked]).argmax(axis=1)
        merged = []
        for place, target in enumerate(picked):
            group = [target, *(o for o, n in zip(others, nearest, strict=True) if n == place)]
            merged.append(tokens[group].mean(axis=0))
        tokens = np.array(merged)
    return tokens


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("budget", [2, 7, 12])
def test_naive_merging_keeps_every_gamma_th(budget: int, rounds: int) -> None:
    rows, patches = CLIP.flatten(0, 1), FRAMES * PATCHES
    reducer = VideoTokenMerging(CODES, FRAMES, GRID, rounds)
    found = reducer.reduce(CLIP, torch.tensor(budget))
    sizes = [round(patches * (budget / patches) ** (n / rounds)) for n in range(rounds + 1)]
    targets = [
        [i for i in range(before) if (i * after) % before < after]
        for before, after in pairwise(sizes)
    ]
    assert [len(picked) for picked in targets] == sizes[1:] and sizes[-1] == budget
    wanted = chosen_merge(rows.numpy(), targets)
    assert np.abs(found.tokens[:budget].numpy() - wanted).max() < 1e-4


def test_gamma_six_is_every_sixth_patch() -> None:
    reducer = VideoTokenMerging(24, FRAMES, GRID, 1)
    found = reducer.reduce(CLIP, torch.tensor(FRAMES * PATCHES // 6))
    kept = [int(found.assign.flatten()[i]) for i in range(0, FRAMES * PATCHES, 6)]
    assert kept == list(range(24)), "every sixth patch leads a token of its own"


@pytest.mark.parametrize(("count", "inside"), [(12, 6), (13, 7), (40, 16), (60, 16)])
def test_half_of_the_targets_lie_in_the_centre(count: int, inside: int) -> None:
    """As long as the centre has so many."""
    centre = in_centre(torch.arange(64), 8)
    assert int(centre.sum()) == 16 and centre.reshape(8, 8)[2:6, 2:6].all()
    patch = torch.arange(64)
    live = Live(torch.zeros(64, 4), patch, torch.tensor(64), patch, torch.zeros(64))
    reducer = CentreMerging(CODES, 1, 8, 1)
    found = reducer.targets(live, torch.tensor(count), torch.zeros(64))
    assert (int(found.sum()), int((found & centre).sum())) == (count, inside)


def evenly(members: list[int], count: int) -> list[int]:
    """`count` of them at equal distances, the first one in."""
    return [m for i, m in enumerate(members) if (i * count) % len(members) < count]


def centred(patches: list[int], count: int) -> list[int]:
    """Places in a list of patches: half of the chosen in the middle quarter of their frame."""
    quarter = range(GRID // 4, GRID - GRID // 4)
    inside = [
        i
        for i, patch in enumerate(patches)
        if patch % PATCHES // GRID in quarter and patch % GRID in quarter
    ]
    outside = [i for i in range(len(patches)) if i not in inside]
    half = max(min(-(-count // 2), len(inside)), count - len(outside))
    return sorted([*evenly(inside, half), *evenly(outside, count - half)])


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("budget", [2, 7, 12])
def test_centred_merging_follows_the_patches_through_its_rounds(budget: int, rounds: int) -> None:
    """What is in the centre later is told by the patch that a token grew from."""
    clip, patches = clip_of(10), FRAMES * PATCHES
    found = CentreMerging(CODES, FRAMES, GRID, rounds).reduce(clip, torch.tensor(budget))
    assert float(found.margin.min()) > 0, "no close call, which float32 might decide otherwise"
    left, targets = list(range(patches)), []
    for done in range(1, rounds + 1):
        count = round(patches * (budget / patches) ** (done / rounds))
        targets.append(centred(left, count))
        left = [left[i] for i in targets[-1]]
    wanted = chosen_merge(clip.flatten(0, 1).numpy(), targets)
    assert len(wanted) == budget
    assert np.abs(found.tokens[:budget].numpy() - wanted).max() < 1e-4
    assert [int(found.assign.flatten()[patch]) for patch in left] == list(range(budget))


def test_a_moving_square_draws_the_targets() -> None:
    grid, frames = 8, 4
    still = torch.randn(1, grid * grid, 16, generator=torch.Generator().manual_seed(2))
    clip = still.repeat(frames, 1, 1)
    moving = torch.zeros(frames, grid, grid, dtype=torch.bool)
    for frame in range(frames):
        moving[frame, 2:4, frame : frame + 2] = True
    clip[moving.flatten(1)] = torch.ones(16) * 3
    reducer = MotionMerging(CODES, frames, grid, 1)
    wish = reducer.wish(clip).reshape(frames, grid, grid)
    touched = moving.any(dim=0)
    assert not wish[:, ~touched].any() and (wish[:, touched].amax(dim=0) > 0.1).all()
    strongest = first(wish.flatten().numpy(), CODES)
    assert all(touched.flatten()[place % (grid * grid)] for place in strongest)
    found = reducer.reduce(clip, torch.tensor(CODES))
    leaders = [int(found.assign.flatten()[place]) for place in sorted(strongest)]
    assert leaders == list(range(CODES)), "the patches that change most lead the tokens"


def test_the_merge_is_not_weighted_by_size() -> None:
    clip = torch.tensor([[[1.0, 0.0], [0.98, 0.02], [0.96, 0.04], [0.0, 1.0]]])
    found = VideoTokenMerging(2, 1, 2, 1).reduce(clip, torch.tensor(1))
    torch.testing.assert_close(found.tokens[0], clip[0].mean(dim=0))
    assert math.isclose(float(found.sizes[0]), 4.0)
