"""The encoder as a TensorRT engine: own memory, one stream, a CUDA graph once it has run."""

from __future__ import annotations

import ctypes
import logging
import math
import mmap
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqedge.bundle import Bundle, EngineRecord, TensorRecord
from vqedge.cuda import Cuda
from vqedge.engines import EngineHost, Flavour, cached_plugin, fitting_engine
from vqedge.errors import BackendUnavailable, BundleError, VqedgeError
from vqedge.tensorrt import TF32_VARIABLE, log_of, made, tensorrt_module
from vqedge_runtime.encoders.compiled import KernelCache
from vqedge_runtime.encoders.protocol import Frames, Text, inputs_for
from vqedge_runtime.tokens import Codes, codes_from_outputs

logger = logging.getLogger(__name__)


def open_engine(flavour: Flavour, bundle: Bundle) -> TensorRTEncoder:
    """Open the engine that a bundle holds for this machine.

    Args:
        flavour: which TensorRT.
        bundle: verified: an engine is native code.

    Raises:
        BackendUnavailable: no TensorRT, no GPU, or no engine that may run here.
        BundleError: the engine is not what the manifest says.
    """
    return TensorRTEncoder(bundle, flavour, tensorrt_module(flavour), Cuda())


def engine_here(flavour: Flavour, bundle: Bundle) -> EngineRecord:
    """The engine that `open_engine` would run, found without loading any.

    Raises:
        BackendUnavailable: no TensorRT, no GPU, no engine that may run here, or no plugin for it.
    """
    if all(item.tensorrt_flavour != flavour for item in bundle.manifest.engines):
        raise BackendUnavailable(
            f"{bundle.root}: it holds no engine of {flavour}; "
            f"run: vqedge build {bundle.root} --target {flavour}"
        )
    capability = Cuda().compute_capability
    host = EngineHost(flavour, str(tensorrt_module(flavour).__version__), capability)
    record = fitting_engine(bundle, host)
    _plugin_of(record)
    return record


def _plugin_of(record: EngineRecord) -> Path | None:
    """The plugin library to load before an engine; a version-compatible one brings its own."""
    if record.plugin_sha256 is None or record.version_compatible:
        return None
    return cached_plugin(record.plugin_sha256)


@dataclass(frozen=True)
class _Buffer:
    """One input or output: on the GPU, and pinned on the host, where `array` looks at it."""

    device: int
    host: int
    array: npt.NDArray[Any]

    @property
    def size_bytes(self) -> int:
        return self.array.nbytes


