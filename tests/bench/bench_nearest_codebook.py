"""How fast NearestCodebook is on this GPU, beside what one would use instead.

    python tests/bench/bench_nearest_codebook.py [--json FILE]

All in one run, medians and 90th percentiles of CUDA-event times. Inputs rotate, so that nothing is
left in the cache from the call before; a rotation is one CUDA graph where it can be. Our kernel is
not timed unless its ids agree with float64; a competitor that rounds scores to half precision is
timed all the same, its wrong ids beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from float64_reference import Choice, agreement, float64_choice
from torch import Tensor

from vqedge.errors import VqedgeError
from vqedge.model.nearest_codebook_cuda import Kernel
from vqedge_export.tensorrt.plugin_build import kernel_library

OURS, GEMM = "vqedge kernel", "bare GEMM"
TOLERANCE = 1e-3
# What docs/adr/0009 set out to reach on an H100 at 23,328 x 1,152.
BARS = {
    32: {"torch.compile": 0.8},
    1_024: {"torch.compile": 0.9, GEMM: 1.15},
    8_192: {"torch.compile": 0.9, GEMM: 1.15},
}
LIBRARIES = ("FAISS", "cuVS")  # they allocate and synchronise: no graph
WARM_UP, REPEATS = 3, 30
ROTATED_BYTES = 256 << 20  # several times the L2 cache of any GPU named below
# Dense float16 TFLOP/s and memory TB/s of the data sheets: for the distance to the roofline.
PEAKS = {
    "H100": (989.0, 3.35),
    "H200": (989.0, 4.8),
    "A100": (312.0, 2.0),
    "RTX 4090": (165.0, 1.0),
}

Chooser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Timing:
    """One competitor on one size."""

    name: str
    median_ms: float
    p90_ms: float
    wrong_ids: int | None  # beyond the tolerance; None: it gives no ids


@dataclass(frozen=True)
class Case:
    """All competitors on one size. `floor_ms` is the roofline of the data sheet, if known."""

    n: int
    k: int
    d: int
    floor_ms: float | None
    timings: tuple[Timing, ...]
    failures: dict[str, str]

    def median_of(self, name: str) -> float | None:
        return next((t.median_ms for t in self.timings if t.name == name), None)


def main() -> int:
    """Run all cases, print tables, perhaps write JSON.

    Returns:
        the exit status: 1 if our kernel is wrong, or cannot run here.
    """
    arguments = _arguments()
    if not torch.cuda.is_available():
        sys.stderr.write("bench: PyTorch sees no NVIDIA GPU; run this where there is one\n")
        return 1
    try:
        kernel = Kernel(kernel_library())
        cases = []
        for k in arguments.k:
            cases.append(measured(kernel, arguments.n, k, arguments.d))
            print_case(cases[-1])  # at once: what comes later may take all of the GPU's memory
    except VqedgeError as error:
        sys.stderr.write(f"bench: {error}\n")
        return 1
    if arguments.json:
        report = {"machine": machine(), "cases": [asdict(case) for case in cases]}
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


def measured(kernel: Kernel, n: int, k: int, d: int) -> Case:
    """Check, then time, every competitor on float16 vectors of about length 1, metric l2."""
    rotation = list(inputs(n, k, d))
    reference = float64_choice(*rotation[0], "l2")
    timings, failures = [], {}
    for name, choose in competitors(kernel).items():
        try:
            wrong = wrong_ids(choose(*rotation[0]), reference) if name != GEMM else None
            if name == OURS and wrong:
                raise VqedgeError(f"the kernel gives {wrong} wrong ids of {n} at K={k}; not timed")
            timings.append(timed(name, choose, rotation, wrong))
        except Exception as error:  # whatever a library raises costs its own row only
            if name == OURS:
                raise
            failures[name] = " ".join(f"{type(error).__name__}: {error}".split())[:100]
    return Case(n, k, d, floor_ms(n, k, d), tuple(timings), failures)


def inputs(n: int, k: int, d: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Enough pairs (x, codebook) to push each other out of the cache."""
    generator = torch.Generator("cuda").manual_seed(0)
    pairs = max(2, -(-ROTATED_BYTES // ((n + k) * d * 2)))
    for _ in range(pairs):
        drawn = torch.randn(n + k, d, generator=generator, device="cuda") / d**0.5
        yield tuple(part.contiguous() for part in drawn.half().split([n, k]))  # type: ignore[misc]


def competitors(kernel: Kernel) -> dict[str, Chooser]:
    """Ours first. Libraries that are not installed are left out."""
    torch._dynamo.reset()
    found: dict[str, Chooser] = {
        OURS: lambda x, codebook: kernel(x, codebook, "l2")[0],
        "torch eager": _by_matmul,
        "torch.compile": torch.compile(_by_matmul),
        "torch.cdist + argmin": lambda x, codebook: torch.cdist(x, codebook).argmin(dim=1),
        GEMM: lambda x, codebook: x @ codebook.T,
    }
    return found | _faiss() | _cuvs()


def _by_matmul(x: Tensor, codebook: Tensor) -> Tensor:
    """What one writes in PyTorch: half-precision product, bias, argmax."""
    norms = (codebook.float() ** 2).sum(dim=1)
    return (2.0 * (x @ codebook.T) - norms).argmax(dim=1)


def _faiss() -> dict[str, Chooser]:
    try:
        faiss = importlib.import_module("faiss")
        importlib.import_module("faiss.contrib.torch_utils")
        resources = faiss.StandardGpuResources()
    except (ImportError, AttributeError):
        return {}
    return {"FAISS": lambda x, codebook: faiss.knn_gpu(resources, x, codebook, 1)[1][:, 0]}


def _cuvs() -> dict[str, Chooser]:
    try:
        brute_force = importlib.import_module("cuvs.neighbors.brute_force")
    except ImportError:
        return {}

    def choose(x: Tensor, codebook: Tensor) -> Tensor:
        index = brute_force.build(codebook, metric="sqeuclidean")
        return torch.as_tensor(brute_force.search(index, x, 1)[1], device="cuda")[:, 0]

    return {"cuVS": choose}


def wrong_ids(indices: Tensor, reference: Choice) -> int:
    """Ids that differ from float64 where its margin is above the tolerance."""
    return agreement(indices, torch.zeros_like(reference.margin), reference, TOLERANCE).wrong


def timed(
    name: str, choose: Chooser, rotation: list[tuple[Tensor, Tensor]], wrong: int | None
) -> Timing:
    """CUDA-event times of whole rotations, per call."""
    run = _once(choose, rotation) if name in LIBRARIES else _captured(choose, rotation)
    for _ in range(WARM_UP):
        run()
    times_ms = []
    for _ in range(REPEATS):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize()
        times_ms.append(start.elapsed_time(stop) / len(rotation))
    times_ms.sort()
    return Timing(name, statistics.median(times_ms), times_ms[REPEATS * 9 // 10], wrong)


def _once(choose: Chooser, rotation: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    def run() -> None:
        for pair in rotation:
            choose(*pair)

    return run


def _captured(choose: Chooser, rotation: list[tuple[Tensor, Tensor]]) -> Callable[[], None]:
    """The rotation as a CUDA graph: the time is the GPU's, not that of Python launching kernels."""
    run, graph, side = _once(choose, rotation), torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.stream(side):
        run()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def floor_ms(n: int, k: int, d: int) -> float | None:
    """The larger of arithmetic and traffic at the data sheet's peaks, None for an unknown GPU."""
    device = torch.cuda.get_device_name()
    peaks = next((peak for name, peak in PEAKS.items() if name in device), None)
    if peaks is None:
        return None
    flops, traffic_bytes = 2.0 * n * k * d, 2.0 * (n + k) * d + 8.0 * n
    return 1e3 * max(flops / (peaks[0] * 1e12), traffic_bytes / (peaks[1] * 1e12))


def print_case(case: Case) -> None:
    """A table with ratios to our time."""
    ours = case.median_of(OURS) or float("nan")
    floor = f"{case.floor_ms:.3f} ms" if case.floor_ms else "unknown for this GPU"
    print(f"\nN={case.n} K={case.k} D={case.d} float16; roofline {floor}")
    print(f"{'':<24}{'median ms':>11}{'p90 ms':>9}{'ours / this':>13}{'wrong ids':>11}")
    for t in case.timings:
        wrong = "-" if t.wrong_ids is None else str(t.wrong_ids)
        ratio = ours / t.median_ms
        print(f"{t.name:<24}{t.median_ms:>11.4f}{t.p90_ms:>9.4f}{ratio:>13.2f}{wrong:>11}")
    for name, reason in case.failures.items():
        print(f"{name:<24}{reason}")
    for name, most in BARS.get(case.k, {}).items():
        if other := case.median_of(name):
            verdict = "met" if ours <= most * other else "missed"
            print(f"bar: at most {most} of {name}: {verdict} ({ours / other:.2f})")
    if case.floor_ms:
        print(f"{OURS} takes {ours / case.floor_ms:.2f} times the roofline")


def machine() -> dict[str, str | None]:
    """What the figures depend on."""
    found: dict[str, str | None] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    for name in ("faiss-gpu-cu12", "cuvs-cu12", "triton"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("-n", type=int, default=23_328, help="rows (default: %(default)s)")
    parser.add_argument("-d", type=int, default=1_152, help="columns (default: %(default)s)")
    parser.add_argument("-k", type=int, nargs="+", default=[32, 1_024, 8_192], help="codes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
