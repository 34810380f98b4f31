"""The learned codebook: library and plain twin agree, entries learn, nothing else gets in."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from vqedge.config import AttentionConfig, EncoderConfig, LlmConfig, ModelConfig, QuantizerConfig
from vqedge.errors import CheckpointError
from vqedge.model.checkpoint import BRIDGE_PREFIX, load_bridge
from vqedge.model.codebook import (
    UNUSED,
    ResidualCodebook,
    fit_codebook,
    normalised,
    usage_report,
)
from vqedge.model.encoder import Bridge
from vqedge.model.token_hash import token_hash

Array = np.ndarray[Any, Any]
LEVELS, ENTRIES, WIDTH = 3, 32, 48
CLIPS, CODES, FRAMES, GRID = 5, 24, 2, 8
CONFIG = ModelConfig(
    encoder=EncoderConfig(frames=FRAMES, size=GRID * 14),
    quantizer=QuantizerConfig(
        kind="codebook", codes=CODES, default_budget=8, levels=LEVELS, entries=ENTRIES
    ),
    attention=AttentionConfig(width=24, heads=3, depth=1),
    llm=LlmConfig(width=40),
)


def rows_of(seed: int, count: int = 1500, width: int = WIDTH) -> Tensor:
    """Rows of unlike scale in unlike directions, as centroids are."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator) * torch.linspace(2.0, 0.2, width)
    return rows * (0.5 + torch.rand(count, 1, generator=generator))


