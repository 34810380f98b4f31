"""The CUDA kernels' own code on an emulated GPU, against NumPy: ids, ties, margins, NaN, tails.

What it cannot show is speed, and what a compiler for GPUs makes of the code: that is tests/gpu.
"""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emulated_kernel import (
    BFLOAT16,
    DTYPES,
    HOPPER,
    METRICS,
    MIDDLE,
    SMALL_HOPPER,
    SMALL_WIDE,
    TURING,
    WIDE,
    EmulatedKernel,
    aligned_array,
    compile_for_cpu,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vqedge.errors import BackendUnavailable
from vqedge.model.nearest_codebook_cuda import Kernel
from vqedge.nearest_codebook import nearest_codebook, scores

Array = np.ndarray[Any, Any]
GPU_SIZES = runpy.run_path(str(Path(__file__).parents[1] / "gpu" / "kernel_sizes.py"))
GENERATED = settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_for_cpu(tmp_path_factory.mktemp("kernel"))


@pytest.fixture(scope="session")
def kernel(library: Path) -> EmulatedKernel:
    return EmulatedKernel(library)


def drawn(shape: tuple[int, ...], dtype: Any, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def check(x: Array, codebook: Array, metric: Any, indices: Array, margin: Array) -> None:
    """Equal ids wherever the reference is sure, equal margins, up to float32 rounding."""
    wanted, wanted_margin = nearest_codebook(x, codebook, metric)
    rounding = 4e-6 * np.nanmax(np.abs(scores(x, codebook, metric)), initial=1.0)
    sure = ~(wanted_margin <= rounding)
    np.testing.assert_array_equal(indices[sure], wanted[sure])
    np.testing.assert_allclose(margin, wanted_margin, rtol=1e-5, atol=rounding)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("device", "shape"),
    [
        (MIDDLE, (1, 1, 3)),
        (MIDDLE, (31, 7, 64)),
        (MIDDLE, (70, 32, 200)),  # one narrow tile, four slices: the ring turns over
        (MIDDLE, (70, 33, 72)),
        (MIDDLE, (70, 64, 200)),  # one small tile, full
        (MIDDLE, (70, 65, 72)),
        (MIDDLE, (65, 129, 384)),  # two middle tiles, merged
        (WIDE, (130, 300, 136)),  # two rows of tiles x two wide tiles
        (SMALL_WIDE, (129, 257, 200)),
        (HOPPER, (130, 300, 328)),  # group products; six slices: the ring turns over
        (SMALL_HOPPER, (129, 257, 200)),
        (TURING, (65, 150, 136)),
    ],
    ids=str,
)
def test_agrees_with_numpy(
    kernel: EmulatedKernel,
    device: tuple[int, int, int],
    shape: tuple[int, int, int],
    dtype: Any,
    metric: str,
) -> None:
    n, k, d = shape
    x, codebook = drawn((n, d), dtype, 1), drawn((k, d), dtype, 2)
    check(x, codebook, metric, *kernel.on(device)(x, codebook, metric))


@GENERATED
@given(
    st.integers(0, 40),
    st.integers(1, 40),
    st.integers(1, 80),
    st.sampled_from(DTYPES),
    st.sampled_from(METRICS),
    st.integers(0, 2**32 - 1),
)
def test_agrees_with_numpy_on_whole_numbers(
    kernel: EmulatedKernel, n: int, k: int, d: int, dtype: Any, metric: str, seed: int
) -> None:
    """Small whole numbers have exact scores and many ties: ids and margins are exact too."""
    random = np.random.default_rng(seed)
    x = random.integers(-2, 3, size=(n, d)).astype(dtype)
    codebook = random.integers(-2, 3, size=(k, d)).astype(dtype)
    indices, margin = kernel.on(MIDDLE)(x, codebook, metric)
    if metric == "cosine":
        return check(x, codebook, metric, indices, margin)
    wanted, wanted_margin = nearest_codebook(x, codebook, metric)  # type: ignore[arg-type]
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_array_equal(margin, wanted_margin)


@pytest.mark.parametrize("device", [MIDDLE, WIDE, HOPPER])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("first", "second"), [(3, 9), (30, 31), (5, 140), (127, 128), (0, 299)])
def test_a_tie_goes_to_the_lower_code(
    kernel: EmulatedKernel, device: tuple[int, int, int], dtype: Any, first: int, second: int
) -> None:
    """Whether the two meet in one thread, one warp, one block, or only at the end."""
    x = drawn((20, 72), dtype)
    codebook = drawn((300, 72), dtype, 1) * 4
    codebook[[first, second]] = x[0]
    indices, margin = kernel.on(device)(x, codebook.astype(dtype), "l2")
    assert (indices[0], margin[0]) == (first, 0.0)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codes", [7, 150])
