"""A TensorRT made of Python: it records what it is told and builds plans that are JSON.

`fake_tensorrt("10.3.0")` has the names that version has; 11 has no precision flags, RTX has compute
capabilities. tests/e2e/test_tensorrt_rtx.py holds the RTX one against the real library.
"""

from __future__ import annotations

import json
from enum import Enum, IntEnum
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
from fake_cuda import FakeCuda

_KINDS = {1: "FLOAT", 2: "UINT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF"}
_NUMPY = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}


class DataType(Enum):
    FLOAT, HALF, UINT8, INT32, INT64, BOOL = "FLOAT", "HALF", "UINT8", "INT32", "INT64", "BOOL"


LayerType = Enum("LayerType", "CONSTANT OTHER")


class Severity(IntEnum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    Severity = Severity

    def __init__(self) -> None:
        pass


class FakeTensor:
    def __init__(self, name: str, kind: str, shape: tuple[int, ...]) -> None:
        self.name, self.dtype, self.shape = name, DataType[kind], shape
        self.is_shape_tensor = False


class FakeLayer:
    """A layer with the types of what it gives and reads, by name; None is an input left out."""

    def __init__(
        self,
        name: str,
        made: tuple[str, ...],
        read: tuple[str | None, ...],
        kind: LayerType = LayerType.OTHER,
    ) -> None:
        self.name, self.num_outputs, self.num_inputs = name, len(made), len(read)
        self.type = kind
        self._made = [SimpleNamespace(dtype=DataType[kind]) for kind in made]
        self._read = [kind and SimpleNamespace(dtype=DataType[kind]) for kind in read]
        self.precision: DataType | None = None
        self.output_types: dict[int, DataType] = {}

    def set_output_type(self, place: int, kind: DataType) -> None:
        self.output_types[place] = kind

    def get_output(self, place: int) -> Any:
        return self._made[place]

    def get_input(self, place: int) -> Any:
        return self._read[place]


class FakeNetwork:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.inputs: list[FakeTensor] = []
        self.outputs: list[FakeTensor] = []
        self.layers: list[FakeLayer] = []
        self.functions: list[str] = []

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))
    num_layers = property(lambda self: len(self.layers))

    def get_input(self, place: int) -> FakeTensor:
        return self.inputs[place]

    def get_output(self, place: int) -> FakeTensor:
        return self.outputs[place]

    def get_layer(self, place: int) -> FakeLayer:
        return self.layers[place]