def clips_of(seed: int) -> tuple[Tensor, Tensor]:
    """Codes `[B, K, D]` with garbage where the mask is off."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(CLIPS, CODES, generator=generator) < 0.7
    codes = rows_of(seed, CLIPS * CODES).reshape(CLIPS, CODES, WIDTH)
    return torch.where(mask[..., None], codes, torch.full_like(codes, 1e3).cumsum(dim=2)), mask


@pytest.fixture
def codebook() -> ResidualCodebook:
    torch.manual_seed(0)
    made = ResidualCodebook(LEVELS, ENTRIES, WIDTH)
    made.tables.data = fit_codebook(rows_of(1), LEVELS, ENTRIES)
    return made


# ---- the plain twin


def by_hand(rows: Array, tables: Array) -> tuple[Array, Array]:
    """Residual quantisation in float64, one row and one level at a time."""
    sums, ids = np.zeros_like(rows), np.zeros((len(rows), len(tables)), int)
    for place, row in enumerate(rows):
        for level, table in enumerate(tables):
            ids[place, level] = ((row - sums[place] - table) ** 2).sum(axis=1).argmin()
            sums[place] += table[ids[place, level]]
    return sums, ids


def test_a_code_is_the_sum_of_the_nearest_entries(codebook: ResidualCodebook) -> None:
    rows = normalised(rows_of(2, 200))
    found = codebook.chosen(rows)
    wanted, ids = by_hand(rows.double().numpy(), codebook.tables.detach().double().numpy())
    assert found.ids.dtype == torch.int32
    assert found.margin.min() > 1e-5, "take another seed: float32 may choose otherwise here"
    assert np.array_equal(found.ids.numpy(), ids)
    assert np.abs(found.sums.detach().numpy() - wanted).max() < 1e-5
    left = (rows.double().numpy() - wanted) ** 2
    assert np.abs(found.error[:, -1].detach().numpy() - left.mean(axis=1)).max() < 1e-5


def test_the_margin_is_what_the_second_best_entry_costs_more(codebook: ResidualCodebook) -> None:
    rows = normalised(rows_of(3, 50))
    distance = (rows[:, None] - codebook.tables[0]).square().mean(dim=2)
    best = distance.topk(2, dim=1, largest=False).values
    torch.testing.assert_close(
        codebook.chosen(rows).margin[:, 0], (best[:, 1] - best[:, 0]).detach(), atol=1e-5, rtol=0
    )


def test_length_and_mean_of_a_code_cost_no_entry(codebook: ResidualCodebook) -> None:
    codes, mask = clips_of(4)
    codebook.eval()
    plain, changed = codebook(codes, mask), codebook(codes * 7 + 3, mask)
    assert torch.equal(plain.ids, changed.ids)


@pytest.mark.parametrize("learning", [True, False])
def test_rows_without_a_code_have_no_id_and_no_say(
    codebook: ResidualCodebook, learning: bool
) -> None:
    codes, mask = clips_of(5)
    found = codebook.train(learning)(codes, mask)
    other = codebook(torch.where(mask[..., None], codes, torch.zeros(())), mask)
    assert (found.ids[~mask] == UNUSED).all() and (found.ids[mask] >= 0).all()
    assert not found.codes[~mask].any() and found.codes[mask].any(dim=1).all()
    for one, same in zip(found, other, strict=True):
        assert torch.equal(one, same)


# ---- the library


def step_of(codebook: ResidualCodebook, codes: Tensor, mask: Tensor) -> tuple[Any, Tensor]:
    """A result, and the gradient of a loss on its codes and its commitment."""
    found = codebook(codes, mask)
    weights = torch.linspace(-1, 1, WIDTH)
    loss = ((found.codes @ weights).square()).mean() + found.commitment
    (gradient,) = torch.autograd.grad(loss, codebook.tables)
    return found, gradient


@pytest.mark.parametrize("seed", range(3))
def test_the_library_computes_what_the_twin_computes(codebook: ResidualCodebook, seed: int) -> None:
    codes, mask = clips_of(seed)
    learned, gradient = step_of(codebook.train(), codes, mask)
    plain, same_gradient = step_of(codebook.eval(), codes, mask)
    print(f"codes differ by {(learned.codes - plain.codes).abs().max():.1e} at most")
    assert torch.equal(learned.ids, plain.ids) and learned.ids.dtype == plain.ids.dtype
    torch.testing.assert_close(learned.codes, plain.codes)
    torch.testing.assert_close(learned.commitment, plain.commitment)
    torch.testing.assert_close(gradient, same_gradient)
    assert plain.commitment > 0.01 and gradient.abs().max() > 0.01, "nothing to compare"


def test_only_entries_that_were_picked_learn_from_the_loss_on_codes(
    codebook: ResidualCodebook,
) -> None:
    codes, mask = clips_of(6)
    found = codebook.train()(codes, mask)
    (gradient,) = torch.autograd.grad(found.codes.square().sum(), codebook.tables)
    for level in range(LEVELS):
        picked = set(found.ids[mask][:, level].tolist())
        moved = set(gradient[level].any(dim=1).nonzero()[:, 0].tolist())
        assert moved == picked and len(picked) < ENTRIES


def test_commitment_pulls_entries_to_what_they_stand_for(codebook: ResidualCodebook) -> None:
    codes, mask = clips_of(7)
    codebook.train()
    optimizer = torch.optim.Adam([codebook.tables], lr=0.02)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = codebook(codes, mask).commitment
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_half_precision_around_it_changes_no_id(codebook: ResidualCodebook) -> None:
    codes, mask = clips_of(8)
    for learning in (True, False):
        codebook.train(learning)
        plain = codebook(codes, mask)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = codebook(codes, mask)
        assert torch.equal(mixed.ids, plain.ids) and mixed.codes.dtype == torch.float32


# ---- entries that nobody picks


def with_a_dead_entry(codebook: ResidualCodebook) -> None:
    """Entry 3 of level 1 is out of reach and has not been picked for long."""
    codebook.tables.data[1, 3] = 1e4
    codebook.usage[1, 3] = 0.005


def test_a_dead_entry_becomes_a_row_of_the_batch(codebook: ResidualCodebook) -> None:
    codes, mask = clips_of(9)
    with_a_dead_entry(codebook)
    before = codebook.tables.detach().clone()
    residual = normalised(codes) - before[0][codebook.eval()(codes, mask).ids[..., 0].long()]
    torch.manual_seed(1)
    codebook.train()(codes, mask)
    changed = (codebook.tables != before).any(dim=2).nonzero().tolist()
    assert changed == [[1, 3]]
    gap = (residual[mask] - codebook.tables[1, 3]).abs().amax(dim=1)
    assert gap.min() < 1e-5, "not a row that the first level left over"
    assert codebook.usage[1, 3] == 1.0


def test_usage_counts_picks_and_forgets_slowly(codebook: ResidualCodebook) -> None:
    codes, mask = clips_of(10)
    ids = codebook.train()(codes, mask).ids[mask]
    for level in range(LEVELS):
        picks = ids[:, level].long().bincount(minlength=ENTRIES)
        torch.testing.assert_close(codebook.usage[level], 0.99 + 0.01 * picks)


@pytest.mark.parametrize("how", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_nothing_is_counted_or_replaced_outside_of_training(
    codebook: ResidualCodebook, how: Any
) -> None:
    codes, mask = clips_of(11)
    with_a_dead_entry(codebook)
    before = codebook.tables.detach().clone(), codebook.usage.clone()
    codebook.train(how is not torch.enable_grad)
    with how():
        codebook(codes, mask)
    assert torch.equal(codebook.tables, before[0]) and torch.equal(codebook.usage, before[1])


_PROCESS = """
import sys
import torch
from torch.nn.parallel import DistributedDataParallel
from vqedge.model.codebook import ResidualCodebook
rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
codebook = ResidualCodebook(2, 16, 8)
before = codebook.tables.detach().clone()
replica = DistributedDataParallel(codebook)
torch.manual_seed(rank)
codebook.usage[1, 3] = 0.001
codebook.tables.data[1, 3] = 1e4
found = replica(torch.randn(3, 12, 8), torch.ones(3, 12, dtype=torch.bool))
(found.codes.square().mean() + found.commitment).backward()
torch.save([before, codebook.tables.detach(), codebook.usage, codebook.tables.grad], out)
del replica, found  # they hold the group, whose threads may abort a process that ends with it
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_processes_that_train_together_keep_the_same_codebook(tmp_path: Path) -> None:
    """Each sees other clips and draws other random numbers."""
    files = [tmp_path / str(rank) for rank in range(2)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(rank), tmp_path / "store", files[rank]]
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    one, other = (torch.load(file) for file in files)
    assert all(torch.equal(here, there) for here, there in zip(one, other, strict=True))
    before, tables, usage, _gradient = one
    assert (tables != before).any(dim=2).nonzero().tolist() == [[1, 3]]
    assert usage[1, 3] == 1.0
    assert usage[0].sum() == pytest.approx(16 * 0.99 + 72 * 0.01), "the picks of both count"


