"""The CUDA driver through ctypes: memory, copies, one stream, graphs.

`libcuda` comes with every NVIDIA driver and keeps its interface over CUDA 12 and 13, so that a
device needs no CUDA package of the right major version. See docs/adr/0010-engines.md.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    byref,
    c_char,
    c_char_p,
    c_int,
    c_size_t,
    c_uint,
    c_uint64,
    c_void_p,
    create_string_buffer,
)
from pathlib import Path
from typing import Any

from vqedge.errors import BackendUnavailable

_LIBRARY = "libcuda.so.1"
_DEVICE_FILES = ("nvidia0", "nvidiactl", "nvhost-gpu", "nvgpu")  # the latter of a Jetson
_CC_MAJOR, _CC_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_NAME_BYTES = 256
_NON_BLOCKING_STREAM = 1
_CAPTURE_THREAD_LOCAL = 1
_HANDLE, _ADDRESS = c_void_p, c_uint64  # an opaque pointer; a CUdeviceptr

_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDeviceGetName": (POINTER(c_char), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(_HANDLE), c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxGetCurrent": (POINTER(_HANDLE),),
    "cuCtxSetCurrent": (_HANDLE,),
    "cuStreamCreate": (POINTER(_HANDLE), c_uint),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamBeginCapture_v2": (_HANDLE, c_int),
    "cuStreamEndCapture": (_HANDLE, POINTER(_HANDLE)),
    "cuGraphInstantiateWithFlags": (POINTER(_HANDLE), _HANDLE, c_uint64),
    "cuGraphDestroy": (_HANDLE,),
    "cuGraphExecDestroy": (_HANDLE,),
    "cuGraphLaunch": (_HANDLE, _HANDLE),
    "cuMemAlloc_v2": (POINTER(_ADDRESS), c_size_t),
    "cuMemFree_v2": (_ADDRESS,),
    "cuMemHostAlloc": (POINTER(_HANDLE), c_size_t, c_uint),
    "cuMemFreeHost": (_HANDLE,),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, _HANDLE, c_size_t, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (_HANDLE, _ADDRESS, c_size_t, _HANDLE),
}


class Cuda:
    """The first GPU that this process may use, and its primary context.

    Addresses and handles are plain integers; whoever makes one frees it.

    Args:
        library: the loaded driver library; the system's by default.

    Raises:
        BackendUnavailable: there is no driver, or no GPU.
    """

    def __init__(self, library: Any = None) -> None:
        self._lib = _typed(library if library is not None else _driver_library())
        self._context: int | None = None
        self._call("cuInit", 0)
        device = c_int()
        self._call("cuDeviceGet", byref(device), 0)
        self._device = device.value

    @property
    def compute_capability(self) -> str:
        """As "8.7"."""
        return f"{self._attribute(_CC_MAJOR)}.{self._attribute(_CC_MINOR)}"

    @property
    def driver_version(self) -> tuple[int, int]:
        """The newest CUDA that the driver knows, as (12, 6)."""
        value = c_int()
        self._call("cuDriverGetVersion", byref(value))
        return _version(value.value)

    @property
    def identity(self) -> str:
        """What compiled kernels are made for, as "Orin, SM 8.7, CUDA 12.6"."""
        name = create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, self._device)
        cuda = ".".join(map(str, self.driver_version))
        label = name.value.decode(errors="replace")
        return f"{label}, SM {self.compute_capability}, CUDA {cuda}"

    def use(self) -> None:
        """Make the GPU's primary context current in the calling thread."""
        if self._context is None:
            self._context = self._made("cuDevicePrimaryCtxRetain", self._device)
        self._call("cuCtxSetCurrent", self._context)

    def close(self) -> None:
        """Give the context back; twice is fine. The calling thread uses it no more."""
        context, self._context = self._context, None
        if context is None:
            return
        if self._current_context() == context:  # releasing it does not take it from the thread
            self._call("cuCtxSetCurrent", None)
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def new_stream(self) -> int:
        """A stream that waits for no other."""
        return self._made("cuStreamCreate", _NON_BLOCKING_STREAM)

    def free_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cuStreamDestroy_v2", stream)

    def wait(self, stream: int) -> None:
        """Wait for all work in a stream."""
        self._call("cuStreamSynchronize", stream)

    def new_device_memory(self, size_bytes: int) -> int:
        """Memory on the GPU."""
        address = _ADDRESS()
        self._call("cuMemAlloc_v2", byref(address), size_bytes)
        return int(address.value)

    def free_device_memory(self, address: int) -> None:
        """Free memory on the GPU."""
        self._call("cuMemFree_v2", address)

    def new_pinned_memory(self, size_bytes: int) -> int:
        """Memory of the host that the GPU copies from and to without a detour."""
        return self._made("cuMemHostAlloc", size_bytes, 0)

    def free_pinned_memory(self, address: int) -> None:
        """Free pinned memory."""
        self._call("cuMemFreeHost", address)

    def copy_to_device(self, device: int, host: int, size_bytes: int, stream: int) -> None:
        """Queue a copy from pinned memory."""
        self._call("cuMemcpyHtoDAsync_v2", device, host, size_bytes, stream)

    def copy_to_host(self, host: int, device: int, size_bytes: int, stream: int) -> None:
        """Queue a copy to pinned memory."""
        self._call("cuMemcpyDtoHAsync_v2", host, device, size_bytes, stream)

    def begin_capture(self, stream: int) -> None:
        """Record what this thread queues into the stream instead of running it."""
        self._call("cuStreamBeginCapture_v2", stream, _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """The recorded work, ready to be launched."""
        graph = self._made("cuStreamEndCapture", stream, handle_last=True)
        try:
            return self._made("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """Queue recorded work."""
        self._call("cuGraphLaunch", graph, stream)

    def free_graph(self, graph: int) -> None:
        """Forget recorded work."""
        self._call("cuGraphExecDestroy", graph)

    def _current_context(self) -> int | None:
        current = _HANDLE()
        self._call("cuCtxGetCurrent", byref(current))
        return current.value

    def _attribute(self, number: int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), number, self._device)
        return value.value

    def _made(self, function: str, *arguments: int, handle_last: bool = False) -> int:
        """Call a function that gives a handle or an address."""
        made = _HANDLE()
        place = [*arguments, byref(made)] if handle_last else [byref(made), *arguments]
        self._call(function, *place)
        if made.value is None:
            raise BackendUnavailable(f"CUDA: {function} gave nothing; see `vqedge doctor`")
        return made.value

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._lib, function)(*arguments)
        if status:
            raise BackendUnavailable(
                f"CUDA: {function} failed with {self._error_name(status)}; "
                "check the GPU and its driver with nvidia-smi, or use --backend auto"
            )

    def _error_name(self, status: int) -> str:
        name = c_char_p()
        if self._lib.cuGetErrorName(status, byref(name)) or name.value is None:
            return f"error {status}"
        return name.value.decode()


def installed_driver(library: Any = None) -> tuple[int, int] | None:
    """The newest CUDA that the driver knows, as (12, 6), or None without one; wakes no GPU."""
    try:
        driver = library if library is not None else _driver_library()
    except BackendUnavailable:
        return None
    value = c_int()
    return None if driver.cuDriverGetVersion(byref(value)) else _version(value.value)


def nvidia_device_files() -> list[str]:
    """What NVIDIA's driver puts into `/dev`, as ["/dev/nvidia0"]; nothing in WSL."""
    return sorted(str(path) for path in Path("/dev").glob("nv*") if path.name in _DEVICE_FILES)


def has_nvidia_gpu() -> bool:
    """Whether there is a GPU of NVIDIA's, as far as can be told without waking it."""
    return bool(nvidia_device_files()) or installed_driver() is not None


def _version(number: int) -> tuple[int, int]:
    return number // 1000, number % 1000 // 10


def _driver_library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise BackendUnavailable(
            f"no NVIDIA driver on this machine ({_LIBRARY} cannot be loaded); "
            "install one, or use --backend auto"
        ) from error


def _typed(library: Any) -> Any:
    """Give every function its types: a handle passed as a plain int would be cut to 32 bits."""
    for name, types in _SIGNATURES.items():
        function = getattr(library, name, None)
        if function is None:
            raise BackendUnavailable(
                f"the NVIDIA driver is too old, it has no {name}; update it, or use --backend auto"
            )
        function.argtypes, function.restype = types, c_int
    return library