def test_a_row_with_nan_gives_zero_and_leaves_the_others_alone(
    kernel: EmulatedKernel, codes: int, dtype: Any, metric: str
) -> None:
    x, codebook = drawn((70, 72), dtype), drawn((codes, 72), dtype, 1)
    x[3, 71] = np.nan
    x[64, 0] = np.nan
    indices, margin = kernel.on(MIDDLE)(x, codebook, metric)
    assert [(indices[row], margin[row]) for row in (3, 64)] == [(0, 0.0)] * 2
    check(x, codebook, metric, indices, margin)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_code_with_nan_breaks_every_row(kernel: EmulatedKernel, dtype: Any, metric: str) -> None:
    x, codebook = drawn((20, 40), dtype), drawn((200, 40), dtype, 1)
    codebook[177, 5] = np.nan
    indices, margin = kernel.on(MIDDLE)(x, codebook, metric)
    assert not indices.any() and not margin.any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, on infinities
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("where", ["row", "code"])
def test_infinities_follow_numpy(
    kernel: EmulatedKernel, where: str, dtype: Any, metric: Any
) -> None:
    x, codebook = np.abs(drawn((20, 24), dtype)), np.abs(drawn((9, 24), dtype, 1))
    (x if where == "row" else codebook)[4, 7] = np.inf
    indices, margin = kernel.on(MIDDLE)(x, codebook, metric)
    wanted, wanted_margin = nearest_codebook(x, codebook, metric)
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_array_equal(np.isnan(margin), np.isnan(wanted_margin))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_zero_rows_and_codes_follow_numpy(kernel: EmulatedKernel, dtype: Any) -> None:
    x, codebook = drawn((5, 24), dtype), drawn((6, 24), dtype, 1)
    x[2], codebook[1] = 0, 0
    indices, margin = kernel.on(MIDDLE)(x, codebook, "cosine")
    assert (indices[2], margin[2]) == (0, 0.0)
    check(x, codebook, "cosine", indices, margin)


def test_one_code_has_an_infinite_margin(kernel: EmulatedKernel) -> None:
    indices, margin = kernel.on(MIDDLE)(drawn((3, 8), np.float16), drawn((1, 8), np.float16), "l2")
    assert not indices.any() and np.isposinf(margin).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [64, 67])
@pytest.mark.parametrize(("device", "codes"), [(MIDDLE, 40), (HOPPER, 140)])
def test_misaligned_inputs_give_the_same_bits(
    kernel: EmulatedKernel,
    device: tuple[int, int, int],
    codes: int,
    columns: int,
    dtype: np.dtype[Any],
) -> None:
    x, codebook = drawn((70, columns), dtype), drawn((codes, columns), dtype, 1)
    straight = kernel.on(device)(x, codebook, "cosine")
    skewed = [
        aligned_array(a.size, dtype, 16, dtype.itemsize).reshape(a.shape) for a in (x, codebook)
    ]
    skewed[0][:], skewed[1][:] = x, codebook
    for one, other in zip(straight, kernel(*skewed, "cosine"), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("dtype", "metric"), [(np.dtype(np.float16), "cosine"), (BFLOAT16, "l2")], ids=str
)
def test_every_tile_gives_the_same_bits(kernel: EmulatedKernel, dtype: Any, metric: str) -> None:
    x, codebook = drawn((130, 136), dtype), drawn((300, 136), dtype, 1)
    wide = kernel.on(WIDE)(x, codebook, metric)
    for device in (MIDDLE, HOPPER):
        for one, other in zip(wide, kernel.on(device)(x, codebook, metric), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("device", "most_bytes"), [(HOPPER, 200_192), (SMALL_HOPPER, 151_040), (WIDE, 199_168)]
)
def test_a_large_codebook_takes_the_tile_that_the_gpu_is_for(
    kernel: EmulatedKernel, device: tuple[int, int, int], most_bytes: int
) -> None:
    """Told by the shared memory that a block asks for: the ring of a Hopper is aligned."""
    x, codebook = drawn((9, 24), np.float16), drawn((300, 24), np.float16, 1)
    kernel.on(device)(x, codebook, "l2")
    assert kernel.most_shared_bytes() == most_bytes


