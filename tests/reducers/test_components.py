"""Connected components against a search through the graph, and tau for a budget."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_clip import CODES, FRAMES, GRID, Array, clip_of, cosines, reduced

from vqedge.model.reducers.scissor import Scissor, components, two_passes

CLIP = clip_of(31)


def search(adjacent: Array) -> list[int]:
    """First vertex of everybody's component, breadth first."""
    first = [-1] * len(adjacent)
    for start in range(len(adjacent)):
        if first[start] < 0:
            queue = deque([start])
            first[start] = start
            while queue:
                for other in np.nonzero(adjacent[queue.popleft()])[0].tolist():
                    if first[other] < 0:
                        first[other] = start
                        queue.append(other)
    return first


@settings(max_examples=60)
@given(st.integers(1, 40), st.floats(0, 0.2), st.integers(0, 1000))
def test_components_are_those_of_a_search(count: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    adjacent = rng.random((2, count, count)) < share
    adjacent |= adjacent.transpose(0, 2, 1)
    found = components(torch.from_numpy(adjacent))
    for graph, labels in zip(adjacent, found.tolist(), strict=True):
        assert labels == search(graph)


@pytest.mark.parametrize("count", [2, 3, 17, 64, 65])
def test_the_longest_path_is_one_component(count: int) -> None:
    line = torch.zeros(1, count, count, dtype=torch.bool)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(count))
    line[0, order[:-1], order[1:]] = True
    assert not components(line | line.transpose(1, 2)).any()


def passes(clip: Array, tau: float) -> Array:
    """Representatives after both passes, in float64."""

    def pass_over(items: Array) -> Array:
        first = search(cosines(items, items) > tau)
        roots = sorted(set(first))
        return np.array([items[[r == root for r in first]].mean(axis=0) for root in roots])

    return pass_over(np.concatenate([pass_over(frame.astype(np.float64)) for frame in clip]))


@pytest.mark.parametrize("tau", [0.97, 0.9, 0.8, 0.6, 0.0, -1.0])
def test_two_passes_give_the_representatives(tau: float) -> None:
    wanted = passes(CLIP.numpy(), tau)
    found = two_passes(CLIP, torch.tensor(tau), FRAMES * GRID**2)
    assert int(found.number) == len(wanted) == int(found.used.sum())
    assert np.abs(found.tokens[: len(wanted)].numpy() - wanted).max() < 1e-4


def test_more_components_with_a_larger_tau() -> None:
    """In one pass; the means of the first move, so that two can lose a component on the way."""
    alike = torch.from_numpy(cosines(CLIP[0].numpy(), CLIP[0].numpy()))[None]
    counts = [len(components(alike > tau).unique()) for tau in np.linspace(-1, 1, 101)]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == GRID**2
    assert len(set(counts)) > 10


@pytest.mark.parametrize("budget", [1, 2, 5, 12])
def test_tau_is_as_large_as_the_budget_allows(budget: int) -> None:
    reducer = Scissor(CODES, FRAMES, GRID)
    tau = reducer.threshold(CLIP, torch.tensor(budget))
    assert int(two_passes(CLIP, tau, CODES).number) <= budget
    assert int(two_passes(CLIP, tau + 2**-8, CODES).number) > budget


def test_every_patch_goes_to_the_nearest_representative_and_is_averaged_with_it() -> None:
    tau = 0.6
    rows, wanted = CLIP.flatten(0, 1).double().numpy(), passes(CLIP.numpy(), tau)
    found = Scissor(GRID**2, FRAMES, GRID, tau).reduce(CLIP, torch.tensor(len(wanted)))
    label = cosines(rows, wanted).argmax(axis=1)
    assert found.assign.flatten().tolist() == label.tolist()
    for row, token in enumerate(wanted):
        members = rows[label == row]
        if len(members):
            mean = (members.sum(axis=0) + token) / (len(members) + 1)
            assert np.abs(found.tokens[row].numpy() - mean).max() < 1e-4


def test_a_frame_of_too_many_components_is_over_every_budget() -> None:
    found = two_passes(CLIP, torch.tensor(0.999), 8)
    assert int(found.number) > 8
    assert int((reduced("scissor", CLIP, 3).sizes > 0).sum()) <= 3
