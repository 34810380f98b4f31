"""Run the emulated kernel on arrays fenced by unreadable pages: python fenced_run.py LIBRARY."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
from pathlib import Path
from typing import Any

import numpy as np
from emulated_kernel import DTYPES, HOPPER, METRICS, MIDDLE, WIDE, EmulatedKernel

Array = np.ndarray[Any, Any]
SHAPES = ((1, 1, 3), (70, 32, 72), (129, 257, 67), (65, 129, 128))


class Fence:
    """Arrays that end, or begin, at a page nobody may touch. The mappings live as long as this."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._libc = ctypes.CDLL(None)

    def array(self, count: int, dtype: Any, at_end: bool) -> Array:
        size = count * np.dtype(dtype).itemsize
        inner = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = mmap.mmap(-1, inner + 2 * mmap.PAGESIZE)
        self._maps.append(pages)
        whole = np.frombuffer(pages, np.uint8)
        base = whole.ctypes.data
        for edge in (base, base + mmap.PAGESIZE + inner):
            if self._libc.mprotect(ctypes.c_void_p(edge), mmap.PAGESIZE, 0):
                raise OSError("mprotect failed")
        start = mmap.PAGESIZE + (inner - size if at_end else 0)
        return whole[start : start + size].view(dtype)


def main() -> None:
    """All types, metrics and edges; a crash is the finding."""
    kernel = EmulatedKernel(Path(sys.argv[1]))
    cases = itertools.product((MIDDLE, WIDE, HOPPER), SHAPES, DTYPES, METRICS, (False, True))
    for seed, (device, (n, k, d), dtype, metric, at_end) in enumerate(cases):
        fence, random = Fence(), np.random.default_rng(seed)
        x = fence.array(n * d, dtype, at_end).reshape(n, d)
        codebook = fence.array(k * d, dtype, at_end).reshape(k, d)
        x[:], codebook[:] = random.normal(size=(n, d)), random.normal(size=(k, d))
        indices, margin = (fence.array(n, kind, at_end) for kind in (np.int32, np.float32))
        size = kernel.workspace(n, k)
        space = fence.array(size + -size % 16, np.uint8, at_end)
        status = kernel.on(device).entry(
            *(x.ctypes.data, codebook.ctypes.data, n, k, d),
            *(DTYPES.index(dtype), METRICS.index(metric)),
            *(indices.ctypes.data, margin.ctypes.data, space.ctypes.data, space.nbytes, None),
        )
        assert status == 0
        assert 0 <= indices.min() <= indices.max() < k


if __name__ == "__main__":
    main()
