"""K-medoids and density peaks against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_clip import CODES, FRAMES, GRID, PATCHES, Array, clip_of, first, reduced, shares
from torch import Tensor

from vqedge.model.reducers.common import flat, segments
from vqedge.model.reducers.density import SpatialDensityPeaks, spatial_ranks
from vqedge.model.reducers.kmedoids import SegmentMedoids, assigned, distances, moved
from vqedge.model.reducers.protocol import unfold

CLIP = clip_of(21)


def gaps(rows: Array) -> Array:
    return np.asarray(np.linalg.norm(rows[:, None] - rows[None, :], axis=2))


def medoids(rows: Array, count: int, rounds: int) -> list[int]:
    """KKZ and rounds of k-medoids on one segment."""
    table, chosen = gaps(rows), [int(np.linalg.norm(rows, axis=1).argmax())]
    while len(chosen) < count:
        chosen.append(int(table[:, chosen].min(axis=1).argmax()))
    for _ in range(rounds):
        label = table[:, chosen].argmin(axis=1)
        for place in range(count):
            members = np.nonzero(label == place)[0]
            if len(members):
                cost = table[np.ix_(members, members)].sum(axis=1)
                chosen[place] = int(members[cost.argmin()])
    return chosen


@pytest.mark.parametrize("budget", [1, 2, 5, 8, 12])
@pytest.mark.parametrize("seed", [21, 22])
def test_it_is_k_medoids_of_every_segment(seed: int, budget: int) -> None:
    clip = clip_of(seed)
    found = reduced("kmedoids", clip, budget)
    for frames, places in shares(budget, FRAMES, FRAMES // 2):
        part = clip[frames.start : frames.stop].flatten(0, 1).double().numpy()
        chosen = medoids(part, len(places), 10)
        for row, patch in zip(places, chosen, strict=True):
            assert np.array_equal(found.tokens[row].numpy(), part[patch].astype(np.float32))
        label = gaps(part)[:, chosen].argmin(axis=1) + places.start
        assert found.assign[frames.start : frames.stop].flatten().tolist() == label.tolist()


def test_tokens_are_patches_of_their_own_cluster() -> None:
    found = reduced("kmedoids", CLIP, 9)
    for row in found.sizes.nonzero()[:, 0]:
        assert (CLIP[found.assign == row] == found.tokens[row]).all(dim=1).any()


def test_the_objective_never_rises_and_a_step_is_the_best_there_is() -> None:
    rows = flat(CLIP)
    cut = segments(torch.tensor(9), FRAMES, len(rows), FRAMES // 2)
    reducer = SegmentMedoids(CODES, FRAMES, GRID)
    table, now = distances(rows), reducer._start(rows, cut)
    costs = []
    for _ in range(6):
        found = assigned(now, table, cut)
        costs.append(float(table.gather(1, now.patch[found.rows][:, None]).sum()))
        after = moved(now, found, table)
        for row in found.rows.unique().tolist():
            inside = (found.rows == row).nonzero()[:, 0]
            cost = table[inside][:, inside].sum(dim=1)
            assert float(table[after.patch[row], inside].sum()) <= float(cost.min()) + 1e-3
        now = after
    assert costs == sorted(costs, reverse=True) and costs[-1] < costs[0]


def test_a_distance_to_itself_is_zero() -> None:
    assert not distances(flat(CLIP) * 100).diagonal().any()


def test_equal_patches_are_no_distance_apart_and_others_are() -> None:
    """Of a clip that stands still; what is left of the difference of squares would break ties."""
    rows = torch.randn(64, 384, generator=torch.Generator().manual_seed(1))
    table = distances(torch.cat([rows, rows]))
    equal = torch.eye(64).repeat(2, 2) > 0
    assert not table[equal].any() and bool((table[~equal] > 1).all())
    rows[3, 5] = torch.nan
    assert bool(distances(rows)[3].isnan().all())


# ---- density peaks


def peaks(clip: Tensor, neighbours: int, window: int, alpha: float) -> Array:
    """Density times height of every patch, frame by frame."""
    where = [(i // GRID, i % GRID) for i in range(PATCHES)]
    scores = []
    for frame in clip.double().numpy():
        table = gaps(frame) / np.sqrt(frame.shape[1])
        weighted = np.full_like(table, np.inf)
        for i, (row, column) in enumerate(where):
            far = [((r - row) ** 2 + (c - column) ** 2, j) for j, (r, c) in enumerate(where)]
            order = [j for _, j in sorted(far)]
            for rank, j in enumerate(order[1 : window + 1], start=1):
                weighted[i, j] = table[i, j] * ((1 - alpha) * rank / window + alpha)
        density = np.exp(-np.sort(weighted, axis=1)[:, :neighbours].mean(axis=1))
        most = weighted[np.isfinite(weighted)].max()
        for i in range(PATCHES):
            higher = weighted[i][density > density[i]]
            scores.append(density[i] * min(higher.min(initial=np.inf), most))
    return np.array(scores)


@pytest.mark.parametrize(("neighbours", "window", "alpha"), [(5, 20, 0.5), (3, 8, 1.0), (1, 35, 0)])
def test_anchors_are_the_peaks_of_every_frame(neighbours: int, window: int, alpha: float) -> None:
    reducer = SpatialDensityPeaks(CODES, FRAMES, GRID, neighbours, window, alpha)
    found, wanted = reducer.peakedness(CLIP).numpy(), peaks(CLIP, neighbours, window, alpha)
    assert np.abs(found - wanted).max() < 1e-5
    result = reducer.reduce(CLIP, torch.tensor(8))
    for frame in range(FRAMES):
        inside = wanted[frame * PATCHES : (frame + 1) * PATCHES]
        anchors = first(inside, 2)
        rows = [int(result.assign[frame, patch]) for patch in anchors]
        assert rows == [2 * frame, 2 * frame + 1]


def weight_of(patch: int, anchor: int, window: int, alpha: float) -> float:
    """What a distance of features is multiplied by: more, the more patches lie nearer."""
    row, column = divmod(patch, GRID)
    far = [((j // GRID - row) ** 2 + (j % GRID - column) ** 2, j) for j in range(PATCHES)]
    rank = [j for _, j in sorted(far)].index(anchor)
    return (1 - alpha) * min(rank, window) / window + alpha


@pytest.mark.parametrize("budget", [1, 3, 8, 12])
@pytest.mark.parametrize(("window", "alpha"), [(20, 0.5), (8, 0.1), (35, 0.0)])
def test_patches_go_to_the_anchor_that_is_nearest_in_features_and_in_space(
    window: int, alpha: float, budget: int
) -> None:
    neighbours = 5
    found = SpatialDensityPeaks(CODES, FRAMES, GRID, neighbours, window, alpha).reduce(
        CLIP, torch.tensor(budget)
    )
    rows, wish = CLIP.flatten(0, 1).double().numpy(), peaks(CLIP, neighbours, window, alpha)
    assign, plain = found.assign.flatten().tolist(), 0
    for frames, places in shares(budget, FRAMES, FRAMES):
        inside = range(frames.start * PATCHES, frames.stop * PATCHES)
        anchors = [inside.start + i for i in first(wish[inside.start : inside.stop], len(places))]
        for i in inside:
            gap = [float(np.linalg.norm(rows[i] - rows[a])) for a in anchors]
            far = [
                g * weight_of(i % PATCHES, a % PATCHES, window, alpha)
                for g, a in zip(gap, anchors, strict=True)
            ]
            row = anchors.index(i) if i in anchors else int(np.argmin(far))
            assert assign[i] == places[row]
            plain += row != (anchors.index(i) if i in anchors else int(np.argmin(gap)))
        for row in places:
            members = [i for i in inside if assign[i] == row]
            assert np.abs(found.tokens[row].numpy() - rows[members].mean(axis=0)).max() < 1e-4
    if budget > FRAMES:
        assert plain, "place decides for some"


def test_blobs_that_lie_apart_are_found_and_unfolded() -> None:
    grid, width = 8, 8
    blob = torch.tensor([[2 * (r // 4) + c // 4 for c in range(grid)] for r in range(grid)])
    kinds = torch.eye(4, width) * 10
    noise = torch.randn(1, grid * grid, width, generator=torch.Generator().manual_seed(1)) * 0.1
    clip = kinds[blob.flatten()][None] + noise
    found = SpatialDensityPeaks(4, 1, grid, window=20).reduce(clip, torch.tensor(4))
    for kind in range(4):
        assert len(found.assign[0][blob.flatten() == kind].unique()) == 1, "a blob is pure"
    assert len(found.assign.unique()) == 4
    assert (unfold(found) - clip).abs().max() < 0.5


def test_ranks_in_space_start_with_the_patch_itself() -> None:
    ranks = spatial_ranks(5)
    assert ranks.diagonal().tolist() == [0] * 25
    assert sorted(ranks[12].tolist()) == list(range(25))
    assert ranks[12].reshape(5, 5)[1:4, 1:4].max() == 8, "the eight around come first"