# ---- the start


def test_fitting_is_the_same_every_time_and_another_with_another_seed() -> None:
    rows = rows_of(12)
    first, again, other = (fit_codebook(rows, 2, 16, seed=seed) for seed in (5, 5, 6))
    assert first.shape == (2, 16, WIDTH)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_every_level_and_every_round_leaves_less_over() -> None:
    rows = rows_of(13)
    book = ResidualCodebook(LEVELS, ENTRIES, WIDTH)
    left = {}
    for rounds in (0, 10):
        book.tables.data = fit_codebook(rows, LEVELS, ENTRIES, rounds=rounds)
        left[rounds] = book.chosen(normalised(rows)).error.mean(dim=0).tolist()
    print(f"left over by level: {left}")
    assert left[10][0] > left[10][1] > left[10][2]
    assert all(after < 0.9 * before for before, after in zip(left[0], left[10], strict=True))


def test_entries_that_nothing_is_nearest_to_move_to_rows_that_fit_badly() -> None:
    """Forty copies of each of twelve rows: a random start must hold some of them twice."""
    groups = rows_of(14, 12)
    table = fit_codebook(groups.repeat(40, 1), 1, 12, rounds=20)[0]
    assert far(normalised(groups), table).max() < 1e-3


def far(rows: Tensor, table: Tensor) -> Tensor:
    """Distance of every row to the nearest entry, without the rounding of a matrix product."""
    return (rows[:, None] - table).square().sum(dim=2).sqrt().amin(dim=1)


