"""PruMerge against loops, and the parts of it that seeds of trouble are known for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_clip import CODES, FRAMES, GRID, PATCHES, attention_of, clip_of, cosines, first, shares
from torch import Tensor

from vqedge.model.reducers.prumerge import PruMerge, outliers
from vqedge.model.reducers.pruning import spread_priority
from vqedge.model.vit import attention_from_features

NEIGHBOURS = 5


def prumerge(
    clip: Tensor, attention: Tensor, budget: int, spread: float, normalize: bool
) -> dict[int, np.ndarray]:
    """Rows of tokens, frame by frame."""
    rows = clip.double().flatten(0, 1).numpy()
    weight = attention.double().flatten().numpy()
    priority = spread_priority(GRID).numpy().tolist() * FRAMES
    tokens = {}
    for frames, places in shares(budget, FRAMES, FRAMES):
        inside = list(range(frames.start * PATCHES, frames.stop * PATCHES))
        quota = max(len(places) - 1, 1)
        attended = quota - int(quota * spread)
        kept = [inside[i] for i in first(weight[inside], attended)]
        others = [i for i in inside if i not in kept]
        kept += sorted(others, key=lambda i: (-priority[i], i))[: quota - attended]
        for place, patch in zip(places, kept, strict=False):
            neighbours = [i for i in inside if i != patch]
            alike = cosines(rows[[patch]], rows[neighbours])[0]
            near = [neighbours[i] for i in first(alike, NEIGHBOURS)]
            total = weight[near].sum() if normalize else 1.0
            tokens[place] = rows[patch] + weight[near] @ rows[near] / total
        if len(places) > 1:
            rest = [i for i in inside if i not in kept]
            total = weight[rest].sum() if normalize else 1.0
            tokens[places[-1]] = weight[rest] @ rows[rest] / total
    return tokens


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("spread", [0.0, 0.75])
@pytest.mark.parametrize("budget", [2, 4, 9, 12])
def test_it_is_the_method_of_the_paper_on_a_budget(
    budget: int, spread: float, normalize: bool
) -> None:
    clip, attention = clip_of(12), attention_of(12)
    reducer = PruMerge(CODES, FRAMES, GRID, spread, NEIGHBOURS, normalize)
    found = reducer.reduce(clip, torch.tensor(budget), attention)
    wanted = prumerge(clip, attention, budget, spread, normalize)
    assert sorted(wanted) == list(range(budget))
    for row, token in wanted.items():
        assert np.abs(found.tokens[row].numpy() - token).max() < 1e-4


def test_kept_patches_are_their_own_and_the_rest_goes_to_the_likest_or_to_the_left_over() -> None:
    clip, attention = clip_of(13), attention_of(13)
    found = PruMerge(CODES, FRAMES, GRID, neighbours=3).reduce(clip, torch.tensor(12), attention)
    looks = torch.nn.functional.normalize(clip, dim=2)
    for frame in range(FRAMES):
        kept = first(attention[frame].numpy(), 2)
        assert [int(found.assign[frame, patch]) for patch in kept] == [3 * frame, 3 * frame + 1]
        near: set[int] = set()
        for patch in kept:
            alike = (looks[frame] @ looks[frame, patch]).numpy()
            alike[patch] = -2
            near |= set(first(alike, 3))
        for patch in set(range(PATCHES)) - set(kept):
            likest = max(kept, key=lambda k: float(looks[frame, k] @ looks[frame, patch]))
            wanted = 3 * frame + kept.index(likest) if patch in near else 3 * frame + 2
            assert int(found.assign[frame, patch]) == wanted


def test_the_left_over_keeps_its_token_where_every_patch_is_near_a_kept_one() -> None:
    clip, attention = clip_of(18, grid=4), attention_of(18)[:, :16]
    found = PruMerge(4 * FRAMES, FRAMES, 4).reduce(clip, torch.tensor(4 * FRAMES), attention)
    assert (found.sizes > 0).all() and found.sizes[3::4].tolist() == [1.0] * FRAMES
    looks = torch.nn.functional.normalize(clip, dim=2)
    for frame in range(FRAMES):
        kept = first(attention[frame].numpy(), 3)
        alike = (looks[frame] @ looks[frame, kept].T).amax(dim=1)
        assert found.assign[frame].tolist().index(4 * frame + 3) == int(alike.argmin())


@pytest.mark.parametrize("seed", range(5))
def test_outliers_are_counted_by_numpys_quartiles(seed: int) -> None:
    attention = attention_of(seed)
    low, high = np.percentile(attention.numpy(), [25, 75], axis=1, keepdims=True)
    wanted = (attention.numpy() > high + 1.5 * (high - low)).sum(axis=1)
    assert outliers(attention).tolist() == np.maximum(wanted, 1).tolist()
    assert max(outliers(attention).tolist()) > 1, "nothing stands out"


def test_even_attention_has_no_outlier_and_one_is_kept() -> None:
    assert outliers(torch.full((2, 9), 1 / 9)).tolist() == [1, 1]


def test_without_attention_it_takes_what_stands_out() -> None:
    clip = clip_of(14)
    stand_in = attention_from_features(clip)
    assert stand_in.sum(dim=1).tolist() == pytest.approx([1.0] * FRAMES)
    odd = clip_of(15)[:, :1].expand(-1, PATCHES, -1).clone()
    odd[:, 17] *= -1
    assert attention_from_features(odd).argmax(dim=1).tolist() == [17] * FRAMES
    reducer = PruMerge(CODES, FRAMES, GRID)
    own, given = (
        reducer.reduce(clip, torch.tensor(8)),
        reducer.reduce(clip, torch.tensor(8), stand_in),
    )
    assert torch.equal(own.tokens, given.tokens) and torch.equal(own.assign, given.assign)


def test_keys_decide_what_is_alike() -> None:
    clip, keys = clip_of(16), clip_of(17)
    reducer = PruMerge(CODES, FRAMES, GRID)
    by_keys = reducer.reduce(clip, torch.tensor(8), attention_of(1), keys)
    by_features = reducer.reduce(clip, torch.tensor(8), attention_of(1))
    assert not torch.equal(by_keys.assign, by_features.assign)
