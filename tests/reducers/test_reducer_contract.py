"""What every reducer promises, whatever its method."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from small_clip import (
    CODES,
    FRAMES,
    GRID,
    PATCHES,
    SIZES,
    attention_of,
    clip_of,
    reduced,
    still_clip,
)
from torch import Tensor

from vqedge.config import EncoderConfig, ModelConfig, QuantizerConfig
from vqedge.errors import ConfigError
from vqedge.model.encoder import ClipQuantizer, quantizer_from_config
from vqedge.model.quantizer import Quantized
from vqedge.model.reducers.measure import quantisation_error
from vqedge.model.reducers.protocol import DROPPED, unfold
from vqedge.model.reducers.quantizer import ReducerQuantizer
from vqedge.model.reducers.registry import REDUCERS, Sizes, make_reducer
from vqedge.reducers import (
    KINDS,
    MOST_IN_PAIRS,
    TRAINABLE,
    TRAINING_FREE,
    checked_kind,
    has_weights,
    reads_attention,
    reducer_of,
)
from vqedge_export.onnx_export import quantizer_graph

BUDGETS = (1, 2, 3, 4, 7, 12)
PRUNING = {"uniform-prune", "random-prune", "tsample"}
CLIPS = {"random": clip_of(1), "still": still_clip(2), "one value": torch.ones(FRAMES, PATCHES, 16)}


def quantizer_of(name: str) -> ReducerQuantizer:
    return ReducerQuantizer(make_reducer(name, SIZES), CODES, FRAMES)


def patches_of(name: str, clip: Tensor) -> Tensor:
    if KINDS[name].reads_attention:
        clip = torch.cat([clip, attention_of(1)[..., None]], dim=2)
    return clip.flatten(0, 1)


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", TRAINING_FREE)
def test_tokens_assignment_and_sizes_belong_together(name: str, budget: int, clip: str) -> None:
    features = CLIPS[clip]
    found = reduced(name, features, budget, attention_of(1))
    assert found.tokens.shape == (CODES, features.shape[2]) and found.assign.shape == (4, PATCHES)
    used = set(found.assign.unique().tolist()) - {DROPPED}
    assert 1 <= len(used) <= budget and max(used) < CODES
    counts = torch.bincount(found.assign[found.assign != DROPPED], minlength=CODES)
    assert found.sizes.tolist() == counts.tolist()
    dropped = int((found.assign == DROPPED).sum())
    assert int(found.sizes.sum()) + dropped == FRAMES * PATCHES
    assert (dropped > 0) == (name in PRUNING)
    assert not found.tokens.isnan().any() and not found.margin.isnan().any()


@pytest.mark.parametrize("budget", [1, 2, 3])
@pytest.mark.parametrize("name", TRAINING_FREE)
def test_a_frame_may_be_one_patch(name: str, budget: int) -> None:
    reducer = make_reducer(name, SIZES._replace(codes=3, frames=3, grid=1, budget=3))
    found = reducer.reduce(clip_of(3, 3, 1), torch.tensor(budget), torch.full((3, 1), 0.3))
    used = set(found.assign.unique().tolist()) - {DROPPED}
    assert 1 <= len(used) <= budget and found.sizes.bool().sum() == len(used)
    assert not found.tokens.isnan().any() and not found.margin.isnan().any()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", TRAINING_FREE)
def test_as_a_quantizer_it_keeps_the_encoders_contract(name: str, budget: int) -> None:
    patches = patches_of(name, CLIPS["random"])
    found = quantizer_of(name)(patches, torch.tensor(budget))
    assert found.indices.dtype == torch.int32 and found.mask.dtype == torch.bool
    used = list(dict.fromkeys(found.indices.tolist()))
    assert used == list(range(len(used))) and len(used) <= budget, "by first occurrence"
    assert found.mask.tolist() == [row < len(used) for row in range(CODES)]
    assert not found.codes[~found.mask].any() and found.codes[found.mask].any(dim=1).all()
    again = quantizer_of(name)(patches.clone(), torch.tensor(budget))
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_it_comes_at_several_budgets(name: str) -> None:
    patches, quantizer = patches_of(name, CLIPS["random"]), quantizer_of(name)
    for budget, found in zip((3, 8), quantizer.at_budgets(patches, (3, 8)), strict=True):
        alone = quantizer(patches, torch.tensor(budget))
        assert found.codes.shape == (budget, 16) and torch.equal(found.indices, alone.indices)
        assert torch.equal(found.codes, alone.codes[:budget])


@pytest.mark.parametrize("name", TRAINING_FREE)
def test_features_of_length_one_are_what_it_reads_if_its_means_are_to_be_of_those(
    name: str,
) -> None:
    reducer = make_reducer(name, SIZES)
    quantizer = ReducerQuantizer(reducer, CODES, FRAMES, unit_means=True)
    long = patches_of(name, CLIPS["random"])
    short = torch.cat([torch.nn.functional.normalize(long[:, :16], dim=1), long[:, 16:]], dim=1)
    wanted, budget = quantizer_of(name)(short, torch.tensor(7)), torch.tensor(7)
    found = quantizer(long, budget)
    assert torch.equal(found.indices, wanted.indices) and torch.equal(found.codes, wanted.codes)
    session = ort.InferenceSession(
        quantizer_graph(quantizer, long).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    ids, codes = session.run(
        ["indices", "codes"], {"features": long.numpy(), "budget": np.array(7, np.int64)}
    )
    assert np.array_equal(ids, found.indices.numpy())
    assert np.abs(codes - found.codes.numpy()).max() < 1e-4


@pytest.mark.parametrize("name", ["uniform-pool", "tome", "window-merge", "dpc-spatial"])
def test_its_codes_are_then_means_of_features_of_length_one_as_those_of_k_means(name: str) -> None:
    config = ModelConfig(
        quantizer=QuantizerConfig(
            kind=f"reducer:{name}", codes=CODES, default_budget=8, unit_means=True
        ),
        encoder=EncoderConfig(frames=FRAMES, size=14 * GRID),
    )
    rows = patches_of(name, 3 * CLIPS["random"])
    found = quantizer_from_config(config)(rows, torch.tensor(8))
    looks = torch.nn.functional.normalize(rows[:, :16], dim=1)
    for row in range(int(found.mask.sum())):
        members = looks[found.indices == row]
        torch.testing.assert_close(found.codes[row], members.mean(dim=0))
    assert quantisation_error(rows[:, :16], found, True) < 1
    assert quantisation_error(rows[:, :16], found) > 0.8, "of another scale than raw features"


BY_BUDGET = {"uniform-pool", "tpool", "tsample", "spool", "gridpool", "uniform-prune"}
BY_BUDGET |= {"vtm", "vtm-centre", "vtm-motion"}  # they look the budget up, which `meta` cannot


@pytest.mark.parametrize("name", [name for name in TRAINING_FREE if name not in BY_BUDGET])
def test_whatever_it_makes_is_made_where_its_patches_are(name: str) -> None:
    quantizer = quantizer_of(name).to("meta")
    patches = patches_of(name, CLIPS["random"]).to("meta")
    assert {part.device.type for part in quantizer.at_budgets(patches, [7])[0]} == {"meta"}


def test_a_clip_is_quantised_where_its_frames_are() -> None:
    config = ModelConfig(
        quantizer=QuantizerConfig(kind="reducer:kmedoids", codes=CODES, default_budget=8),
        encoder=EncoderConfig(frames=FRAMES, size=14 * GRID),
    )

    class Looks(torch.nn.Module):
        def forward(self, frames: Tensor) -> Tensor:
            return torch.empty(FRAMES, PATCHES, 16, device=frames.device)

    looks: Any = Looks()
    frames = torch.empty(FRAMES, 14 * GRID, 14 * GRID, 3, dtype=torch.uint8, device="meta")
    found = ClipQuantizer(config, looks).to("meta")(frames, torch.tensor(CODES, device="meta"))
    assert found.indices.device.type == "meta"


@pytest.fixture(scope="module", params=TRAINING_FREE)
def exported(request: pytest.FixtureRequest) -> tuple[str, ort.InferenceSession]:
    name: Any = request.param
    model = quantizer_graph(quantizer_of(name), patches_of(name, CLIPS["random"]))
    assert model.ByteSize() < 400_000, "something large was folded into the graph"
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return name, ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def both_of(
    exported: tuple[str, ort.InferenceSession], clip: Tensor, budget: int
) -> tuple[Quantized, Quantized]:
    """The same clip in PyTorch and in ONNX Runtime."""
    name, session = exported
    patches = patches_of(name, clip)
    feeds = {"features": patches.numpy(), "budget": np.array(budget, np.int64)}
    wanted = quantizer_of(name)(patches, torch.tensor(budget))
    return wanted, Quantized(*map(torch.from_numpy, session.run(None, feeds)))


@pytest.mark.parametrize("seed", [1, 5, 6])
def test_onnx_runtime_gives_the_same_ids(
    exported: tuple[str, ort.InferenceSession], seed: int
) -> None:
    for budget in BUDGETS:
        wanted, found = both_of(exported, clip_of(seed), budget)
        differ = (found.indices != wanted.indices).float().mean()
        print(f"{exported[0]} {budget}: {differ:.2%} ids differ")
        assert torch.equal(found.indices, wanted.indices)
        assert torch.equal(found.mask, wanted.mask)
        assert (found.codes - wanted.codes).abs().max() < 1e-4
        assert (found.margin - wanted.margin).abs().max() < 1e-3


@pytest.mark.parametrize("clip", ["still", "one value"])
def test_where_all_ties_the_last_bit_decides_but_not_what_it_costs(
    exported: tuple[str, ort.InferenceSession], clip: str
) -> None:
    """Equal patches have equal scores but for rounding, which two runtimes do differently."""
    patches = CLIPS[clip].flatten(0, 1)
    for budget in BUDGETS:
        wanted, found = both_of(exported, CLIPS[clip], budget)
        assert 1 <= int(found.mask.sum()) <= budget
        errors = [quantisation_error(patches, part) for part in (wanted, found)]
        assert errors[0] == pytest.approx(errors[1], rel=0.1, abs=1e-4)


def test_unfolding_gives_every_patch_its_token() -> None:
    found = reduced("tome", CLIPS["random"], 5)
    back = unfold(found)
    assert back.shape == CLIPS["random"].shape
    assert torch.equal(back[2, 7], found.tokens[found.assign[2, 7]])
    assert not unfold(reduced("random-prune", CLIPS["random"], 5)).any(dim=2).all()


def test_dropped_patches_go_to_the_token_most_like_them() -> None:
    clip = CLIPS["random"]
    found, mapped = reduced("random-prune", clip, 5), quantizer_of("random-prune")
    indices = mapped(clip.flatten(0, 1), torch.tensor(5)).indices.reshape(FRAMES, PATCHES)
    looks = torch.nn.functional.normalize(clip, dim=2)
    kept = [tuple(place) for place in (found.assign != DROPPED).nonzero().tolist()]
    for frame in range(FRAMES):
        for patch in range(PATCHES):
            likest = max(kept, key=lambda place: float(looks[place] @ looks[frame, patch]))
            assert indices[frame, patch] == indices[likest]


def test_names_are_the_same_with_and_without_torch() -> None:
    assert (*TRAINING_FREE, *TRAINABLE) == tuple(KINDS)
    assert tuple(REDUCERS) == tuple(KINDS)
    for name in KINDS:
        kind = checked_kind(f"reducer:{name}")
        assert reducer_of(kind) == name and has_weights(kind) == (name in TRAINABLE)
        config = ModelConfig(
            quantizer=QuantizerConfig(kind=kind), encoder=EncoderConfig(frames=4, size=56)
        )
        quantizer = quantizer_from_config(config)
        assert isinstance(quantizer, ReducerQuantizer)
        assert any(True for _ in quantizer.parameters()) == (name in TRAINABLE)
        assert quantizer.reducer.reads_attention == reads_attention(kind), name
    with pytest.raises(ConfigError, match="no reducer 'none'; choose one of uniform-pool"):
        make_reducer("none", SIZES)


@pytest.mark.parametrize("name", REDUCERS)
def test_fewer_patches_than_codes_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"quantizer.codes 145: a clip has 144 patches"):
        make_reducer(name, SIZES._replace(codes=PATCHES * FRAMES + 1))


@pytest.mark.parametrize("name", REDUCERS)
def test_too_many_patches_to_compare_all_pairs_of_are_refused(name: str) -> None:
    sizes = Sizes(codes=8, frames=8, grid=32, width=24, text_width=10, budget=8)
    assert sizes.frames * sizes.grid**2 == MOST_IN_PAIRS
    make_reducer(name, sizes)
    if not KINDS[name].all_pairs:
        return
    words = rf"reducer:{re.escape(name)}: compares all pairs of a clip's 9,216 .* 0\.3 GB .*:vtm"
    with pytest.raises(ConfigError, match=words):
        make_reducer(name, sizes._replace(frames=9))
