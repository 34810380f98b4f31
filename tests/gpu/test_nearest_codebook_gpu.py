"""The compiled kernel on a real GPU against float64. One command prints a table:

    scripts/test tests/gpu

An id is wrong if it differs from the reference where the reference's margin is above the tolerance.
Vectors have about length 1, as in the model, so that one tolerance fits every size.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from float64_reference import agreement, float64_choice
from gpu_table import Table
from kernel_sizes import RANDOM, REPEATED, TILES
from torch import Tensor

from vqedge.model.nearest_codebook import nearest_codebook
from vqedge.model.nearest_codebook_cuda import Kernel

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
METRICS = ("l2", "dot", "cosine")
TOLERANCE = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 1e-3}
REPEATS = 5


def drawn(rows: int, columns: int, dtype: torch.dtype, seed: int) -> Tensor:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator, device=DEVICE) / columns**0.5
    return values.to(dtype)


def skewed(values: Tensor) -> Tensor:
    """The same values, one element past an aligned address."""
    room = values.new_empty(values.numel() + 1)
    room[1:] = values.flatten()
    return room[1:].view(values.shape)


def check(
    kernel: Kernel, table: Table, x: Tensor, codebook: Tensor, metric: str, case: str = ""
) -> None:
    tolerance = TOLERANCE[x.dtype]
    found = agreement(*kernel(x, codebook, metric), float64_choice(x, codebook, metric), tolerance)
    shape = f"{len(x)}x{len(codebook)}x{x.shape[1]}"
    table.add(f"{shape} {str(x.dtype)[6:]} {metric} {case}", found)
    assert found.ok, f"{found.wrong} ids differ from float64 beyond a margin of {tolerance}"
    assert found.worst_margin <= tolerance


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", RANDOM, ids=lambda size: "x".join(map(str, size)))
def test_random_vectors(
    kernel: Kernel, table: Table, size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    n, k, d = size
    for seed, metric in enumerate(METRICS):
        x, codebook = drawn(n, d, dtype, seed), drawn(k, d, dtype, seed + 10)
        check(kernel, table, x, codebook, metric)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tile", TILES)
def test_duplicate_codes_go_to_the_lowest(
    kernel: Kernel, table: Table, tile: str, dtype: torch.dtype
) -> None:
    """Every code three times, in shuffled places: the id is the first one, margin 0."""
    rows, codes = TILES[tile][0], TILES[tile][1] // 3
    x, once = drawn(rows, 384, dtype, 1), drawn(codes, 384, dtype, 2)
    shuffle = torch.randperm(3 * codes, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    codebook = once.repeat(3, 1)[shuffle]
    indices, margin = kernel(x, codebook, "l2")
    same = shuffle % codes == (shuffle % codes)[indices.long()][:, None]
    assert torch.equal(same.int().argmax(dim=1), indices.long())
    assert not margin.any()
    check(kernel, table, x, codebook, "l2", "duplicates")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tile", TILES)
def test_near_ties(
    kernel: Kernel, table: Table, tile: str, metric: str, dtype: torch.dtype
) -> None:
    """Pairs of codes that differ in one value, by the type's epsilon."""
    rows, codes = TILES[tile]
    codebook = drawn(codes, 896, dtype, 1)
    codebook[1::2] = codebook[::2]
    codebook[1::2, 0] += torch.finfo(dtype).eps
    check(kernel, table, drawn(rows, 896, dtype, 2), codebook, metric, "near ties")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("tile", TILES)
def test_nan(kernel: Kernel, table: Table, tile: str, metric: str, dtype: torch.dtype) -> None:
    rows, codes = TILES[tile]
    x, codebook = drawn(rows, 200, dtype, 1), drawn(codes, 200, dtype, 2)
    x[[0, 63, 64, rows - 1], [0, 7, 199, 100]] = torch.nan
    indices, margin = kernel(x, codebook, metric)
    broken = x.isnan().any(dim=1)
    assert not indices[broken].any() and not margin[broken].any()
    check(kernel, table, x, codebook, metric, "NaN rows")
    codebook[codes - 1, 5] = torch.nan
    indices, margin = kernel(x, codebook, metric)
    assert not indices.any() and not margin.any()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("columns", [64, 67, 1_152])
@pytest.mark.parametrize("tile", TILES)
def test_misaligned_pointers_give_the_same_bits(
    kernel: Kernel, tile: str, columns: int, dtype: torch.dtype
) -> None:
    rows, codes = TILES[tile]
    x, codebook = drawn(rows, columns, dtype, 1), drawn(codes, columns, dtype, 2)
    straight = kernel(x, codebook, "cosine")
    for one, other in zip(straight, kernel(skewed(x), skewed(codebook), "cosine"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("rows", "codes"), REPEATED)
def test_repeats_give_the_same_bits(
    kernel: Kernel, rows: int, codes: int, dtype: torch.dtype
) -> None:
    x, codebook = drawn(rows, 384, dtype, 1), drawn(codes, 384, dtype, 2)
    first = kernel(x, codebook, "l2")
    for _ in range(REPEATS):
        for one, other in zip(first, kernel(x, codebook, "l2"), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("tile", TILES)
def test_a_captured_graph_replays(kernel: Kernel, tile: str) -> None:
    """New inputs at the same addresses, without a launch from the host."""
    rows, codes = TILES[tile]
    x, codebook = drawn(rows, 384, torch.float16, 1), drawn(codes, 384, torch.float16, 2)
    kernel(x, codebook, "l2")
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        indices, margin = kernel(x, codebook, "l2")
    x.copy_(drawn(rows, 384, torch.float16, 3))
    graph.replay()
    wanted = kernel(x, codebook, "l2")
    assert torch.equal(indices, wanted[0]) and torch.equal(margin, wanted[1])


@pytest.fixture
def _own_operations_again(kernel: Kernel) -> Iterator[None]:
    """Afterwards the op runs what it ran before: the trainings of this process call it, too."""
    yield
    nearest_codebook.register_kernel("cuda", nearest_codebook._init_fn)  # in the kernel's place


@pytest.mark.usefixtures("_own_operations_again")
def test_the_op_takes_the_kernel_when_told(kernel: Kernel) -> None:
    x, codebook = drawn(500, 384, torch.float16, 1), drawn(32, 384, torch.float16, 2)
    before = nearest_codebook(x, codebook, "l2")[0]
    nearest_codebook.register_kernel("cuda", kernel)
    after, wanted = nearest_codebook(x, codebook, "l2"), kernel(x, codebook, "l2")
    assert torch.equal(after[0], wanted[0]) and torch.equal(after[1], wanted[1])
    assert (before == after[0]).float().mean() > 0.99
