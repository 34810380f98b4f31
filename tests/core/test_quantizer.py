"""The quantizer against an independent k-means in NumPy, and what its contract promises."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import normalize

from vqedge.budget import ADAPTIVE
from vqedge.config import ModelConfig, QuantizerConfig
from vqedge.model.encoder import quantizer_from_config
from vqedge.model.quantizer import KMeansQuantizer, Quantized, farthest_first
from vqedge.model.reducers.blocks import BlockReducer
from vqedge.model.reducers.pruning import RandomPruning
from vqedge.model.reducers.quantizer import ReducerQuantizer
from vqedge.training.cache import QuantizedClips, reversed_clips

Array = np.ndarray[Any, Any]
SAFE = 1e-5  # a choice with less lead than this could fall either way in float32
ERROR = 0.5  # what the adaptive budget has to reach where a test does not say


class Reference(NamedTuple):
    codes: Array
    indices: Array
    safest: float  # smallest lead of any choice on the way


def kmeans(features: Array, codes: int, iterations: int, budget: int) -> Reference:
    """The same rules in float64, with loops over codes instead of one-hot products."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    leads: list[float] = []

    def first_of(values: Array) -> int:
        ordered = np.sort(values)[::-1]
        leads.append(ordered[0] - ordered[1])
        return int(values.argmax())

    chosen = [first_of((features**2).sum(axis=1))]
    while len(chosen) < budget:
        distance = np.min([1 - unit @ unit[number] for number in chosen], axis=0)
        chosen.append(first_of(distance))
    centroids = features[chosen].copy()

    def assigned() -> Array:
        similar = unit @ (centroids / np.linalg.norm(centroids, axis=1, keepdims=True)).T
        return np.array([first_of(row) if budget > 1 else 0 for row in similar])

    for _ in range(iterations):
        labels = assigned()
        for code in range(budget):
            if (labels == code).any():
                centroids[code] = features[labels == code].mean(axis=0)
    labels = assigned()
    order = list(dict.fromkeys(labels.tolist()))  # by first occurrence
    result = np.zeros((codes, features.shape[1]))
    for place, code in enumerate(order):
        result[place] = features[labels == code].mean(axis=0)
    return Reference(result, np.array([order.index(label) for label in labels]), min(leads))


