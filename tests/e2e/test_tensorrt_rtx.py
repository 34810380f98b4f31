"""TensorRT-RTX itself: it builds engines on a machine without a GPU. Running one needs a GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from fake_tensorrt import FakeTensorRT

from vqedge.bundle import open_bundle
from vqedge.errors import ExportError
from vqedge.tensorrt import log_of
from vqedge_export.tensorrt import build
from vqedge_export.tensorrt.build import ENGINES, offer_of, run_job
from vqedge_export.tensorrt.into_bundle import build_into_bundle
from vqedge_export.tensorrt.job import Job
from vqedge_export.tensorrt.options import BuildOptions
from vqedge_export.tensorrt.prepare import engine_outputs

pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.tensorrt,
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None,
        reason="tensorrt-rtx-cu13 is not installed (Linux x86-64 has it in the dev extra)",
    ),
]
CAPABILITIES = "8.0,8.6,8.9,12.0"


def require_whole(plan: bytes) -> None:
    """TensorRT-RTX reads it as an engine of this version. Valid it is on its GPUs only."""
    import tensorrt_rtx as trt

    runtime = trt.Runtime(log_of(trt))
    faults = trt.EngineInvalidityDiagnostics
    wrong = int(faults.MALFORMED_ENGINE) | int(faults.VERSION_MISMATCH)
    assert not int(runtime.get_engine_validity(plan)[1]) & wrong
    assert int(runtime.get_engine_validity(b"x" + plan[1:])[1]) & int(faults.MALFORMED_ENGINE)


@pytest.mark.slow
def test_the_tiny_encoder_is_built_ahead_of_time_for_four_gpus(bundle_copy: Path) -> None:
    made, record = build_into_bundle(bundle_copy, "tensorrt-rtx", BuildOptions())
    manifest = open_bundle(made.root).manifest
    assert manifest.engines == (record,)
    assert record.compute_capability == CAPABILITIES and record.precision == "fp16"
    assert record.plugin_sha256 is None and record.profiles == ()
    assert record.inputs == manifest.encoder.inputs
    assert record.outputs == engine_outputs(manifest.encoder)
    assert [item.name for item in record.inputs] == ["frames", "budget"]
    assert record.file == f"{ENGINES}/{record.key}.engine"
    sizes = {file.path: file.size_bytes for file in manifest.files}
    assert sizes[record.file] == (made.root / record.file).stat().st_size
    assert sizes[record.file] > 0.4 * sizes["encoder.onnx"], "its weights are in it, in float16"
    require_whole((made.root / record.file).read_bytes())


@pytest.mark.slow
def test_the_tiny_encoder_is_built_in_int8(
    bundle_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "CHECK_CLIPS", 1)
    options = BuildOptions(precision="int8", capabilities=("8.6",))
    made, record = build_into_bundle(bundle_copy, "tensorrt-rtx", options)
    manifest = open_bundle(made.root).manifest
    assert manifest.engines == (record,) and record.precision == "int8"
    assert record.outputs == engine_outputs(manifest.encoder)
    sizes = {file.path: file.size_bytes for file in manifest.files}
    assert sizes[record.file] < 0.6 * sizes["encoder.onnx"], "weights of its layers are int8"


def test_it_offers_the_gpus_it_knows() -> None:
    offer = offer_of("tensorrt-rtx")
    assert set(CAPABILITIES.split(",")) <= set(offer.capabilities)
    assert not offer.weak_typing and not offer.takes_plugin


def test_what_its_parser_says_about_a_broken_file_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"\xff" * 100)
    with pytest.raises(ExportError) as caught:
        run_job(
            Job(flavour="tensorrt-rtx", onnx=broken, engine=tmp_path / "e", capabilities=("8.6",))
        )
    assert "cannot read the encoder" in str(caught.value) and "\n" not in str(caught.value)


def test_the_fake_has_no_name_that_the_real_one_lacks() -> None:
    import tensorrt_rtx as real

    fake = FakeTensorRT(real.__version__, rtx=True)
    enums = ["BuilderFlag", "MemoryPoolType", "HardwareCompatibilityLevel", "ComputeCapability"]
    for name in (*enums, "NetworkDefinitionCreationFlag"):
        missing = {item.name for item in getattr(fake, name)} - set(dir(getattr(real, name)))
        assert not missing, f"{name}: {missing}"
    assert not hasattr(real.BuilderFlag, "FP16"), "RTX is strongly typed only"
    used = {
        "Builder": "create_network create_builder_config create_optimization_profile "
        "build_serialized_network",
        "IBuilderConfig": "set_flag clear_flag set_memory_pool_limit set_compute_capability "
        "add_optimization_profile plugins_to_serialize builder_optimization_level "
        "hardware_compatibility_level num_compute_capabilities",
        "INetworkDefinition": "num_inputs num_outputs num_layers get_input get_output get_layer",
        "OnnxParser": "parse_from_file num_errors get_error",
        "IOptimizationProfile": "set_shape",
        "Runtime": "deserialize_cuda_engine engine_host_code_allowed get_plugin_registry",
        "ICudaEngine": "num_io_tensors get_tensor_name get_tensor_dtype create_execution_context "
        "create_runtime_config",
        "IRuntimeConfig": "create_runtime_cache set_runtime_cache",
        "IRuntimeCache": "serialize deserialize",
        "IExecutionContext": "set_input_shape get_tensor_shape set_tensor_address "
        "is_stream_capturable execute_async_v3",
    }
    for name, members in used.items():
        missing = set(members.split()) - set(dir(getattr(real, name)))
        assert not missing, f"{name}: {missing}"
    assert "runtime_config: " in (real.ICudaEngine.create_execution_context.__doc__ or "")
