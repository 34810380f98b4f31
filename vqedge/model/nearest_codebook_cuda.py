"""The CUDA kernel behind `torch.ops.vqedge.nearest_codebook`, once somebody asks for it.

    use_kernel(kernel_library())    # from vqedge_export.tensorrt.plugin_build

From then on CUDA tensors go through the kernel, in this process. Without that call, for every other
device, and under `torch.vmap`, the op stays what `vqedge.model.nearest_codebook` says. Nothing in
vqedge makes the call: training and the verification of exports run PyTorch's own operations, many
clips in one product where the kernel would be a launch a clip (docs/adr/0009).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from vqedge.errors import BackendUnavailable
from vqedge.model.nearest_codebook import nearest_codebook
from vqedge.nearest_codebook import Metric

ABI = 1  # VQEDGE_NEAREST_CODEBOOK_ABI in nearest_codebook.h
_DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_ENTRY_ARGUMENTS = (
    *(ctypes.c_void_p,) * 2,  # x, codebook
    *(ctypes.c_int64,) * 3,  # n, k, d
    *(ctypes.c_int32,) * 2,  # dtype, metric
    *(ctypes.c_void_p,) * 3,  # indices, margin, workspace
    ctypes.c_size_t,
    ctypes.c_void_p,  # stream
)


class Kernel:
    """A compiled kernel library. Holds no device memory.

    Raises:
        BackendUnavailable: the library cannot be loaded or is of another version.
    """

    def __init__(self, library: Path) -> None:
        try:
            self._library = ctypes.CDLL(str(library))
            abi = int(self._library.vqedge_nearest_codebook_abi())
        except (OSError, AttributeError) as error:
            raise BackendUnavailable(
                f"{library} is no kernel library: {error}. Fix: delete its folder to build it again"
            ) from error
        if abi != ABI:
            raise BackendUnavailable(
                f"{library} has version {abi} of the C entry, this vqedge wants {ABI}. "
                f"Fix: delete its folder to build it again"
            )
        self._entry = self._library.vqedge_nearest_codebook
        self._entry.argtypes = _ENTRY_ARGUMENTS
        self._workspace = self._library.vqedge_nearest_codebook_workspace
        self._workspace.argtypes, self._workspace.restype = (ctypes.c_int64,) * 2, ctypes.c_size_t
        self._status = self._library.vqedge_nearest_codebook_status
        self._status.restype = ctypes.c_char_p

    def __call__(self, x: Tensor, codebook: Tensor, metric: str = "l2") -> tuple[Tensor, Tensor]:
        """The op on CUDA tensors, on their device's current stream. See `nearest_codebook`."""
        with torch.cuda.device(x.device):
            return self.run(x, codebook, metric, torch.cuda.current_stream().cuda_stream)

    def run(self, x: Tensor, codebook: Tensor, metric: str, stream: int) -> tuple[Tensor, Tensor]:
        """The op on the given stream, in the library's memory space.

        Raises:
            ValueError: shapes, types or devices do not fit, or the metric is unknown.
            RuntimeError: the kernel could not be launched.
        """
        _check(x, codebook, metric)
        x, codebook = x.contiguous(), codebook.contiguous()
        (n, d), k = x.shape, len(codebook)
        indices = x.new_empty(n, dtype=torch.int32)
        margin = x.new_empty(n, dtype=torch.float32)
        workspace = x.new_empty(self._workspace(n, k), dtype=torch.uint8)
        status = self._entry(
            x.data_ptr(),
            codebook.data_ptr(),
            *(n, k, d),
            *(_DTYPES[x.dtype], get_args(Metric).index(metric)),
            *(indices.data_ptr(), margin.data_ptr(), workspace.data_ptr()),
            *(workspace.nbytes, stream),
        )
        if status:
            raise RuntimeError(f"nearest_codebook kernel: {self._status(status).decode()}")
        return indices, margin


def use_kernel(library: Path) -> None:
    """Let `torch.ops.vqedge.nearest_codebook` run CUDA tensors through a compiled kernel.

    Raises:
        BackendUnavailable: see `Kernel`.
    """
    nearest_codebook.register_kernel("cuda", Kernel(library))


def _check(x: Tensor, codebook: Tensor, metric: str) -> None:
    if x.ndim != 2 or codebook.ndim != 2 or x.shape[1] != codebook.shape[1] or not len(codebook):
        shapes = f"{tuple(x.shape)}, {tuple(codebook.shape)}"
        raise ValueError(f"want x [N, D] and codebook [K >= 1, D], got {shapes}")
    if x.dtype not in _DTYPES or codebook.dtype != x.dtype or codebook.device != x.device:
        raise ValueError(
            f"want both of one float type on one device, got {x.dtype} on {x.device} and "
            f"{codebook.dtype} on {codebook.device}"
        )
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {get_args(Metric)}, got {metric!r}")