@pytest.mark.parametrize("table", ["TILES", "REPEATED", "RANDOM", "SANITIZED"])
@pytest.mark.parametrize(
    ("device", "largest"),
    [
        ((8, 8, 166_912), 150_016),  # a Jetson
        ((9, 132, 232_448), 200_192),  # an H200: `hopper_kernel`
        ((12, 170, 101_376), 100_864),  # an RTX 5090
        ((10, 256, 232_448), 199_168),  # more multiprocessors than any has
    ],
)
def test_the_sizes_of_the_tests_on_a_gpu_reach_every_tile(
    kernel: EmulatedKernel, device: tuple[int, int, int], largest: int, table: str
) -> None:
    sizes = dict(GPU_SIZES, TILES=GPU_SIZES["TILES"].values())[table]

    def reached(dtype: Any) -> set[int]:
        shapes = {size[:2] for size in sizes if size[0]}
        return {kernel.chosen_shared_bytes(device, *shape, dtype) for shape in shapes}

    assert reached(np.float16) == {49_664, 66_304, 99_584, largest}
    assert reached(np.float32) == {21_504, 25_600, 33_792}


@pytest.mark.parametrize(("codes", "shared_bytes"), [(32, 21_504), (64, 25_600), (65, 33_792)])
def test_float32_takes_the_smallest_tile_that_holds_the_codes(
    kernel: EmulatedKernel, codes: int, shared_bytes: int
) -> None:
    """On a device with just the shared memory for it; a wider tile multiplies what is not there."""
    x, codebook = drawn((9, 24), np.float32), drawn((codes, 24), np.float32, 1)
    check(x, codebook, "l2", *kernel.on((9, 132, shared_bytes))(x, codebook, "l2"))
    with pytest.raises(AssertionError, match="status 1"):
        kernel.on((9, 132, shared_bytes - 1))(x, codebook, "l2")


def test_the_margin_is_optional(kernel: EmulatedKernel) -> None:
    x, codebook = drawn((5, 16), np.float16), drawn((3, 16), np.float16, 1)
    indices, space = np.full(5, -7, np.int32), aligned_array(1024, np.uint8, 16)
    pointers = x.ctypes.data, codebook.ctypes.data
    outputs = indices.ctypes.data, None, space.ctypes.data, space.nbytes, None
    assert kernel.on(MIDDLE).entry(*pointers, 5, 3, 16, 1, 0, *outputs) == 0
    np.testing.assert_array_equal(indices, kernel(x, codebook, "l2")[0])


@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"n": -1}, -1),
        ({"k": 0}, -1),
        ({"d": 0}, -1),
        ({"n": 2**62}, -1),
        ({"dtype": 3}, -2),
        ({"metric": 3}, -2),
        ({"x": None}, -3),
        ({"x": 1}, -3),
        ({"indices": None}, -3),
        ({"margin": 2}, -3),
        ({"workspace": None}, -4),
        ({"bytes": 16}, -4),
        ({"n": 0, "x": None}, 0),  # nothing to do
    ],
)
def test_bad_arguments_are_refused(
    kernel: EmulatedKernel, changed: dict[str, Any], status: int
) -> None:
    space = aligned_array(4096, np.uint8, 16)
    good = {"x": 64, "codebook": 64, "n": 4, "k": 4, "d": 4, "dtype": 1, "metric": 0}
    good |= {"indices": 64, "margin": 64, "workspace": space.ctypes.data, "bytes": 4096}
    assert kernel.entry(*(good | changed).values(), None) == status


def test_the_workspace_never_shrinks(kernel: EmulatedKernel) -> None:
    """TensorRT asks once, for the largest shapes."""
    sizes = np.array([[kernel.workspace(n, k) for k in range(1, 600)] for n in (0, 1, 7, 99)])
    assert (np.diff(sizes, axis=0) >= 0).all() and (np.diff(sizes, axis=1) >= 0).all()