class FakeConfig:
    """What a builder was told."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.flags: list[str] = ["TF32"]  # on unless it is cleared
        self.limits: dict[str, int] = {}
        self.profiles: list[FakeProfile] = []
        self.capabilities: dict[int, str] = {}
        self.known_timings: bytes | None = None
        self.plugins_to_serialize: list[str] = []
        self.builder_optimization_level = 3
        self.hardware_compatibility_level = "NONE"
        self.num_compute_capabilities = 0

    def set_flag(self, flag: Any) -> None:
        self.flags.append(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.remove(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.limits[pool.name] = size

    def set_compute_capability(self, capability: Any, index: int) -> bool:
        self.capabilities[index] = capability.name
        return True

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        if self._trt.refuses_profiles:
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, data: bytes) -> Any:
        return None if data == b"damaged" else SimpleNamespace(data=data)

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.data == b"timings of another GPU":
            return False
        self.known_timings = cache.data
        return True

    def get_timing_cache(self) -> Any:
        known = self.known_timings is not None
        return SimpleNamespace(serialize=lambda: b"timings") if known else None


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, Any, Any]] = {}

    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self.shapes[name] = (least, usual, most)


class FakeBuilder:
    def __init__(self, trt: FakeTensorRT, log: Any) -> None:
        self._trt, self._log = trt, log

    def create_network(self, flags: int) -> FakeNetwork:
        self._trt.network = FakeNetwork(flags)
        return self._trt.network

    def create_builder_config(self) -> FakeConfig:
        self._trt.config = FakeConfig(self._trt)
        return self._trt.config

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile()

    def build_serialized_network(self, network: FakeNetwork, config: FakeConfig) -> bytes | None:
        self._trt.dies_now_if_told()
        self._log.log(Severity.WARNING, "a warning")
        self._log.log(Severity.INFO, "chosen a kernel")
        self._log.log(Severity.VERBOSE, "a number of everything")
        if self._trt.fails_to_build:
            self._log.log(Severity.ERROR, "no kernel for\n this layer")
            return None
        tensors = [
            (item.name, item.dtype.name, list(item.shape), item in network.inputs)
            for item in (*network.inputs, *network.outputs)
        ]
        return json.dumps({"made_by": self._trt.__version__, "tensors": tensors}).encode()


class FakeParser:
    def __init__(self, trt: FakeTensorRT, network: FakeNetwork, log: Any) -> None:
        self._trt, self._network = trt, network
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        if self._trt.cannot_parse:
            self.num_errors = 1
            return False
        graph = (model := onnx.load(path)).graph
        self._network.inputs = [self._tensor(item) for item in graph.input]
        self._network.outputs = [self._tensor(item) for item in graph.output]
        self._network.functions = [item.name for item in model.functions]
        whole = {"Shape": "INT64", "ArgMin": "INT64"}
        self._network.layers = [  # as TensorRT names weights
            FakeLayer(item.name, (_KINDS[item.data_type],), (), LayerType.CONSTANT)
            for item in graph.initializer
        ] + [
            FakeLayer(node.name, (whole.get(node.op_type, "FLOAT"),), ("FLOAT",) * len(node.input))
            for node in graph.node
        ]
        return True

    def get_error(self, place: int) -> Any:
        return SimpleNamespace(desc=lambda: f"fault {place}: op Foo\nis unknown")

    def _tensor(self, item: onnx.ValueInfoProto) -> FakeTensor:
        kind = item.type.tensor_type
        shape = tuple(-1 if size.dim_param else size.dim_value for size in kind.shape.dim)
        tensor = FakeTensor(item.name, _KINDS[kind.elem_type], shape)
        tensor.is_shape_tensor = item.name in self._trt.shape_tensors
        return tensor


class FakeRegistry:
    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.refuses = False

    def load_library(self, path: str) -> object | None:
        again = path in self.loaded  # as TensorRT: creators that are registered are refused
        self.loaded.append(path)
        return None if self.refuses or again else object()


class FakeRuntime:
    def __init__(self, trt: FakeTensorRT, log: Any) -> None:
        self._trt, self._log = trt, log
        self.engine_host_code_allowed = False
        self.registry = FakeRegistry()
        self.plan: Any = None
        trt.runtime = self

    def get_plugin_registry(self) -> FakeRegistry:
        return self.registry

    def deserialize_cuda_engine(self, data: Any) -> FakeEngine | None:
        self.plan = data
        try:
            return FakeEngine(self._trt, json.loads(bytes(data))["tensors"])
        except ValueError:
            self._log.log(Severity.ERROR, "magic tag does not match")
            return None


class FakeEngine:
    def __init__(self, trt: FakeTensorRT, tensors: list[tuple[str, str, list[int], bool]]) -> None:
        self.trt = trt
        self.tensors = {name: (kind, tuple(shape), is_in) for name, kind, shape, is_in in tensors}
        self.num_io_tensors = len(tensors)

    def get_tensor_name(self, place: int) -> str:
        return list(self.tensors)[place]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self.tensors[name][0]]

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig(self.trt)

    def create_execution_context(
        self, runtime_config: FakeRuntimeConfig | None = None
    ) -> FakeContext | None:
        if self.trt.out_of_memory:
            self.trt.runtime._log.log(Severity.ERROR, self.trt.why_no_context)
            return None
        return FakeContext(self, runtime_config and runtime_config.cache)


class FakeRuntimeConfig:
    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.cache: FakeRuntimeCache | None = None

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache(self._trt)

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self.cache = cache
        return True


class FakeRuntimeCache:
    """Holds the kernels of an engine; refuses those of another version, and is spoilt."""

    def __init__(self, trt: FakeTensorRT) -> None:
        self._trt = trt
        self.kernels = b""

    def compile(self) -> None:
        if not self.kernels:
            self._trt.compiled += 1
            self.kernels = b"kernels of " + self._trt.__version__.encode()

    def deserialize(self, blob: bytes) -> bool:
        self.kernels = blob
        return blob.endswith(self._trt.__version__.encode())

    def serialize(self) -> bytes:
        return self.kernels


class FakeContext:
    """Runs `trt.program`, a function from input arrays to output arrays by name."""

    def __init__(self, engine: FakeEngine, cache: FakeRuntimeCache | None) -> None:
        self._engine, self._cache = engine, cache or FakeRuntimeCache(engine.trt)
        self.shapes = {name: shape for name, (_, shape, _) in engine.tensors.items()}
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._engine.trt.capturable

    def execute_async_v3(self, stream: int) -> bool:
        trt = self._engine.trt
        if trt.fails_to_run or (trt.gpu.capturing and not trt.capturable):
            return False
        self._cache.compile()
        trt.gpu.queue(stream, self._work)
        return True

    def _work(self) -> None:
        arrays = {name: self._array(name) for name in self.addresses}
        inputs = {name for name, (_, _, is_input) in self._engine.tensors.items() if is_input}
        results = self._engine.trt.program({name: arrays[name] for name in inputs})
        for name, value in results.items():
            arrays[name][...] = value

    def _array(self, name: str) -> np.ndarray[Any, Any]:
        kind = np.dtype(_NUMPY[self._engine.tensors[name][0]])
        return self._engine.trt.gpu.array_at(self.addresses[name], kind, self.shapes[name])


class FakeTensorRT:
    """The module. Its attributes beside the API say how it misbehaves."""

    def __init__(self, version: str, gpu: FakeCuda | None = None, rtx: bool = False) -> None:
        major = int(version.split(".")[0])
        self.__version__ = version
        self.gpu = gpu
        self.program: Any = None
        self.config: Any = None
        self.network: Any = None
        self.runtime: Any = None
        self.registry = FakeRegistry()
        self.cannot_parse = self.fails_to_build = self.fails_to_run = False
        self.refuses_profiles = self.out_of_memory = self.needs_newer_driver = False
        self.why_no_context = "out of memory"
        self.compiled = 0
        self.capturable = True
        self.shape_tensors: set[str] = set()
        self.dies_now_if_told = lambda: None
        self.ILogger, self.DataType, self.LayerType = ILogger, DataType, LayerType
        flags = "TF32 DEBUG GPU_FALLBACK REFIT VERSION_COMPATIBLE EXCLUDE_LEAN_RUNTIME"
        kinds = {"STRONGLY_TYPED": 1}
        if major < 11 and not rtx:
            flags += " FP16 INT8 BF16 OBEY_PRECISION_CONSTRAINTS"
            kinds["EXPLICIT_BATCH"] = 0
        self.BuilderFlag = Enum("BuilderFlag", flags)  # type: ignore[misc]
        self.NetworkDefinitionCreationFlag = IntEnum("Creation", kinds)  # type: ignore[misc]
        self.MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE TACTIC_DRAM")
        self.HardwareCompatibilityLevel = Enum("Level", "NONE AMPERE_PLUS")
        if rtx:
            names = "NONE CURRENT SM75 SM80 SM86 SM89 SM120 SM121"
            self.ComputeCapability = Enum("ComputeCapability", names)

    def Builder(self, log: Any) -> FakeBuilder:
        self._start(log)
        return FakeBuilder(self, log)

    def OnnxParser(self, network: FakeNetwork, log: Any) -> FakeParser:
        return FakeParser(self, network, log)

    def Runtime(self, log: Any) -> FakeRuntime:
        self._start(log)
        return FakeRuntime(self, log)

    def _start(self, log: Any) -> None:
        if self.needs_newer_driver:  # as TensorRT does: the cause is no error to it
            log.log(Severity.WARNING, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")

    def get_plugin_registry(self) -> FakeRegistry:
        return self.registry

    def nptype(self, kind: DataType) -> type:
        return _NUMPY[kind.name]