def test_rows_of_zeros_are_no_codes_and_few_rows_are_enough() -> None:
    rows = rows_of(15, 10)
    padded = torch.zeros(50, WIDTH)
    padded[::5] = rows
    assert torch.equal(fit_codebook(padded, 2, 8), fit_codebook(rows, 2, 8))
    table = fit_codebook(rows, 1, 64)[0]
    assert table.shape == (64, WIDTH) and table.isfinite().all()
    assert far(normalised(rows), table).max() < 1e-3


def test_usage_by_hand() -> None:
    ids = torch.tensor([[[0, 1], [0, 2]], [[1, 3], [UNUSED, UNUSED]], [[1, 0], [0, 1]]])
    found = usage_report(ids, 4)
    assert found["rows"] == 5
    assert found["usage"] == [0.5, 1.0] and found["dead"] == [2, 0]
    spread = [(0.6, 0.4), (0.4, 0.2, 0.2, 0.2)]
    wanted = [math.exp(-sum(p * math.log(p) for p in shares)) for shares in spread]
    assert found["perplexity"] == pytest.approx(wanted, abs=0.05)
    assert usage_report(ids[:0], 4)["dead"] == [4, 4]


# ---- in the bridge


@pytest.fixture
def bridge() -> Bridge:
    torch.manual_seed(3)
    made = Bridge(CONFIG)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def batch(used: int = CODES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    maps = torch.randint(used, (2, FRAMES * GRID**2), generator=generator)
    return rows_of(16, 2 * CODES, 384).reshape(2, CODES, 384), maps


def test_the_bridge_reads_sums_of_entries_instead_of_codes(bridge: Bridge) -> None:
    codes, maps = batch(used=CODES - 4)
    found = bridge.eval()(codes, maps)
    assert bridge.codebook is not None and found.ids is not None
    assert found.ids.shape == (2, CODES, LEVELS)
    assert (found.ids[~found.mask] == UNUSED).all() and not found.mask.all()
    sums = bridge.codebook.tables[torch.arange(LEVELS), found.ids.clamp(min=0).long()].sum(dim=2)
    where = token_hash(maps, FRAMES, CODES).features
    torch.testing.assert_close(bridge.attention(sums, where, found.mask), found.tokens)
    other = bridge(codes.flip(1), maps)
    assert not torch.equal(other.ids, found.ids) and not torch.equal(other.tokens, found.tokens)


def test_without_a_learned_codebook_there_are_no_ids_and_no_loss() -> None:
    plain = ModelConfig.model_validate(
        CONFIG.model_dump() | {"quantizer": QuantizerConfig(codes=CODES, default_budget=8)}
    )
    bridge = Bridge(plain)
    found = bridge(*batch())
    assert bridge.codebook is None and found.ids is None and found.commitment == 0
    assert not [name for name in bridge.state_dict() if "codebook" in name]


def test_the_loss_on_tokens_reaches_the_tables(bridge: Bridge) -> None:
    found = bridge.train()(*batch())
    found.tokens.square().sum().backward()
    assert bridge.codebook is not None and bridge.codebook.tables.grad is not None
    assert found.ids is not None
    moved = bridge.codebook.tables.grad.any(dim=2)
    for level in range(LEVELS):
        assert moved[level].nonzero()[:, 0].tolist() == found.ids[..., level].unique().tolist()


def test_a_checkpoint_holds_the_tables_and_nothing_of_the_library(bridge: Bridge) -> None:
    names = [name for name in bridge.state_dict() if name.startswith("codebook")]
    assert names == ["codebook.tables"]
    assert [name for name, _ in bridge.named_parameters() if "codebook" in name] == names
    stored = load(
        save({f"{BRIDGE_PREFIX}{name}": part.half() for name, part in bridge.state_dict().items()})
    )
    other = Bridge(CONFIG)
    load_bridge(other, stored)
    assert other.codebook is not None and bridge.codebook is not None
    assert torch.equal(other.codebook.tables, bridge.codebook.tables.half().float())
    del stored[f"{BRIDGE_PREFIX}codebook.tables"]
    with pytest.raises(CheckpointError, match=r"codebook\.tables"):
        load_bridge(other, stored)
