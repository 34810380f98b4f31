"""What every TensorRT is told, by version; a fake one records it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from fake_tensorrt import DataType, FakeLayer, FakeNetwork, FakeTensorRT
from tiny_engine import ENGINE_OUTPUTS, INPUTS, WEIGHT, write_tiny_onnx

from vqedge.bundle import ProfileRecord
from vqedge.engines import Flavour
from vqedge.errors import BackendUnavailable, ConfigError, ExportError
from vqedge_export.tensorrt import worker
from vqedge_export.tensorrt.job import Job, Outcome
from vqedge_export.tensorrt.library import Library
from vqedge_export.tensorrt.options import (
    BuildOptions,
    Offer,
    capabilities_from_text,
    require_possible,
    targets_of,
)
from vqedge_export.tensorrt.worker import _pin_quantizer, outcome_of

VERSIONS: list[tuple[Flavour, str]] = [
    ("tensorrt", "10.3.0"),
    ("tensorrt", "10.13.3.9"),
    ("tensorrt", "11.4.0.106"),
    ("tensorrt-rtx", "1.7.1.116"),
]
WITH_FLAGS = VERSIONS[:2]
STRONG_ONLY = VERSIONS[2:]
STRONGLY_TYPED = 1 << 1


def library(flavour: Flavour, version: str) -> Library:
    return Library(FakeTensorRT(version, rtx=flavour == "tensorrt-rtx"), flavour)


def job(tmp_path: Path, flavour: Flavour = "tensorrt", **changes: Any) -> Job:
    values: dict[str, Any] = {
        "flavour": flavour,
        "onnx": write_tiny_onnx(tmp_path / "prepared.onnx"),
        "engine": tmp_path / "built.engine",
        "inputs": INPUTS,
        "outputs": ENGINE_OUTPUTS,
    }
    return Job(**values | changes)


@pytest.mark.parametrize(("flavour", "version"), VERSIONS)
def test_networks_are_strongly_typed_and_no_precision_flag_is_set(
    tmp_path: Path, flavour: Flavour, version: str
) -> None:
    found = library(flavour, version)
    outcome = outcome_of(job(tmp_path, flavour), found)
    assert found.trt.network.flags == STRONGLY_TYPED
    assert found.trt.config.flags == []
    assert (outcome.inputs, outcome.outputs) == (INPUTS, ENGINE_OUTPUTS)
    assert (tmp_path / "built.engine").stat().st_size > 0
    assert found.trt.config.profiles == [], "the shapes are static"


@pytest.mark.parametrize(("flavour", "version"), WITH_FLAGS)
@pytest.mark.parametrize(
    ("precision", "flags"),
    [
        ("fp32", []),
        ("fp16", ["FP16", "OBEY_PRECISION_CONSTRAINTS"]),
    ],
)
def test_weak_typing_sets_flags_and_pins_the_quantizer(
    tmp_path: Path, flavour: Flavour, version: str, precision: Any, flags: list[str]
) -> None:
    found = library(flavour, version)
    options = BuildOptions(precision=precision, typing="weak")
    outcome_of(job(tmp_path, flavour, options=options), found)
    assert found.trt.network.flags == 0
    assert found.trt.config.flags == flags
    pinned = {layer.name: layer.precision for layer in found.trt.network.layers}
    assert pinned == {
        WEIGHT: None,
        "/quantizer/vit/blocks.0/MatMul": None,
        "/quantizer/quantizer/Shape": None,  # whole numbers have no float precision
        "/quantizer/quantizer/MatMul": DataType.FLOAT,
    }


def test_weak_typing_pins_what_decides_ids() -> None:
    """The plugin, what searches, and comparisons: each may give something else than float32."""
    network = FakeNetwork(0)
    network.layers = [
        FakeLayer("/quantizer/quantizer/NearestCodebook", ("INT32", "FLOAT"), ("FLOAT", "FLOAT")),
        FakeLayer("/quantizer/quantizer/ArgMax", ("FLOAT", "INT32"), ("FLOAT",)),
        FakeLayer("/quantizer/quantizer/Less", ("BOOL",), ("FLOAT", "FLOAT")),
        FakeLayer("/quantizer/quantizer/Equal", ("BOOL",), ("INT32", None)),
        FakeLayer("/quantizer/quantizer/Gather", ("INT32",), ("INT32", "INT32")),
        FakeLayer("/quantizer/vit/Softmax", ("FLOAT",), ("FLOAT",)),
    ]
    _pin_quantizer(library("tensorrt", "10.3.0"), network)
    pinned = [layer.name.rpartition("/")[2] for layer in network.layers if layer.precision]
    assert pinned == ["NearestCodebook", "ArgMax", "Less"]
    types = [layer.output_types for layer in network.layers]
    assert types == [{1: DataType.FLOAT}, {0: DataType.FLOAT}, {}, {}, {}, {}]


@pytest.mark.parametrize(("flavour", "version"), STRONG_ONLY)
def test_weak_typing_is_refused_where_there_are_no_flags(
    tmp_path: Path, flavour: Flavour, version: str
) -> None:
    with pytest.raises(ExportError, match="strongly typed, there are no precision flags"):
        outcome_of(
            job(tmp_path, flavour, options=BuildOptions(typing="weak")), library(flavour, version)
        )
    assert not (tmp_path / "built.engine").exists()


@pytest.mark.parametrize(("flavour", "version"), VERSIONS)
def test_the_dla_is_refused_everywhere(tmp_path: Path, flavour: Flavour, version: str) -> None:
    with pytest.raises(ExportError, match="the DLA runs none of"):
        outcome_of(
            job(tmp_path, flavour, options=BuildOptions(device="dla")), library(flavour, version)
        )


@pytest.mark.parametrize(("flavour", "version"), VERSIONS)
def test_int8_is_told_by_the_graph_and_by_no_flag(
    tmp_path: Path, flavour: Flavour, version: str
) -> None:
    found = library(flavour, version)
    outcome_of(job(tmp_path, flavour, options=BuildOptions(precision="int8")), found)
    assert found.trt.config.flags == [] and found.trt.network.flags != 0
    weak = job(tmp_path, flavour, options=BuildOptions(precision="int8", typing="weak"))
    with pytest.raises(ExportError, match=r"int8 is told by the graph.*leave out --typing weak"):
        outcome_of(weak, library(flavour, version))


def test_rtx_says_everything_it_cannot_do_at_once(tmp_path: Path) -> None:
    options = BuildOptions(hardware_compatible=True, version_compatible=True)
    wanted = job(tmp_path, "tensorrt-rtx", options=options, plugin=tmp_path / "p.so")
    with pytest.raises(ExportError) as caught:
        outcome_of(wanted, library("tensorrt-rtx", "1.7.1.116"))
    line = str(caught.value)
    assert line.startswith("TensorRT-RTX 1.7.1.116: has no plugins")
    assert "list the GPUs with --sm" in line and "leave out --version-compatible" in line


def test_tensorrt_before_10_3_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"TensorRT 10\.2\.0: want 10\.3 or later"):
        outcome_of(job(tmp_path), library("tensorrt", "10.2.0"))


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106"])
def test_options_reach_the_builder(tmp_path: Path, version: str) -> None:
    found = library("tensorrt", version)
    options = BuildOptions(
        optimization_level=5, workspace_mb=256, version_compatible=True, hardware_compatible=True
    )
    outcome_of(job(tmp_path, options=options), found)
    config = found.trt.config
    assert config.builder_optimization_level == 5
    assert config.limits == {"WORKSPACE": 256 << 20}
    assert config.flags == ["VERSION_COMPATIBLE"]
    assert config.hardware_compatibility_level.name == "AMPERE_PLUS"


def test_without_a_limit_tensorrt_keeps_its_own(tmp_path: Path) -> None:
    found = library("tensorrt", "10.3.0")
    outcome_of(job(tmp_path), found)
    assert found.trt.config.limits == {}
    assert found.trt.config.hardware_compatibility_level == "NONE"


@pytest.mark.parametrize("serialised", [False, True])
def test_a_plugin_is_loaded_and_goes_into_version_compatible_engines(
    tmp_path: Path, serialised: bool
) -> None:
    found, plugin = library("tensorrt", "10.3.0"), tmp_path / "p.so"
    options = BuildOptions(version_compatible=serialised)
    outcome_of(job(tmp_path, options=options, plugin=plugin), found)
    assert found.trt.registry.loaded == [str(plugin)]
    assert found.trt.config.plugins_to_serialize == ([str(plugin)] if serialised else [])


def test_a_plugin_library_that_does_not_load_is_named(tmp_path: Path) -> None:
    found = library("tensorrt", "10.3.0")
    found.trt.registry.refuses = True
    with pytest.raises(BackendUnavailable, match=r"p\.so: TensorRT 10\.3\.0 cannot load"):
        outcome_of(job(tmp_path, plugin=tmp_path / "p.so"), found)


def test_free_frames_get_a_profile(tmp_path: Path) -> None:
    found = library("tensorrt", "10.3.0")
    free = INPUTS[0].model_copy(update={"shape": ("frames", *INPUTS[0].shape[1:])})
    ranges = ProfileRecord(input="frames", min=(1, 4, 4, 3), opt=(2, 4, 4, 3), max=(2, 4, 4, 3))
    write_tiny_onnx(tmp_path / "free.onnx", free_frames=True)
    wanted = job(
        tmp_path, onnx=tmp_path / "free.onnx", inputs=(free, INPUTS[1]), profiles=(ranges,)
    )
    outcome_of(wanted, found)
    (profile,) = found.trt.config.profiles
    assert profile.shapes == {"frames": (ranges.min, ranges.opt, ranges.max)}
    with pytest.raises(ExportError, match="frames has a free dimension and the manifest gives no"):
        outcome_of(wanted.model_copy(update={"profiles": ()}), found)
    found.trt.refuses_profiles = True
    with pytest.raises(ExportError, match="refuses the optimisation profile"):
        outcome_of(wanted, found)


def test_a_budget_that_shapes_tensors_is_refused(tmp_path: Path) -> None:
    """TensorRT reads such an input on the host, and a recorded graph would keep the first one."""
    found = library("tensorrt", "10.3.0")
    found.trt.shape_tensors = {"budget"}
    with pytest.raises(ExportError, match="TensorRT takes budget as a shape"):
        outcome_of(job(tmp_path), found)
    assert not (tmp_path / "built.engine").exists()


@pytest.mark.parametrize(
    "known", [None, b"timings of yesterday", b"damaged", b"timings of another GPU"]
)
def test_timings_are_read_and_kept(tmp_path: Path, known: bytes | None) -> None:
    found, cache = library("tensorrt", "10.3.0"), tmp_path / "timing/tensorrt-10.3.0-sm87"
    if known is not None:
        cache.parent.mkdir()
        cache.write_bytes(known)
    outcome_of(job(tmp_path, timing_cache=cache), found)
    assert found.trt.config.known_timings == (known if known == b"timings of yesterday" else b"")
    assert cache.read_bytes() == b"timings"


def test_rtx_measures_nothing_and_builds_for_several_gpus(tmp_path: Path) -> None:
    found, cache = library("tensorrt-rtx", "1.7.1.116"), tmp_path / "timing"
    outcome_of(
        job(tmp_path, "tensorrt-rtx", capabilities=("8.6", "12.0"), timing_cache=cache), found
    )
    assert found.trt.config.num_compute_capabilities == 2
    assert found.trt.config.capabilities == {0: "SM86", 1: "SM120"}
    assert not cache.exists()


def test_other_tensors_than_the_manifests_are_refused(tmp_path: Path) -> None:
    wrong = ENGINE_OUTPUTS[-1].model_copy(update={"dtype": "float32"})
    with pytest.raises(ExportError) as caught:
        outcome_of(
            job(tmp_path, outputs=(*ENGINE_OUTPUTS[:-1], wrong)), library("tensorrt", "10.3.0")
        )
    assert "codes float16 [3, 5], codes float32 [3, 5]" in str(caught.value)


def test_what_tensorrt_says_becomes_one_line(tmp_path: Path) -> None:
    found = library("tensorrt", "10.3.0")
    found.trt.cannot_parse = True
    with pytest.raises(ExportError, match="cannot read the encoder: fault 0: op Foo is unknown"):
        outcome_of(job(tmp_path), found)
    found.trt.cannot_parse, found.trt.fails_to_build = False, True
    with pytest.raises(ExportError, match=r"built no engine: no kernel for this layer$"):
        outcome_of(job(tmp_path), found)


def test_a_driver_older_than_tensorrts_cuda_is_said(tmp_path: Path) -> None:
    found = library("tensorrt", "11.4.0.106")
    found.trt.needs_newer_driver = True
    with pytest.raises(BackendUnavailable, match=r"error: 35\); the driver must know its CUDA"):
        outcome_of(job(tmp_path), found)


def test_what_nobody_expected_is_one_line_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told, answer = tmp_path / "job.json", tmp_path / "outcome.json"
    told.write_text(job(tmp_path).model_dump_json(), encoding="utf-8")
    monkeypatch.setattr("sys.argv", ["worker", str(told), str(answer)])
    monkeypatch.setattr(worker, "tensorrt_module", lambda _: 1 / 0)
    with caplog.at_level(logging.INFO):
        assert worker.main() == 0
    outcome = Outcome.model_validate_json(answer.read_text(encoding="utf-8"))
    assert outcome.fault == "tensorrt: ZeroDivisionError: division by zero; --verbose tells where"
    assert not outcome.unavailable and "Traceback" in caplog.text


def test_the_offer_says_what_is_there() -> None:
    assert library("tensorrt", "10.3.0").offer().weak_typing
    assert not library("tensorrt", "11.4.0.106").offer().weak_typing
    rtx = library("tensorrt-rtx", "1.7.1.116").offer()
    assert rtx.capabilities == ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
    assert not rtx.takes_plugin


def offer(**changes: Any) -> Offer:
    values: dict[str, Any] = {
        "flavour": "tensorrt",
        "version": "10.3.0",
        "compute_capability": "8.7",
        "capabilities": (),
        "weak_typing": True,
    }
    return Offer(**values | changes)


@pytest.mark.parametrize("capability", ["8.7", "11.0", "8.6", None])
def test_hardware_compatibility_is_refused_on_a_jetson(capability: str | None) -> None:
    options, here = BuildOptions(hardware_compatible=True), offer(compute_capability=capability)
    if capability in ("8.7", "11.0"):
        with pytest.raises(ExportError, match="JetPack has no hardware compatibility"):
            require_possible(options, here, plugin=False)
    else:
        require_possible(options, here, plugin=False)


def test_tensorrt_builds_for_this_gpu_only() -> None:
    assert targets_of(BuildOptions(), offer()) == ("8.7",)
    assert targets_of(BuildOptions(capabilities=("8.7",)), offer()) == ("8.7",)
    with pytest.raises(ExportError, match=r"--sm 86: .* which is 8\.7"):
        targets_of(BuildOptions(capabilities=("8.6",)), offer())
    with pytest.raises(ExportError, match="and none is here"):
        targets_of(BuildOptions(), offer(compute_capability=None))


def test_rtx_builds_for_what_it_knows() -> None:
    rtx = offer(flavour="tensorrt-rtx", capabilities=("8.0", "8.6", "8.9", "12.0"))
    assert targets_of(BuildOptions(), rtx) == ("8.0", "8.6", "8.9", "12.0")
    with pytest.raises(ExportError, match=r"cannot build for SM 8\.7; --sm takes 80, 86, 89, 120"):
        targets_of(BuildOptions(capabilities=("8.7", "8.6")), rtx)


def test_a_plain_build_is_possible_everywhere() -> None:
    for flavour, version in VERSIONS:
        require_possible(BuildOptions(), library(flavour, version).offer(), plugin=False)


def test_sm_is_a_list_of_compute_capabilities() -> None:
    assert capabilities_from_text("86,120, 86") == ("8.6", "12.0")
    assert capabilities_from_text(None) == ()
    for text in ("", "8.6", "sm86", "86,", "9999"):
        with pytest.raises(ConfigError, match="want compute capabilities such as"):
            capabilities_from_text(text)


def test_options_out_of_range_are_named() -> None:
    with pytest.raises(ConfigError, match="--optimization-level 6"):
        BuildOptions(optimization_level=6)
    with pytest.raises(ConfigError, match="--workspace-mb 0"):
        BuildOptions(workspace_mb=0)