_MISSING_BARRIER = {
    "tensor_kernel.cuh": {"sync_block();  // this slice is there": "// this slice is there"}
}
_MISSING_WAIT = {"tensor_kernel.cuh": {"wait_copies(ahead - 1);": ""}}
_HOPPER = "hopper_kernel.cuh"
_UNSEEN_COPIES = {_HOPPER: {"publish_copies();": ""}}
_MISSING_HOPPER_BARRIER = {_HOPPER: {"publish_copies();\n    sync_block();": "publish_copies();"}}
_MISSING_HOPPER_WAIT = {_HOPPER: {"wait_copies(ahead - 1);": ""}}
_OVERTAKEN_PRODUCTS = {_HOPPER: {"wait_products<1>": "wait_products<2>"}}
_UNFINISHED_PRODUCTS = {_HOPPER: {"wait_products<0>": "wait_products<1>"}}
_OVERWRITTEN_SLICE = {_HOPPER: {"int free_stage = ahead;": "int free_stage = ahead - 1;"}}
_SKEWED_RING = {_HOPPER: {"kPermutationBytes - address": "kPermutationBytes + 128 - address"}}
_ANOTHERS_SQUARES = {
    "tensor_kernel.cuh": {"n / Tile::kOwnFragments == warp_row": "n % 4 == warp_row"}
}
_CODES_BEYOND = {"tensor_kernel.cuh": {"Full || n * 8 + i < left": "Full || true"}}
_LATE_TIE = {"best.cuh": {"other.code < code);": "other.code > code);"}}


@pytest.mark.parametrize(
    "changes",
    [
        _MISSING_BARRIER,
        _MISSING_WAIT,
        _UNSEEN_COPIES,
        _MISSING_HOPPER_BARRIER,
        _MISSING_HOPPER_WAIT,
        _OVERTAKEN_PRODUCTS,
        _UNFINISHED_PRODUCTS,
        _OVERWRITTEN_SLICE,
        _SKEWED_RING,
        _ANOTHERS_SQUARES,
        _CODES_BEYOND,
        _LATE_TIE,
    ],
    ids=str,
)
def test_the_emulation_notices_a_broken_kernel(
    tmp_path: Path, changes: dict[str, dict[str, str]]
) -> None:
    """In a process of its own: a broken kernel may crash."""
    library = compile_for_cpu(tmp_path, changes)
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "import numpy as np; from pathlib import Path\n"
        "from emulated_kernel import EmulatedKernel, HOPPER, MIDDLE\n"
        "from vqedge.nearest_codebook import nearest_codebook\n"
        "x = np.random.default_rng(0).integers(-2, 3, size=(70, 400)).astype(np.float16)\n"
        "kernel = EmulatedKernel(Path(sys.argv[1]))\n"
        "for device, copies in ((MIDDLE, 2), (HOPPER, 5)):\n"
        "    c = np.concatenate([x[:30]] * copies)\n"
        "    found, wanted = kernel.on(device)(x, c, 'l2'), nearest_codebook(x, c, 'l2')\n"
        "    if not all(map(np.array_equal, found, wanted)): sys.exit(1)\n"
    )
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", script, str(library), here]
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


def test_nothing_outside_the_arrays_is_touched(library: Path) -> None:
    """Every array between two pages that kill whoever touches them; in a process of its own."""
    script = Path(__file__).parent / "fenced_run.py"
    run = subprocess.run([sys.executable, str(script), str(library)], check=False)
    assert run.returncode == 0


# ---- the binding for PyTorch, on the same library


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_torch_binding_agrees_with_the_op(library: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(72, 40, generator=generator).to(dtype).T  # not contiguous
    codebook = torch.randn(9, 72, generator=generator).to(dtype)
    indices, margin = Kernel(library).run(x, codebook, "l2", 0)
    wanted, wanted_margin = torch.ops.vqedge.nearest_codebook(x, codebook, "l2")
    assert torch.equal(indices, wanted)
    torch.testing.assert_close(margin, wanted_margin, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("x", "codebook", "metric"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 5), "l2"),
        (torch.zeros(3, 4), torch.zeros(0, 4), "l2"),
        (torch.zeros(3, 4), torch.zeros(2, 4).half(), "l2"),
        (torch.zeros(3, 4).double(), torch.zeros(2, 4).double(), "l2"),
        (torch.zeros(3, 4), torch.zeros(2, 4), "manhattan"),
    ],
)
def test_the_torch_binding_refuses_what_does_not_fit(
    library: Path, x: torch.Tensor, codebook: torch.Tensor, metric: str
) -> None:
    with pytest.raises(ValueError, match=r"want|metric"):
        Kernel(library).run(x, codebook, metric, 0)


def test_the_torch_binding_refuses_another_library(tmp_path: Path) -> None:
    (tmp_path / "no.so").write_bytes(b"not a library")
    with pytest.raises(BackendUnavailable, match="Fix:"):
        Kernel(tmp_path / "no.so")
