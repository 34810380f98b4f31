"""Backends by name: what is missing is said, and nothing falls back silently."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
from fake_cuda import FakeCuda
from onnx import helper
from tiny_bundle import tiny_facts

from vqedge import packages
from vqedge.bundle import Bundle, VariantRecord, bundle_writer
from vqedge.errors import BackendUnavailable, BundleError, UsageError
from vqedge_runtime.bridge import open_bridge
from vqedge_runtime.encoders import (
    ENCODERS,
    EncoderBackend,
    encoder_path,
    open_encoder,
    ort,
    providers,
    require_backend,
)
from vqedge_runtime.encoders import compiled as compiled_files
from vqedge_runtime.encoders.protocol import Missing
from vqedge_runtime.encoders.providers import PROVIDERS, missing_provider

FOR_GPUS = (
    *("onnxruntime-cuda", "onnxruntime-tensorrt", "onnxruntime-nvtensorrtrtx"),
    *("tensorrt", "tensorrt-rtx"),
)


def test_an_unknown_name_lists_the_known_ones(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="'cuda'; there is: auto, onnxruntime, "):
        open_encoder("cuda", bundle)


def test_threads_that_there_cannot_be_are_refused(bundle: Bundle) -> None:
    for threads in (0, 513):
        with pytest.raises(UsageError, match=f"threads {threads}: give 1 to 512"):
            open_encoder("onnxruntime", bundle, threads)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The machine that has a GPU of NVIDIA's and its driver, to be filled; empty, no GPU."""
    machines: list[str] = []
    monkeypatch.setattr(providers, "has_nvidia_gpu", lambda: bool(machines))
    monkeypatch.setattr(providers, "installed_driver", lambda: (12, 6) if machines else None)
    monkeypatch.setattr(providers.platform, "machine", lambda: (machines or ["x86_64"])[-1])
    monkeypatch.setattr(packages, "_is_jetson", lambda: False)
    return machines


@pytest.mark.parametrize("name", ENCODERS)
def test_every_backend_can_run_or_says_what_is_missing_and_the_fix(
    name: str, gpu: list[str]
) -> None:
    gpu += ["x86_64"]
    lacking = ENCODERS[name].missing()
    assert lacking is None or ("pip install" in lacking.fix and lacking.why)
    if name.startswith("onnxruntime") and "-" not in name:
        assert lacking is None