def features_of(seed: int, patches: int = 96, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(patches, width, generator=generator) + 0.3


def quantized(
    features: Tensor,
    codes: int,
    budget: int | None = None,
    rounds: int = 4,
    error: float = ERROR,
) -> Quantized:
    quantizer = KMeansQuantizer(codes, rounds, error)
    result: Quantized = quantizer(features, torch.tensor(codes if budget is None else budget))
    return result


@pytest.mark.parametrize(("codes", "budget"), [(8, 8), (8, 5), (8, 1), (32, 32), (32, 12)])
@pytest.mark.parametrize("seed", range(4))
def test_it_is_the_k_means_of_the_rules(seed: int, codes: int, budget: int) -> None:
    features = features_of(seed)
    wanted = kmeans(features.double().numpy(), codes, 4, budget)
    assert wanted.safest > SAFE, "take another seed: float32 may choose otherwise here"
    found = quantized(features, codes, budget)
    assert found.indices.dtype == torch.int32
    assert found.indices.tolist() == wanted.indices.tolist()
    assert np.abs(found.codes.numpy() - wanted.codes).max() < 1e-5


def test_it_is_deterministic_bit_for_bit() -> None:
    features = features_of(1, 500, 48)
    first, second = (quantized(features.clone(), 32) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("budget", [1, 2, 5, 31, 32])
def test_the_budget_is_kept_and_the_mask_says_what_is_used(budget: int) -> None:
    found = quantized(features_of(2, 200), 32, budget)
    used = found.indices.unique().tolist()
    assert used == list(range(len(used))) and len(used) <= budget
    assert found.mask.tolist() == [number in used for number in range(32)]
    assert not found.codes[~found.mask].any()
    assert found.codes[found.mask].any(dim=1).all()


def test_labels_are_in_order_of_first_occurrence() -> None:
    found = quantized(features_of(3, 300), 32)
    assert list(dict.fromkeys(found.indices.tolist())) == list(range(int(found.mask.sum())))


def test_codes_are_the_means_of_their_members_not_of_unit_vectors() -> None:
    features = features_of(4, 200) * torch.linspace(0.5, 4, 200)[:, None]
    found = quantized(features, 8)
    for code in range(8):
        members = features[found.indices == code]
        torch.testing.assert_close(found.codes[code], members.mean(dim=0))


def test_length_does_not_matter_to_the_choice() -> None:
    """Cosine k-means: of two directions, each keeps its patches whatever their length."""
    lengths = torch.tensor([1.0, 9.0, 0.1, 3.0, 30.0, 0.2])
    directions = torch.eye(2)[[0, 1, 0, 1, 0, 1]] + 0.01
    assert quantized(directions * lengths[:, None], 2).indices.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize("budget", [1, 8])
def test_a_plain_clip_needs_one_code(budget: int) -> None:
    patch = torch.arange(1.0, 7.0)
    found = quantized(patch.expand(40, 6), 8, budget)
    assert not found.indices.any()
    assert found.mask.tolist() == [True] + [False] * 7
    torch.testing.assert_close(found.codes[0], patch)
    assert not found.codes[1:].any()


def test_fewer_patches_than_codes() -> None:
    features = features_of(5, 4)
    found = quantized(features, 8)
    assert found.indices.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(found.codes[:4], features)


def test_the_margin_is_the_lead_of_the_choice() -> None:
    """Measured where k-means has settled: before, the codes are newer than the last choice."""
    features = features_of(6, 64)
    found = quantized(features, 2, rounds=64)
    assert torch.equal(found.indices, quantized(features, 2, rounds=63).indices)
    unit, codes = (normalize(part) for part in (features, found.codes))
    top = (2 * unit @ codes.T).topk(2, dim=1).values
    torch.testing.assert_close(found.margin, top[:, 0] - top[:, 1], atol=1e-5, rtol=0)


def test_a_switched_off_code_is_far_from_every_patch() -> None:
    assert quantized(features_of(6, 64), 2, 1).margin.min() > 50


# ---- farthest first


def test_a_prefix_of_the_start_is_the_start_of_a_smaller_codebook() -> None:
    features = features_of(7)
    whole, errors = farthest_first(features, 16)
    assert len(whole.unique(dim=0)) == 16 and errors.shape == (16,)
    for count in (1, 2, 7):
        rows, beginning = farthest_first(features, count)
        assert torch.equal(rows, whole[:count]) and torch.equal(beginning, errors[:count])


def prefix_errors(features: Tensor, codes: int) -> Array:
    """Mean cosine distance to the nearest row of every prefix of the start, in float64."""
    rows, _errors = farthest_first(features, codes)
    unit, start = (normalize(part.double()).numpy() for part in (features, rows))
    similar = np.maximum.accumulate(unit @ start.T, axis=1)
    return np.asarray(1 - similar.mean(axis=0))


@pytest.mark.parametrize("seed", range(3))
def test_errors_of_the_prefixes_fall_and_are_right(seed: int) -> None:
    features = features_of(seed, 300)
    _rows, errors = farthest_first(features, 32)
    assert (errors.diff() < 0).all() and errors[-1] < 0.6 * errors[0]
    assert np.abs(errors.numpy() - prefix_errors(features, 32)).max() < 1e-5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("error", [0.75, 0.6, 0.5, 0.45])
def test_the_adaptive_budget_is_the_smallest_that_suffices(seed: int, error: float) -> None:
    features = features_of(seed, 200)
    reached = prefix_errors(features, 32)
    assert np.abs(reached - error).min() > SAFE, "take another seed: either way in float32"
    wanted = next((count for count, value in enumerate(reached, 1) if value <= error), 32)
    assert 1 < wanted <= 32
    adaptive = quantized(features, 32, ADAPTIVE, error=error)
    for found, same in zip(adaptive, quantized(features, 32, wanted), strict=True):
        assert torch.equal(found, same)


def test_the_adaptive_budgets_of_that_test_differ() -> None:
    reached = prefix_errors(features_of(0, 200), 32)
    assert len({int((reached > error).sum()) for error in (0.75, 0.6, 0.5, 0.45)}) == 4


def test_an_error_that_no_prefix_reaches_takes_all_codes() -> None:
    features = features_of(9, 200)
    assert int(quantized(features, 16, ADAPTIVE, error=1e-6).mask.sum()) == 16


def test_a_plain_clip_adapts_to_one_code() -> None:
    patch = torch.arange(1.0, 7.0)
    assert int(quantized(patch.expand(40, 6), 8, ADAPTIVE, error=0.01).mask.sum()) == 1


def test_several_budgets_at_once_are_each_what_it_gives_alone() -> None:
    features = features_of(10, 150)
    together = KMeansQuantizer(32, 4, ERROR).at_budgets(features, (4, 9, 32))
    for budget, found in zip((4, 9, 32), together, strict=True):
        assert found.codes.shape == (budget, 16) and found.mask.shape == (budget,)
        alone = quantized(features, 32, budget)
        assert torch.equal(found.indices, alone.indices)
        assert torch.equal(found.mask, alone.mask[:budget])
        # floats to the last bit only on some CPUs: products of another width may round otherwise
        torch.testing.assert_close(found.codes, alone.codes[:budget])
        torch.testing.assert_close(found.margin, alone.margin)


@pytest.mark.parametrize("unit_means", [False, True])
def test_clips_together_are_each_what_it_is_alone(unit_means: bool) -> None:
    """What a GPU is given: all clips in one step, all ids the same."""
    clips = torch.stack([features_of(seed, 150) for seed in range(3)])
    quantizer = KMeansQuantizer(32, 4, ERROR, unit_means)
    with torch.inference_mode():
        together = quantizer.together(clips, (4, 9))
    for budget, found in zip((4, 9), together, strict=True):
        assert found.codes.shape == (3, budget, 16) and found.indices.dtype == torch.int32
        for place, clip in enumerate(clips):
            (alone,) = quantizer.at_budgets(clip, [budget])
            assert alone.margin.min() > SAFE, "take another seed: either way in float32"
            assert torch.equal(found.indices[place], alone.indices)
            assert torch.equal(found.mask[place], alone.mask)
            torch.testing.assert_close(found.codes[place], alone.codes)
            torch.testing.assert_close(found.margin[place], alone.margin)


def test_clips_on_the_cpu_are_taken_one_by_one_and_are_whole_at_16_bits_too() -> None:
    clips = torch.stack([features_of(seed, 60) for seed in range(3)]).half()
    quantizer = KMeansQuantizer(8, 4, ERROR)
    for place, found in enumerate(quantizer.at_budgets_of(clips, (3, 8))):
        for number, clip in enumerate(clips):
            alone = quantizer.at_budgets(clip.float(), (3, 8))[place]
            for part, same in zip(found, alone, strict=True):
                assert torch.equal(part[number], same)


def test_elsewhere_all_clips_are_taken_however_many() -> None:
    clips = torch.empty(18, 20, 6, device="meta", dtype=torch.float16)
    small, large = KMeansQuantizer(4, 2, ERROR).to("meta").at_budgets_of(clips, (2, 4))
    assert small.codes.shape == (18, 2, 6) and large.codes.shape == (18, 4, 6)
    assert large.indices.shape == (18, 20) and large.mask.shape == (18, 4)


def test_a_small_start_is_enough_for_a_small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counted(features: Tensor, codes: int) -> tuple[Tensor, Tensor]:
        asked.append(codes)
        return farthest_first(features, codes)

    monkeypatch.setattr("vqedge.model.quantizer.farthest_first", counted)
    KMeansQuantizer(32, 1, ERROR).at_budgets(features_of(0), (2, 8, 4))
    assert asked == [8]


@pytest.mark.parametrize("budget", [1, 3, 8])
def test_a_small_budget_is_a_small_quantizer(budget: int) -> None:
    features = features_of(8, 150)
    large, small = quantized(features, 32, budget), quantized(features, budget)
    assert torch.equal(large.indices, small.indices)
    torch.testing.assert_close(large.codes[:budget], small.codes)


# ---- clips played backwards


@pytest.mark.parametrize("codes", [6, 32])
def test_reversed_clips_are_what_encoding_them_gives(codes: int) -> None:
    frames, patches = 5, 9
    clips = [features_of(seed, frames * patches) for seed in range(20, 24)]
    clips.append(clips[0][:1].expand(frames * patches, -1))  # one code, all others unused
    backwards = [clip.unflatten(0, (frames, patches)).flip(0).flatten(0, 1) for clip in clips]
    turned = reversed_clips(_cached(clips, codes), frames)
    wanted = _cached(backwards, codes)
    assert turned.indices.dtype == torch.uint8 and turned.codes.dtype == torch.float16
    assert turned.indices.tolist() == wanted.indices.tolist()
    torch.testing.assert_close(turned.codes, wanted.codes)


def test_turning_twice_gives_the_clip_back() -> None:
    clips = _cached([features_of(seed, 45) for seed in range(30, 34)], 32)
    twice = reversed_clips(reversed_clips(clips, 5), 5)
    assert torch.equal(twice.codes, clips.codes) and torch.equal(twice.indices, clips.indices)


def _cached(clips: list[Tensor], codes: int) -> QuantizedClips:
    found = [quantized(clip, codes) for clip in clips]
    return QuantizedClips(
        torch.stack([clip.codes for clip in found]).to(torch.float16),
        torch.stack([clip.indices for clip in found]).to(torch.uint8),
    )


# ---- every kind


def test_every_kind_has_its_quantizer() -> None:
    for kind in ("kmeans", "codebook"):
        quantizer = QuantizerConfig.model_validate({"kind": kind, "adaptive_error": 0.125})
        made = quantizer_from_config(ModelConfig(quantizer=quantizer))
        assert isinstance(made, KMeansQuantizer)
        assert (made.codes, made.iterations, made.adaptive_error) == (64, 8, 0.125)
    for name, reducer in {"uniform-pool": BlockReducer, "random-prune": RandomPruning}.items():
        config = QuantizerConfig(kind=f"reducer:{name}")
        made = quantizer_from_config(ModelConfig(quantizer=config))
        assert isinstance(made, ReducerQuantizer) and isinstance(made.reducer, reducer)


def test_a_kind_that_does_not_exist() -> None:
    with pytest.raises(ValidationError, match="no quantizer 'reducer:none'; choose one of kmeans"):
        QuantizerConfig(kind="reducer:none")
