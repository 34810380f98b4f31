"""The C entry on this machine's GPU, for compute-sanitizer to watch; without PyTorch, so that every
launch and every piece of memory it sees is ours.

    compute-sanitizer --tool memcheck python tests/gpu/sanitized_kernel.py LIBRARY
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import ExitStack, closing
from itertools import product

import numpy as np
import numpy.typing as npt
from kernel_sizes import SANITIZED

from vqedge.cuda import Cuda

DTYPES: dict[int, type[np.generic]] = {0: np.float32, 1: np.float16, 2: np.uint16}  # bits of bf16
METRICS = range(3)


class Gpu:
    """Device memory that is filled from and read to NumPy, freed with the stack."""

    def __init__(self, cuda: Cuda, owned: ExitStack) -> None:
        self.cuda, self.owned = cuda, owned
        self.stream = cuda.new_stream()
        owned.callback(cuda.free_stream, self.stream)

    def room(self, size_bytes: int) -> int:
        address = self.cuda.new_device_memory(max(size_bytes, 1))
        self.owned.callback(self.cuda.free_device_memory, address)
        return address

    def put(self, values: npt.NDArray[np.generic]) -> int:
        address = self.room(values.nbytes)
        self.cuda.copy_to_device(address, values.ctypes.data, values.nbytes, self.stream)
        self.cuda.wait(self.stream)
        return address

    def take(self, address: int, count: int, kind: type[np.generic]) -> npt.NDArray[np.generic]:
        values = np.empty(count, kind)
        self.cuda.copy_to_host(values.ctypes.data, address, values.nbytes, self.stream)
        self.cuda.wait(self.stream)
        return values


def main() -> None:
    """Every type, metric and size once; ids have to be those of codes."""
    library = ctypes.CDLL(sys.argv[1])
    library.vqedge_nearest_codebook_workspace.restype = ctypes.c_size_t
    random = np.random.default_rng(0)
    with closing(Cuda()) as cuda:  # one context: under a sanitizer each takes long to make
        cuda.use()
        for dtype, metric, size in product(DTYPES, METRICS, SANITIZED):
            with ExitStack() as owned:
                ids = run(library, Gpu(cuda, owned), random, dtype, metric, size)
            assert ids.min() >= 0 and ids.max() < size[1], (dtype, metric, size)


def run(
    library: ctypes.CDLL,
    gpu: Gpu,
    random: np.random.Generator,
    dtype: int,
    metric: int,
    size: tuple[int, int, int],
) -> npt.NDArray[np.generic]:
    """The ids of random rows."""
    n, k, d = size
    x, codebook = (gpu.put(drawn(random, rows, d, dtype)) for rows in (n, k))
    needed = int(library.vqedge_nearest_codebook_workspace(ctypes.c_int64(n), ctypes.c_int64(k)))
    indices, margin, workspace = gpu.room(4 * n), gpu.room(4 * n), gpu.room(needed)
    status = library.vqedge_nearest_codebook(
        *map(ctypes.c_void_p, (x, codebook)),
        *map(ctypes.c_int64, size),
        *map(ctypes.c_int32, (dtype, metric)),
        *map(ctypes.c_void_p, (indices, margin, workspace)),
        *(ctypes.c_size_t(needed), ctypes.c_void_p(gpu.stream)),
    )
    assert status == 0, status
    gpu.take(margin, n, np.float32)
    return gpu.take(indices, n, np.int32)


def drawn(
    random: np.random.Generator, rows: int, columns: int, dtype: int
) -> npt.NDArray[np.generic]:
    """Rows of about length 1."""
    values = (random.normal(size=(rows, columns)) / columns**0.5).astype(np.float32)
    if dtype == 2:
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(DTYPES[dtype])


if __name__ == "__main__":
    main()