def test_a_backend_that_is_missing_is_refused_before_anything_is_loaded(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = EncoderBackend(lambda *_: pytest.fail("opened"), lambda: Missing("gone", "install it"))
    monkeypatch.setitem(ENCODERS, "openvino", here)
    with pytest.raises(BackendUnavailable, match="encoder backend openvino: gone; install it"):
        open_encoder("openvino", bundle)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-int8", "openvino"])
def test_an_onnx_runtime_that_is_removed_by_half_is_missing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip(name.partition("-")[0])
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(BackendUnavailable, match=r"does not load .*pip install --force-reinstall"):
        open_encoder(name, bundle)
    with pytest.raises(BackendUnavailable, match=r"does not load .*pip install --force-reinstall"):
        open_bridge(bundle.path_of("bridge"))


def test_a_provider_of_another_build_is_missing(
    monkeypatch: pytest.MonkeyPatch, gpu: list[str]
) -> None:
    monkeypatch.setattr(ort.ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert missing_provider("CUDA") == Missing("no NVIDIA GPU here", "")
    gpu += ["aarch64"]
    lacking = missing_provider("CUDA")
    assert lacking and "there is no wheel for aarch64" in lacking.why and not lacking.fix
    gpu += ["x86_64"]
    lacking = missing_provider("CUDA")
    assert lacking and "built without CUDAExecutionProvider" in lacking.why
    libraries, over = lacking.fix.split(" && ")
    assert libraries == "pip install 'onnxruntime-gpu[cuda,cudnn]>=1.21'"
    assert over == "pip install --force-reinstall --no-deps onnxruntime-gpu"
    monkeypatch.setattr(ort.ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert missing_provider("CUDA") is None


@pytest.mark.parametrize("label", PROVIDERS)
@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_where_onnx_runtime_is_missing_it_is_what_is_named(
    monkeypatch: pytest.MonkeyPatch, gpu: list[str], machine: str, label: str
) -> None:
    gpu += [machine]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    lacking = missing_provider(label)
    assert lacking and lacking.why == "onnxruntime is not installed"
    both = machine == "x86_64" and label in ("CUDA", "TensorRT")
    told = PROVIDERS[label].fix if both else "pip install --force-reinstall 'onnxruntime"
    assert lacking.fix.startswith(told)


def test_no_package_is_recommended_to_who_has_no_gpu(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, gpu: list[str]
) -> None:
    monkeypatch.setattr(providers, "find_spec", lambda _: None)
    refused = "encoder backend tensorrt: no NVIDIA GPU here; use --backend auto"
    with pytest.raises(BackendUnavailable, match=refused):
        open_encoder("tensorrt", bundle)
    gpu += ["aarch64"]
    with pytest.raises(BackendUnavailable, match=r"tensorrt is not installed; pip install"):
        open_encoder("tensorrt", bundle)


@pytest.mark.parametrize("name", FOR_GPUS)
def test_a_backend_for_gpus_is_missing_without_one_or_its_driver_whatever_is_installed(
    monkeypatch: pytest.MonkeyPatch, gpu: list[str], name: str
) -> None:
    monkeypatch.setattr(providers, "find_spec", lambda _: ModuleSpec("installed", None))
    monkeypatch.setattr(providers, "plugin_devices", lambda _: ["a device"])
    names = [provider.name for provider in PROVIDERS.values()]
    monkeypatch.setattr(ort.ort, "get_available_providers", lambda: names)
    with pytest.raises(BackendUnavailable, match=f"{name}: no NVIDIA GPU here; use --backend auto"):
        require_backend(name)
    gpu += ["x86_64"]
    assert ENCODERS[name].missing() is None
    monkeypatch.setattr(providers, "installed_driver", lambda: None)
    with pytest.raises(BackendUnavailable, match=f"{name}: no working NVIDIA driver .*; install"):
        require_backend(name)


def test_a_backend_for_the_cpu_asks_for_no_gpu(
    monkeypatch: pytest.MonkeyPatch, gpu: list[str]
) -> None:
    monkeypatch.setattr(providers, "missing_gpu", lambda: pytest.fail("asked for a GPU"))
    assert missing_provider("CPU") is None


def test_a_plugin_that_does_not_load_is_missing(
    monkeypatch: pytest.MonkeyPatch, gpu: list[str]
) -> None:
    gpu += ["x86_64"]

    class Fail(Exception):
        """As ONNX Runtime's own, of which nothing else is known."""

    def register(name: str, library: str) -> None:
        raise Fail(f"cannot open {library}\nmore lines")

    plugin = ModuleType("onnxruntime_ep_nv_tensorrt_rtx")
    plugin.__spec__ = ModuleSpec(plugin.__name__, None)
    monkeypatch.setattr(plugin, "get_library_path", lambda: "libep.so", raising=False)
    monkeypatch.setitem(sys.modules, plugin.__name__, plugin)
    monkeypatch.setattr(ort.ort, "register_execution_provider_library", register)
    lacking = missing_provider("TensorRT-RTX")
    assert lacking == Missing(
        "onnxruntime_ep_nv_tensorrt_rtx does not load (cannot open libep.so)",
        "pip install onnxruntime-ep-nv-tensorrt-rtx",
    )


class HandedToTheCpu:
    """What ONNX Runtime does when a provider does not start: a session, on the CPU."""

    def __init__(self, *_: Any, **options: Any) -> None:
        assert options["enable_fallback"] == 0

    def get_providers(self) -> list[str]:
        return ["CPUExecutionProvider"]


def test_a_session_that_fell_back_to_the_cpu_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.ort, "InferenceSession", HandedToTheCpu)
    with pytest.raises(BackendUnavailable, match=r"CUDA does not start.*gave the graph to the CPU"):
        ort.OrtEncoder(Path("encoder.onnx"), 1, PROVIDERS["CUDA"])


class Shared:
    """A session of two providers and the CPU, as ONNX Runtime tells of it."""

    def __init__(self, _: str, options: Any, providers: list[Any], **__: Any) -> None:
        assert options.get_session_config_entry(ort._RECORD_NODES) == "1"
        self.providers = [name for name, _ in providers]

    def get_providers(self) -> list[str]:
        return self.providers

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in ("codes", "index_map", "mask", "margin")]

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = {"TensorrtExecutionProvider": 900, "CUDAExecutionProvider": 99}
        return [
            SimpleNamespace(ep_name=name, get_nodes=lambda count=count: [None] * count)
            for name, count in (nodes | {"CPUExecutionProvider": 1}).items()
        ]


def test_what_tensorrt_cannot_run_goes_to_cuda_and_the_name_says_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [PROVIDERS[label].name for label in ("TensorRT", "CUDA", "CPU")]
    monkeypatch.setattr(ort.ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort.ort, "InferenceSession", Shared)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    encoder = ort.OrtEncoder(Path("encoder.onnx"), 1, PROVIDERS["TensorRT"])
    told = "onnxruntime TensorRT fp32, 9.9% of nodes on CUDA, 0.1% of nodes on CPU"
    assert encoder.name == told
    assert encoder._session.providers == names
    monkeypatch.delattr(Shared, "get_provider_graph_assignment_info")
    older = ort.OrtEncoder(Path("encoder.onnx"), 1, PROVIDERS["TensorRT"])
    assert older.name == "onnxruntime TensorRT fp32, may run parts elsewhere"
    monkeypatch.setattr(ort.ort, "get_available_providers", lambda: [names[0], names[2]])
    without = ort.OrtEncoder(Path("encoder.onnx"), 1, PROVIDERS["TensorRT"])
    assert without._session.providers == [names[0], names[2]]
    monkeypatch.delenv("NVIDIA_TF32_OVERRIDE")
    rounding = ort.OrtEncoder(Path("encoder.onnx"), 1, PROVIDERS["TensorRT"])
    assert rounding.name == "onnxruntime TensorRT fp32, TF32 allowed, may run parts elsewhere"


class Compiling(Shared):
    """A session that keeps engines where it is told to, under a name that tells no weights.

    As ONNX Runtime it takes no other word for yes and no.
    """

    opened: ClassVar[list[dict[str, str]]] = []
    compiled = 0

    def __init__(self, path: str, options: Any, providers: list[Any], **more: Any) -> None:
        super().__init__(path, options, providers, **more)
        told = dict(providers)["TensorrtExecutionProvider"]
        self.opened.append(told)
        keeps = told.get("trt_engine_cache_enable", "False")
        if keeps not in ("True", "true", "False", "false"):
            raise RuntimeError("'trt_engine_cache_enable' should be 'True' or 'False'")
        folder = told.get("trt_engine_cache_path") if keeps.lower() == "true" else None
        engine = Path(folder or os.devnull) / "encoder.engine"
        if folder and engine.exists():
            if engine.read_bytes() != b"an engine":
                raise RuntimeError("TensorRT EP could not deserialize engine from cache")
            return
        Compiling.compiled += 1
        if folder:
            engine.write_bytes(b"an engine")


@pytest.fixture
def compiling(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[bytes], int]:
    """Opens an encoder of some bytes by ONNX Runtime's TensorRT; how often it has compiled."""
    monkeypatch.setattr(Compiling, "compiled", 0)
    monkeypatch.setattr(Compiling, "opened", [])
    monkeypatch.setattr(ort.ort, "get_available_providers", lambda: ["TensorrtExecutionProvider"])
    monkeypatch.setattr(ort.ort, "InferenceSession", Compiling)
    monkeypatch.setattr(ort, "Cuda", lambda: FakeCuda("8.6"))

    def opened(graph: bytes = b"graph") -> int:
        (tmp_path / "encoder.onnx").write_bytes(graph)
        ort.OrtEncoder(tmp_path / "encoder.onnx", 1, PROVIDERS["TensorRT"])
        return Compiling.compiled

    return opened


def test_onnx_runtimes_tensorrt_compiles_an_encoder_once(
    compiling: Callable[..., int], tmp_path: Path
) -> None:
    assert [compiling() for _ in range(3)] == [1, 1, 1]
    assert Path(Compiling.opened[0]["trt_engine_cache_path"]).is_relative_to(tmp_path / "cache")


@pytest.mark.parametrize("change", ["weights", "gpu", "version", "environment"])
def test_an_engine_of_other_weights_gpu_version_or_environment_is_not_found(
    compiling: Callable[..., int], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    compiling()
    if change == "gpu":
        monkeypatch.setattr(ort, "Cuda", lambda: FakeCuda("8.9"))
    elif change == "version":
        monkeypatch.setattr(providers, "version", lambda _: "99")
    elif change == "environment":
        monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert compiling(b"retrained" if change == "weights" else b"graph") == 2


@pytest.mark.parametrize(
    ("marked", "compiled"),
    [
        (True, [2, 3, 3]),  # refused: compiled at once without a cache, the next time into it
        (False, [2, 2, 2]),  # of a process that died while it wrote: not even shown
    ],
)
def test_an_engine_that_is_not_whole_is_compiled_anew(
    compiling: Callable[..., int], tmp_path: Path, marked: bool, compiled: list[int]
) -> None:
    compiling()
    (engine,) = (tmp_path / "cache").rglob("encoder.engine")
    engine.write_bytes(b"an en")
    if not marked:
        (engine.parent / "whole").unlink()
    assert [compiling() for _ in range(3)] == compiled


def test_a_provider_that_wants_no_cache_starts_without(
    compiling: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refuses(Compiling):
        def __init__(self, path: str, options: Any, providers: list[Any], **more: Any) -> None:
            if dict(providers)["TensorrtExecutionProvider"]:
                raise RuntimeError("Unknown provider option")
            super().__init__(path, options, providers, **more)

    monkeypatch.setattr(ort.ort, "InferenceSession", Refuses)
    assert compiling() == 1 and Compiling.opened == [{}]


def test_only_the_encoders_opened_last_are_kept(
    compiling: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiled_files, "_KEPT_FOLDERS", 2)
    for graph in (b"a", b"b", b"a", b"c"):
        compiling(graph)
        for whole in (tmp_path / "cache").rglob("whole"):  # files of one tick have one time
            os.utime(whole, ns=(0, whole.stat().st_mtime_ns - 10**9))
    assert len(list((tmp_path / "cache").rglob("encoder.engine"))) == 2
    assert [compiling(b"c"), compiling(b"a"), compiling(b"b")] == [3, 3, 4]


def test_what_is_compiled_after_the_clock_was_set_back_is_kept(
    compiling: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compiled_files, "_KEPT_FOLDERS", 1)
    compiling(b"a")
    (whole,) = (tmp_path / "cache").rglob("whole")
    os.utime(whole, (0, time.time() + 1e6))
    assert [compiling(b"b"), compiling(b"b")] == [2, 2]
    old, *pair = (tmp_path / "models" / name for name in ("old", "vit", "quantizer"))
    compiled_files.keep_file(old, b"", 2)
    os.utime(old, (0, time.time() + 1e6))
    for file in pair:
        compiled_files.keep_file(file, b"", 2)
    assert sorted(old.parent.iterdir()) == sorted(pair)


def test_the_plugin_of_tensorrt_rtx_keeps_its_kernels(
    compiling: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[dict[str, str]] = []

    class Options(ort.ort.SessionOptions):  # type: ignore[misc]
        def add_provider_for_devices(self, devices: list[Any], options: dict[str, str]) -> None:
            assert devices == ["a GPU"]
            told.append(options)

    class Plugged(Shared):
        def __init__(self, path: str, options: Any, providers: None, **more: Any) -> None:
            super().__init__(path, options, [(PROVIDERS["TensorRT-RTX"].name, {})], **more)

    monkeypatch.setattr(ort.ort, "SessionOptions", Options)
    monkeypatch.setattr(ort.ort, "InferenceSession", Plugged)
    monkeypatch.setattr(ort, "plugin_devices", lambda _: ["a GPU", "another"])
    (tmp_path / "encoder.onnx").write_bytes(b"graph")
    ort.OrtEncoder(tmp_path / "encoder.onnx", 1, PROVIDERS["TensorRT-RTX"])
    (options,) = told
    assert options.keys() == {"nv_runtime_cache_path"}
    assert Path(options["nv_runtime_cache_path"]).is_dir()


def test_an_engine_that_cannot_be_kept_costs_time_only(
    compiling: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path / "file" / "below"))
    assert [compiling() for _ in range(2)] == [1, 2]


def one_node(op: str, inputs: list[str], shape: list[int]) -> bytes:
    """A graph of one node, from `x` to `y`, float32 of one shape."""
    x = [helper.make_tensor_value_info("x", 1, shape)]
    y = [helper.make_tensor_value_info("y", 1, shape)]
    graph = helper.make_graph([helper.make_node(op, inputs, ["y"])], "one", x, y)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    found: bytes = model.SerializeToString()
    return found


def test_the_cpu_plans_no_memory_beside_what_it_has(tmp_path: Path) -> None:
    """A plan of the first clip's memory takes as much again from the second on."""
    (tmp_path / "a.onnx").write_bytes(one_node("Relu", ["x"], [2]))
    opened = ort.open_session(tmp_path / "a.onnx", 1)
    assert not opened.get_session_options().enable_mem_pattern


def test_threads_end_with_a_run(tmp_path: Path) -> None:
    """They would wait for another one at full speed, while llama.cpp wants the cores."""
    (tmp_path / "a.onnx").write_bytes(one_node("MatMul", ["x", "x"], [512, 512]))
    opened, busy_s = ort.open_session(tmp_path / "a.onnx", 2), []
    for _ in range(5):
        opened.run(None, {"x": np.zeros((512, 512), np.float32)})
        began = time.process_time()
        time.sleep(0.1)
        busy_s.append(time.process_time() - began)
    assert min(busy_s) < 0.005  # 0.03 where they wait


def test_onnx_runtime_tells_who_runs_a_node() -> None:
    options = ort.ort.SessionOptions()
    options.add_session_config_entry(ort._RECORD_NODES, "1")
    model = one_node("Relu", ["x"], [2])
    found = ort.ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    if not hasattr(found, "get_provider_graph_assignment_info"):
        pytest.skip(f"ONNX Runtime {ort.ort.__version__} does not tell")
    assert ort._elsewhere(found, PROVIDERS["CUDA"]) == ", 100.0% of nodes on CPU"
    assert ort._elsewhere(found, PROVIDERS["CPU"]) == ""


def test_a_file_that_is_no_graph_is_the_bundles_fault(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="ONNX Runtime cannot load it"):
        open_encoder("onnxruntime", bundle)


def test_a_precision_that_the_bundle_does_not_hold_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BackendUnavailable, match=r"no encoder in int8 \(only fp32\)"):
        encoder_path(bundle, "int8")


def test_a_variant_is_found_by_its_precision(tmp_path: Path) -> None:
    variant = VariantRecord(file="encoder.int8.onnx", precision="int8")
    encoder = tiny_facts().encoder.model_copy(update={"variants": (variant,)})
    with bundle_writer(tmp_path / "b.vqedge") as draft:
        for name in ("encoder.onnx", "encoder.int8.onnx", "bridge.onnx", "llm.gguf"):
            (draft.folder / name).write_bytes(b"x")
        opened = draft.finish(tiny_facts(encoder=encoder))
    assert encoder_path(opened, "int8") == opened.root / "encoder.int8.onnx"
    roles = {file.path: file.role for file in opened.manifest.files}
    assert roles["encoder.int8.onnx"] == "encoder-variant"
