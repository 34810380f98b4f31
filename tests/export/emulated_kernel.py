"""The plugin's kernels compiled for the CPU; cuda_emulation plays the GPU."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import pytest

from vqedge.errors import BackendUnavailable
from vqedge.nearest_codebook import Metric
from vqedge_export.tensorrt.cuda_toolkit import find_nvcc

Array = np.ndarray[Any, Any]
METRICS = get_args(Metric)
EMULATION = Path(__file__).parent / "cuda_emulation"
SOURCES = Path(str(files("vqedge_export.tensorrt") / "plugin"))
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16)

# major compute capability, multiprocessors, shared memory: what the host chooses tiles by
HOPPER = (9, 1, 232_448)  # few processors: group products, with all stages
SMALL_HOPPER = (9, 1, 151_040)  # three stages, which is the fewest
WIDE = (10, 1, 232_448)  # the wide tile, with all stages
SMALL_WIDE = (8, 1, 101_376)  # a desktop GPU: the wide tile, two stages
MIDDLE = (9, 132, 232_448)
TURING = (7, 40, 65_536)


def cuda_include() -> Path:
    """Headers of the toolkit, or a skip with the reason."""
    try:
        return find_nvcc().home / "include"
    except BackendUnavailable as error:
        pytest.skip(str(error))


def host_compiler() -> str:
    found = shutil.which("g++")
    return found or pytest.skip("no g++ here")


def compile_for_cpu(folder: Path, changes: dict[str, dict[str, str]] | None = None) -> Path:
    """Copy the sources, put the emulation in, apply `changes` {file: {old: new}}, compile."""
    compiler, include = host_compiler(), cuda_include()
    shutil.copytree(SOURCES, folder, dirs_exist_ok=True)
    for name in ("device.cuh", "emulation.h"):
        shutil.copy(EMULATION / name, folder)
    for name, replacements in (changes or {}).items():
        text = (folder / name).read_text()
        for old, new in replacements.items():
            assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {name}"
            text = text.replace(old, new)
        (folder / name).write_text(text)
    library = folder / "emulated.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-DVQEDGE_SM90A", "-isystem", str(include)]
    source = ["-x", "c++", str(folder / "nearest_codebook.cu")]
    subprocess.run([compiler, *flags, *source, "-o", str(library)], check=True)
    return library


class EmulatedKernel:
    """The C entry on NumPy arrays."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self.entry = self._library.vqedge_nearest_codebook
        self.entry.argtypes = [
            *[ctypes.c_void_p] * 2,
            *[ctypes.c_int64] * 3,
            *[ctypes.c_int32] * 2,
            *[ctypes.c_void_p] * 3,
            ctypes.c_size_t,
            ctypes.c_void_p,
        ]
        self.workspace = self._library.vqedge_nearest_codebook_workspace
        self.workspace.argtypes, self.workspace.restype = [ctypes.c_int64] * 2, ctypes.c_size_t

    def on(self, device: tuple[int, int, int]) -> EmulatedKernel:
        """Play another GPU from now on."""
        self._library.emulated_device(*device)
        return self

    def most_shared_bytes(self) -> int:
        """Of all launches since `on`."""
        return int(self._library.emulated_shared_bytes())

    def chosen_shared_bytes(self, device: tuple[int, int, int], n: int, k: int, dtype: Any) -> int:
        """What a block of the tile asks for that a GPU takes for a size; nothing is computed."""
        self.on(device)
        self._library.emulated_blocks(False)
        memory, dtype = (64,) * 3, DTYPES.index(dtype)  # no address is followed
        try:
            status = self.entry(64, 64, n, k, 64, dtype, 0, *memory, self.workspace(n, k), None)
        finally:
            self._library.emulated_blocks(True)
        assert status == 0, f"status {status}"
        return self.most_shared_bytes()

    def __call__(self, x: Array, codebook: Array, metric: str) -> tuple[Array, Array]:
        (n, d), k = x.shape, len(codebook)
        indices, margin = np.full(n, -7, np.int32), np.full(n, -7, np.float32)
        space = aligned_array(self.workspace(n, k), np.uint8, 16)
        space[:] = 0xFF  # NaN: nothing may be read before it is written
        dtype = DTYPES.index(x.dtype)
        status = self.entry(
            *(x.ctypes.data, codebook.ctypes.data, n, k, d, dtype, METRICS.index(metric)),
            *(indices.ctypes.data, margin.ctypes.data, space.ctypes.data, space.nbytes, None),
        )
        assert status == 0, f"status {status}"
        return indices, margin


def aligned_array(count: int, dtype: Any, alignment: int, skew_bytes: int = 0) -> Array:
    """`count` values that begin `skew_bytes` after an aligned address."""
    size = count * np.dtype(dtype).itemsize
    raw = np.zeros(size + alignment + skew_bytes, np.uint8)
    start = -raw.ctypes.data % alignment + skew_bytes
    return raw[start : start + size].view(dtype)
