"""A GPU of host memory, behind the interface of `vqedge.cuda.Cuda`; it counts what is alive."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from vqedge.cuda import Cuda
from vqedge.errors import BackendUnavailable

_STREAM = 77


class FakeCuda(Cuda):
    def __init__(self, compute_capability: str = "8.7") -> None:
        self._capability = compute_capability
        self._memory: dict[int, Any] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._queued: list[Callable[[], None]] = []
        self._recording: list[Callable[[], None]] | None = None
        self.driver = "CUDA 12.6"
        self.streams = 0
        self.launches = 0
        self.uses = 0
        self.in_use = False
        self.cannot_capture = False

    @property
    def compute_capability(self) -> str:
        return self._capability

    @property
    def identity(self) -> str:
        return f"a fake, SM {self._capability}, {self.driver}"

    @property
    def alive(self) -> int:
        """Streams, graphs and pieces of memory that nobody freed, and the context."""
        return len(self._memory) + len(self._graphs) + self.streams + self.in_use

    @property
    def capturing(self) -> bool:
        return self._recording is not None

    def use(self) -> None:
        self.in_use = True
        self.uses += 1

    def close(self) -> None:
        self.in_use = False

    def new_stream(self) -> int:
        self.streams += 1
        return _STREAM

    def free_stream(self, stream: int) -> None:
        assert stream == _STREAM
        self.streams -= 1

    def queue(self, stream: int, work: Callable[[], None]) -> None:
        assert stream == _STREAM and self.in_use
        (self._queued if self._recording is None else self._recording).append(work)

    def wait(self, stream: int) -> None:
        work, self._queued = self._queued, []
        for item in work:
            item()

    def new_device_memory(self, size_bytes: int) -> int:
        memory = ctypes.create_string_buffer(b"\xaa" * size_bytes, size_bytes)
        self._memory[ctypes.addressof(memory)] = memory
        return ctypes.addressof(memory)

    new_pinned_memory = new_device_memory

    def free_device_memory(self, address: int) -> None:
        del self._memory[address]

    free_pinned_memory = free_device_memory

    def copy_to_device(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        self.queue(stream, lambda: ctypes.memmove(device, host, size_bytes) and None)

    def copy_to_host(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        self.queue(stream, lambda: ctypes.memmove(host, device, size_bytes) and None)

    def begin_capture(self, stream: int) -> None:
        if self.cannot_capture:
            raise BackendUnavailable("CUDA: cuStreamBeginCapture_v2 failed with CUDA_ERROR_UNKNOWN")
        self._recording = []

    def end_capture(self, stream: int) -> int:
        assert self._recording is not None
        graph = 1000 + len(self._graphs)
        self._graphs[graph], self._recording = self._recording, None
        return graph

    def launch(self, graph: int, stream: int) -> None:
        self.launches += 1
        for work in self._graphs[graph]:
            self.queue(stream, work)

    def free_graph(self, graph: int) -> None:
        del self._graphs[graph]

    def array_at(self, address: int, kind: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
        """The memory as an array that can be written."""
        memory = (ctypes.c_uint8 * (math.prod(shape) * kind.itemsize)).from_address(address)
        return np.ctypeslib.as_array(memory).view(kind).reshape(shape)
