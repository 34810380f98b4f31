"""Reducers with weights: what they compute, where gradients go, and that they export."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from small_clip import CODES, FRAMES, GRID, PATCHES, clip_of, first
from torch import Tensor, nn

from vqedge.errors import ConfigError
from vqedge.model.reducers.group_queries import GroupQueries
from vqedge.model.reducers.protocol import Reduced
from vqedge.model.reducers.query_window import QueryWindows, stride_within
from vqedge.model.reducers.resampler import Resampler
from vqedge.model.reducers.saliency import SalientMerging
from vqedge.nearest_codebook import nearest_codebook
from vqedge_export.onnx_export import quantizer_graph

CLIP, WIDTH, TEXT = clip_of(51), 16, 10


def seeded(make: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return make().eval()


def group_queries() -> GroupQueries:
    return seeded(lambda: GroupQueries(CODES, WIDTH))


def resampler() -> Resampler:
    made: Resampler = seeded(lambda: Resampler(CODES, FRAMES, GRID, WIDTH, heads=2))
    made.gate.data.fill_(0.7)
    return made


def salient() -> SalientMerging:
    return seeded(lambda: SalientMerging(CODES, FRAMES, GRID, WIDTH))


def query_windows() -> QueryWindows:
    return seeded(lambda: QueryWindows(FRAMES, GRID, 3, WIDTH, TEXT, heads=4))


def question(seed: int) -> Tensor:
    return torch.randn(TEXT, generator=torch.Generator().manual_seed(seed))


def reduced(module: Any, budget: int = CODES, text: Tensor | None = None) -> Reduced:
    with torch.inference_mode():
        found: Reduced = module.reduce(CLIP, torch.tensor(budget), text=text)
    return found


# ---- group queries


@pytest.mark.parametrize("budget", [1, 5, CODES])
def test_groups_are_the_nearest_queries_by_dot_product(budget: int) -> None:
    module, rows = group_queries(), CLIP.flatten(0, 1)
    found = reduced(module, budget)
    with torch.inference_mode():
        said, asked = module.key(rows).numpy(), module.query(module.queries)[:budget].numpy()
        indices, margin = nearest_codebook(said, asked, "dot")
        assert found.assign.flatten().tolist() == indices.tolist()
        if budget > 1:
            assert np.abs(found.margin.flatten().numpy() - margin).max() < 1e-2
        for group in range(budget):
            members = rows[found.assign.flatten() == group]
            if len(members):
                mean = module.value(members).mean(dim=0)
                wanted = module.queries[group] + module.output(mean)
                torch.testing.assert_close(found.tokens[group], wanted)


def test_an_empty_group_is_no_token_and_nothing_is_nan() -> None:
    module = group_queries()
    module.queries.data[1:] = module.queries.data[:1]
    found = reduced(module)
    assert found.sizes.tolist() == [FRAMES * PATCHES] + [0] * (CODES - 1)
    assert not found.tokens[1:].any() and not found.tokens.isnan().any()


def test_training_draws_hard_groups_whose_gradient_reaches_the_queries() -> None:
    module = group_queries().train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        found = module.reduce(CLIP, torch.tensor(7))
    assert found.sizes.sum() == FRAMES * PATCHES and found.assign.max() < 7
    assert all(float(size) == round(float(size)) for size in found.sizes)
    found.tokens.square().sum().backward()
    for weight in (module.queries, module.query.weight, module.key.weight, module.output.weight):
        assert weight.grad is not None and weight.grad.abs().sum() > 0
        assert not weight.grad.isnan().any()


def test_groups_learn() -> None:
    """Twenty steps bring tokens nearer to the patches they stand for."""
    module = group_queries().train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for _ in range(20):
            found = module.reduce(CLIP, torch.tensor(CODES))
            loss = (found.tokens[found.assign] - CLIP).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


# ---- resampler


def test_a_closed_gate_is_grid_pooling() -> None:
    module = resampler()
    pooled = module.pool.reduce(CLIP, torch.tensor(4))
    module.gate.data.zero_()
    assert torch.equal(reduced(module, 4).tokens, pooled.tokens)
    module.gate.data.fill_(0.5)
    found = reduced(module, 4)
    assert (found.tokens[:4] != pooled.tokens[:4]).any() and not found.tokens[4:].any()
    assert torch.equal(found.assign, pooled.assign)


def test_an_open_gate_adds_attention_over_all_patches() -> None:
    module, rows = resampler(), CLIP.flatten(0, 1)
    pooled = module.pool.reduce(CLIP, torch.tensor(CODES)).tokens
    with torch.inference_mode():
        query, normed = module.query(module.norm(pooled)), module.norm(rows)
        key, value = module.key(normed), module.value(normed)
        seen = []
        for head in range(2):
            part = slice(head * 8, head * 8 + 8)
            scores = query[:, part] @ key[:, part].T / 8**0.5
            seen.append(scores.softmax(dim=1) @ value[:, part])
        wanted = pooled + module.gate.tanh() * torch.cat(seen, dim=1)
    found = reduced(module)
    used = found.sizes > 0
    torch.testing.assert_close(found.tokens[used], wanted[used])


def test_the_gate_learns_from_the_start() -> None:
    module = resampler()
    module.gate.data.zero_()
    module.reduce(CLIP, torch.tensor(CODES)).tokens.square().sum().backward()
    assert module.gate.grad is not None and module.gate.grad != 0


# ---- saliency


def test_the_most_salient_patches_lead() -> None:
    module = seeded(lambda: SalientMerging(CODES, FRAMES, GRID, WIDTH, rounds=1))
    with torch.inference_mode():
        wish = module.wish(CLIP).numpy()
    assert np.abs(wish).max() <= 1
    leaders = sorted(first(wish, 6))
    found = reduced(module, 6)
    assert [int(found.assign.flatten()[patch]) for patch in leaders] == list(range(6))


def test_saliency_is_trained_through_attention() -> None:
    module = salient()
    module.attended(CLIP).square().sum().backward()
    assert module.direction.grad is not None and module.direction.grad.abs().sum() > 0
    module.direction.data.zero_()
    with torch.inference_mode():
        plain = (CLIP @ CLIP.transpose(1, 2) / 4).softmax(dim=2) @ CLIP
        torch.testing.assert_close(module.attended(CLIP), plain)


def test_in_training_tokens_are_means_of_what_attention_gives() -> None:
    module = salient()
    plain = reduced(module, 5)
    found = module.train().reduce(CLIP, torch.tensor(5))
    assert torch.equal(found.assign, plain.assign) and torch.equal(found.sizes, plain.sizes)
    members = module.attended(CLIP).flatten(0, 1)[found.assign.flatten() == 2]
    torch.testing.assert_close(found.tokens[2], members.mean(dim=0))
    found.tokens.square().sum().backward()
    assert module.direction.grad is not None and module.direction.grad.abs().sum() > 0


# ---- windows that follow a question


def test_every_window_has_a_token_and_the_question_changes_it() -> None:
    module = query_windows()
    found, other = (reduced(module, text=question(seed)) for seed in (1, 2))
    assert found.tokens.shape == (FRAMES * 4, WIDTH) and (found.sizes == 9).all()
    assert found.assign[0].reshape(GRID, GRID)[::3, ::3].tolist() == [[0, 1], [2, 3]]
    assert (found.tokens - other.tokens).abs().max() > 1e-3
    with pytest.raises(ValueError, match="need its embedding"):
        reduced(module)
    with pytest.raises(ValueError, match="a stride of 4 does not divide a grid of 6"):
        QueryWindows(FRAMES, GRID, 4, WIDTH, TEXT)


def test_a_token_depends_on_its_window_only() -> None:
    module, changed = query_windows(), CLIP.clone()
    changed[1, 0] += 1
    with torch.inference_mode():
        before = module.reduce(CLIP, torch.tensor(1), text=question(1)).tokens
        after = module.reduce(changed, torch.tensor(1), text=question(1)).tokens
    assert (before != after).any(dim=1).nonzero()[:, 0].tolist() == [4]


def test_a_windows_token_is_attention_of_its_query_to_its_patches() -> None:
    module, asked, stride, heads = query_windows(), question(3), 3, 4
    found, side, width = reduced(module, text=asked), GRID // 3, WIDTH // 4
    with torch.inference_mode():
        query = module.query(CLIP + module.text(asked)).double().numpy()
        key, value = (part(CLIP).double().numpy() for part in (module.key, module.value))
    kernel, bias = (w.detach().double().numpy() for w in module.shrink.parameters())
    matrix, shift = (w.detach().double().numpy() for w in module.output.parameters())
    for frame in range(FRAMES):
        for window in range(side * side):
            top, left = (stride * place for place in divmod(window, side))
            places = [(top + r, left + c) for r in range(stride) for c in range(stride)]
            inside = [row * GRID + column for row, column in places]
            asks = bias + sum(
                kernel[:, 0, row - top, column - left] * query[frame, row * GRID + column]
                for row, column in places
            )
            seen = []
            for head in range(heads):
                part = slice(head * width, (head + 1) * width)
                scores = key[frame, inside, part] @ asks[part] / width**0.5
                shares = np.exp(scores) / np.exp(scores).sum()
                seen.append(shares @ value[frame, inside, part])
            wanted = matrix @ np.concatenate(seen) + shift
            token = found.tokens[frame * side * side + window].numpy()
            assert np.abs(token - wanted).max() < 1e-4


def test_rows_without_a_window_stand_for_nothing() -> None:
    windows, rows = FRAMES * 4, FRAMES * 4 + 3
    padded = seeded(lambda: QueryWindows(FRAMES, GRID, 3, WIDTH, TEXT, heads=4, rows=rows))
    found, exact = (reduced(each, text=question(1)) for each in (padded, query_windows()))
    assert torch.equal(found.tokens[:windows], exact.tokens) and not found.tokens[windows:].any()
    assert found.sizes.tolist() == [9.0] * windows + [0.0] * 3
    assert torch.equal(found.assign, exact.assign)


@pytest.mark.parametrize(("budget", "stride"), [(128, 4), (127, 8), (32, 8), (31, 16), (8, 16)])
def test_the_stride_is_the_smallest_whose_windows_fit(budget: int, stride: int) -> None:
    assert stride_within(budget, 8, 16) == stride
    with pytest.raises(ConfigError, match=r"default_budget 7: .* in every frame .* 8 or more"):
        stride_within(7, 8, 16)


# ---- export


class Traced(nn.Module):
    """Tokens, ids, mask and margin of a module, as an exporter wants them."""

    def __init__(self, module: Any, text: Tensor | None) -> None:
        super().__init__()
        self.module, self.asked = module, text

    def forward(self, rows: Tensor, budget: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        clip = rows.reshape(FRAMES, PATCHES, -1)
        found = self.module.reduce(clip, budget, text=self.asked)
        return found.tokens, found.assign.reshape(-1), found.sizes > 0, found.margin.reshape(-1)


@pytest.mark.parametrize("make", [group_queries, resampler, salient, query_windows])
def test_onnx_runtime_gives_the_same(make: Any) -> None:
    traced = Traced(make(), question(1)).eval().requires_grad_(False)
    rows = CLIP.flatten(0, 1)
    model = quantizer_graph(traced, rows)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    inputs = {item.name for item in session.get_inputs()}
    for budget in (1, 6, CODES):
        feeds = {"features": rows.numpy(), "budget": np.array(budget, np.int64)}
        found = session.run(None, {name: feeds[name] for name in inputs})
        with torch.inference_mode():
            wanted = traced(rows, torch.tensor(budget))
        assert np.array_equal(found[1], wanted[1].numpy())
        assert np.array_equal(found[2], wanted[2].numpy())
        assert np.abs(found[0] - wanted[0].numpy()).max() < 1e-4