class TensorRTEncoder:
    """Runs an engine of a bundle. Calls must not overlap.

    Args:
        bundle: the verified bundle.
        flavour: which TensorRT `trt` is.
        trt: the loaded module.
        cuda: the GPU; closed with the encoder.

    Raises:
        BackendUnavailable: the bundle holds no engine that may run here.
        BundleError: the engine is not what the manifest says.
    """

    def __init__(self, bundle: Bundle, flavour: Flavour, trt: Any, cuda: Cuda) -> None:
        host = EngineHost(flavour, str(trt.__version__), cuda.compute_capability)
        record = fitting_engine(bundle, host)
        self._trt, self._cuda, self._log = trt, cuda, log_of(trt)
        self._name = f"{flavour} {host.version} SM {host.compute_capability} {record.precision}"
        self._flavour, self._file = flavour, record.file
        self._graph: int | None = None
        self._graphless = ""
        self._kernels: KernelCache | None = None
        with ExitStack() as owned:
            owned.callback(cuda.close)
            cuda.use()
            self._stream = cuda.new_stream()
            owned.callback(cuda.free_stream, self._stream)
            owned.callback(self._forget)
            self._load(bundle, record)
            self._inputs = self._buffers(record.inputs, owned)
            self._outputs = self._buffers(record.outputs, owned)
            owned.callback(self._free_graph)
            owned.callback(cuda.use)  # freed from whatever thread closes
            self._owned = owned.pop_all()

    @property
    def name(self) -> str:
        """What runs where, as "tensorrt 10.3.0 SM 8.7 fp16"."""
        return self._name + self._graphless

    @property
    def clip_shape(self) -> tuple[int, ...]:
        """Shape of the frames that the engine takes."""
        return self._inputs["frames"].array.shape

    def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
        """Encode uint8 RGB `[T, size, size, 3]` with at most `budget` codes, or `ADAPTIVE`.

        `text` is the question, of a bundle whose tokens follow it.

        Raises:
            BackendUnavailable: the encoder was closed, or the GPU failed.
            BundleError: the engine failed, or takes frames or a text of another shape or type.
        """
        if self._context is None:
            raise BackendUnavailable("the encoder is closed; open the bundle again")
        self._cuda.use()
        for name, values in inputs_for(frames_thwc, budget, text).items():
            taken = self._inputs[name].array
            if (values.dtype, values.shape) != (taken.dtype, taken.shape):  # NumPy would convert
                given = f"{values.dtype} {values.shape}"
                raise BundleError(
                    f"{self._file}: {name} is {given}, want {taken.dtype} {taken.shape}"
                )
            taken[...] = values
        self._run()
        return codes_from_outputs({n: item.array.copy() for n, item in self._outputs.items()})

    def close(self) -> None:
        """Free engine, memory and stream; twice is fine."""
        self._owned.close()

    def _load(self, bundle: Bundle, record: EngineRecord) -> None:
        """Deserialise the engine and make a context for it."""
        path = bundle.path_of(record.file)
        self._log.forget()
        self._runtime = made(self._trt.Runtime, self._log)
        if record.version_compatible:
            self._runtime.engine_host_code_allowed = True  # such engines bring a runtime along
        elif (plugin := _plugin_of(record)) is not None:
            self._load_plugin(plugin)
        self._engine = self._deserialised(path)
        if self._engine is None:
            raise BundleError(f"{path}: TensorRT refuses the engine: {self._log.last_words()}")
        files = {file.path: file.sha256 for file in bundle.manifest.files}
        self._context = self._new_context(files[record.file])
        if self._context is None:
            raise self._no_context(path)
        self._require_tensors(path, [*record.inputs, *record.outputs])
        for profile in record.profiles:
            self._context.set_input_shape(profile.input, profile.opt)

    def _deserialised(self, path: Path) -> Any:
        """The engine, from a file in memory that the system may take back, not from a copy."""
        if path.stat().st_size == 0:  # cannot be mapped
            return None
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            return self._runtime.deserialize_cuda_engine(plan)

    def _new_context(self, engine_sha256: str) -> Any:
        """A context; RTX compiles kernels for it, or finds those of an earlier process."""
        if self._flavour != "tensorrt-rtx":
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        if config is None:
            return None
        made_for = str(self._trt.__version__), self._cuda.identity
        self._kernels = KernelCache(config, engine_sha256, *made_for)
        self._log.forget()  # what it said of kernels that it refused
        return self._engine.create_execution_context(runtime_config=config)

    def _no_context(self, path: Path) -> BackendUnavailable:
        reason, advice = self._log.last_words(), "free memory of the GPU and try again"
        if TF32_VARIABLE in reason:
            advice = f"set {TF32_VARIABLE} as it was when the engine was built, or build it again"
        return BackendUnavailable(f"{path}: no execution context ({reason}); {advice}")

    def _load_plugin(self, path: Path) -> None:
        registry = self._runtime.get_plugin_registry()  # its own: the common one takes it but once
        if registry.load_library(str(path)) is None:
            raise BackendUnavailable(f"{path}: TensorRT cannot load it; run vqedge build again")

    def _require_tensors(self, path: Path, listed: Iterable[TensorRecord]) -> None:
        """The engine's tensors are the manifest's: sizes of buffers are computed from it."""
        engine = self._engine
        names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
        found = {name: np.dtype(self._trt.nptype(engine.get_tensor_dtype(name))) for name in names}
        wanted = {item.name: np.dtype(item.dtype) for item in listed}
        if found != wanted:
            faults = ", ".join(f"{name} {kind}" for name, kind in found.items() ^ wanted.items())
            raise BundleError(
                f"{path}: engine and manifest disagree about {faults}; run vqedge build again"
            )

    def _buffers(self, tensors: Iterable[TensorRecord], owned: ExitStack) -> dict[str, _Buffer]:
        return {item.name: self._buffer(item, owned) for item in tensors}

    def _buffer(self, tensor: TensorRecord, owned: ExitStack) -> _Buffer:
        shape = tuple(int(size) for size in self._context.get_tensor_shape(tensor.name))
        dtype = np.dtype(tensor.dtype)
        size_bytes = math.prod(shape) * dtype.itemsize
        device = self._cuda.new_device_memory(size_bytes)
        owned.callback(self._cuda.free_device_memory, device)
        host = self._cuda.new_pinned_memory(size_bytes)
        owned.callback(self._cuda.free_pinned_memory, host)
        self._context.set_tensor_address(tensor.name, device)
        memory = (ctypes.c_uint8 * size_bytes).from_address(host)
        return _Buffer(device, host, np.ctypeslib.as_array(memory).view(dtype).reshape(shape))

    def _run(self) -> None:
        if self._graph is not None:
            self._cuda.launch(self._graph, self._stream)
            self._cuda.wait(self._stream)
            return
        self._queue()
        self._cuda.wait(self._stream)
        if not self._graphless:  # the first time
            self._capture()
            if self._kernels is not None:
                self._kernels.store()

    def _queue(self) -> None:
        """Copies in, the engine, copies out, all in one stream."""
        for item in self._inputs.values():
            self._cuda.copy_to_device(item.device, item.host, item.size_bytes, self._stream)
        if not self._context.execute_async_v3(self._stream):
            raise BundleError(f"{self._file}: TensorRT failed: {self._log.last_words()}")
        for item in self._outputs.values():
            self._cuda.copy_to_host(item.host, item.device, item.size_bytes, self._stream)

    def _capture(self) -> None:
        """Record a run, to launch it as a whole from now on: the first one has warmed it up."""
        if self._flavour == "tensorrt-rtx" and not self._context.is_stream_capturable(self._stream):
            self._go_without_graph("it is compiled while it runs")
            return
        try:
            self._graph = self._recorded()
        except VqedgeError as error:
            self._go_without_graph(str(error))

    def _recorded(self) -> int:
        self._cuda.begin_capture(self._stream)
        try:
            self._queue()
        except VqedgeError:
            with suppress(BackendUnavailable):  # the recording ends, whatever came of it
                self._cuda.free_graph(self._cuda.end_capture(self._stream))
            raise
        return self._cuda.end_capture(self._stream)

    def _go_without_graph(self, reason: str) -> None:
        self._graphless = ", no CUDA graph"
        logger.warning("%s: cannot be captured as a CUDA graph: %s", self._file, reason)

    def _free_graph(self) -> None:
        if self._graph is not None:
            self._cuda.free_graph(self._graph)
            self._graph = None

    def _forget(self) -> None:
        """Let go of TensorRT's objects, the inner ones first."""
        self._context = self._kernels = self._engine = self._runtime = None
