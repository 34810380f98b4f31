"""The TensorRT encoder on a fake GPU: what it allocates, runs, records and frees."""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_cuda import FakeCuda
from fake_tensorrt import FakeRuntimeCache, FakeTensorRT
from tiny_bundle import tiny_facts, tiny_quantizer, write_bundle
from tiny_engine import (
    CODES,
    ENGINE_OUTPUTS,
    FRAMES,
    GRID,
    INPUTS,
    SIZE,
    WIDTH,
    tiny_encoder,
)

from vqedge.bundle import (
    Bundle,
    BundleFacts,
    EngineRecord,
    ProfileRecord,
    TensorRecord,
    rewritten,
)
from vqedge.commands.check_figures import engine_key
from vqedge.engines import Flavour, encoder_sha256, plugin_folder
from vqedge.errors import BackendUnavailable, BundleError
from vqedge.files import file_sha256
from vqedge.tensorrt import log_of
from vqedge_runtime.bench import side_by_side
from vqedge_runtime.encoders import ENCODERS, EncoderBackend, auto, compiled, open_encoder, tensorrt
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.encoders.protocol import Missing
from vqedge_runtime.encoders.tensorrt import TensorRTEncoder

FRAMES_THWC = np.arange(FRAMES * SIZE * SIZE * 3, dtype=np.uint8).reshape(FRAMES, SIZE, SIZE, 3)


def program(inputs: dict[str, Any]) -> dict[str, Any]:
    """Codes that depend on all frames and the budget."""
    budget, frames = int(inputs["budget"]), inputs["frames"].astype(np.float32)
    return {
        "codes": frames.sum() + np.arange(CODES * WIDTH).reshape(CODES, WIDTH),
        "index_map": frames.reshape(FRAMES, GRID, GRID, -1).max(axis=-1) % max(budget, 1),
        "mask": np.arange(CODES) < budget,
        "margin": 0.5,
    }


class Rig:
    """A bundle with one engine, a fake TensorRT and a fake GPU."""

    def __init__(
        self,
        folder: Path,
        flavour: Flavour = "tensorrt",
        facts: BundleFacts | None = None,
        **changes: Any,
    ) -> None:
        self.gpu, self.flavour = FakeCuda(), flavour
        version = "10.3.0" if flavour == "tensorrt" else "1.7.1.116"
        self.trt = FakeTensorRT(version, self.gpu, rtx=flavour == "tensorrt-rtx")
        self.trt.program = program
        bundle = write_bundle(
            folder / "t.vqedge", facts=facts or tiny_facts(encoder=tiny_encoder())
        )
        values: dict[str, Any] = {
            "key": "k",
            "file": "engines/k.engine",
            "tensorrt_flavour": flavour,
            "tensorrt_version": version,
            "compute_capability": "8.6,8.7",
            "plugin_sha256": None,
            "onnx_sha256": encoder_sha256(bundle),
            "precision": "fp16",
            "version_compatible": False,
            "hardware_compatible": False,
            "inputs": INPUTS,
            "outputs": ENGINE_OUTPUTS,
            "profiles": (),
        }
        record = EngineRecord(**values | changes)
        self.inputs = record.inputs
        self.bundle: Bundle = rewritten(bundle, {record.file: self.plan()}, (record,))

    def plan(self, **types: str) -> bytes:
        names = {"uint8": "UINT8", "int64": "INT64", "float32": "FLOAT", "int32": "INT32"}
        names["float16"] = "HALF"
        tensors = [
            (item.name, types.get(item.name, names.get(item.dtype, "BOOL")), item.shape, is_in)
            for group, is_in in ((self.inputs, True), (ENGINE_OUTPUTS, False))
            for item in group
        ]
        return json.dumps({"tensors": tensors}).encode()

    def with_plan(self, plan: bytes) -> Rig:
        self.bundle = rewritten(self.bundle, {"engines/k.engine": plan})
        return self

    def open(self) -> TensorRTEncoder:
        return TensorRTEncoder(self.bundle, self.flavour, self.trt, self.gpu)


def assert_encodes(encoder: TensorRTEncoder, frames: Any, budget: int) -> None:
    found = encoder.encode(frames, budget)
    wanted = program({"frames": frames, "budget": budget})
    assert np.array_equal(found.values, wanted["codes"].astype(np.float16)[:budget])
    assert (
        np.array_equal(found.index_map, wanted["index_map"]) and found.index_map.dtype == np.int32
    )
    assert found.count == budget and found.ids is None
    assert found.margin is not None and (found.margin == 0.5).all()


def test_a_question_is_an_input_like_the_others(tmp_path: Path) -> None:
    text = TensorRecord(name="text", dtype="float32", shape=(576,))
    reads = {"inputs": (*INPUTS, text)}
    asking = tiny_facts(encoder=tiny_encoder(**reads), quantizer=tiny_quantizer(per_question=True))
    rig = Rig(tmp_path, facts=asking, **reads)
    rig.trt.program = lambda inputs: (
        program(inputs) | {"codes": np.broadcast_to(inputs["text"][:WIDTH], (CODES, WIDTH))}
    )
    encoder = rig.open()
    for level in (0.5, 2.0, 0.5):  # the second is launched as a graph
        question = np.full(576, level, np.float32)
        assert (encoder.encode(FRAMES_THWC, 2, question).values == level).all()


def test_it_encodes_and_says_what_ran(tmp_path: Path) -> None:
    encoder = Rig(tmp_path).open()
    assert encoder.name == "tensorrt 10.3.0 SM 8.7 fp16"
    assert_encodes(encoder, FRAMES_THWC, 2)


@pytest.mark.parametrize(
    "wrong", [FRAMES_THWC[:1], FRAMES_THWC / 255.0, FRAMES_THWC.astype(np.int32)]
)
def test_frames_of_another_shape_or_type_are_refused(tmp_path: Path, wrong: Any) -> None:
    """As ONNX Runtime does; a copy would repeat the one frame, or make floats black."""
    encoder = Rig(tmp_path).open()
    told = re.escape(f"frames is {wrong.dtype} {wrong.shape}, want uint8 {FRAMES_THWC.shape}")
    assert encoder.clip_shape == FRAMES_THWC.shape
    with pytest.raises(BundleError, match=told):
        encoder.encode(wrong, 2)
    assert_encodes(encoder, FRAMES_THWC, 2)


def test_threads_that_want_the_log_together_share_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT goes on using the first that it was given."""
    trt = Rig(tmp_path).trt

    class Slow(trt.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            time.sleep(0.1)

    monkeypatch.setattr(trt, "ILogger", Slow)
    with ThreadPoolExecutor(4) as pool:
        logs = {made.result() for made in [pool.submit(log_of, trt) for _ in range(4)]}
    assert len(logs) == 1


def test_after_the_first_run_it_replays_a_graph_with_new_inputs(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    encoder = rig.open()
    assert_encodes(encoder, FRAMES_THWC, 2)
    assert rig.gpu.launches == 0
    assert_encodes(encoder, FRAMES_THWC[:, ::-1], 3)
    assert_encodes(encoder, FRAMES_THWC, 1)
    assert rig.gpu.launches == 2
    assert encoder.name == "tensorrt 10.3.0 SM 8.7 fp16"


def test_results_belong_to_the_caller(tmp_path: Path) -> None:
    encoder = Rig(tmp_path).open()
    first = encoder.encode(FRAMES_THWC, 2)
    assert first.margin is not None
    kept = first.values.copy(), first.index_map.copy(), first.margin.copy()
    encoder.encode(np.zeros_like(FRAMES_THWC), 3)
    encoder.close()
    assert all(map(np.array_equal, kept, (first.values, first.index_map, first.margin)))


def test_closing_frees_everything_and_twice_is_fine(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    encoder = rig.open()
    assert_encodes(encoder, FRAMES_THWC, 2)
    assert rig.gpu.alive == 1 + 1 + 1 + 2 * 6, "context, stream, graph, device and host memory"
    encoder.close()
    assert rig.gpu.alive == 0
    encoder.close()
    assert rig.gpu.alive == 0
    with pytest.raises(BackendUnavailable, match="the encoder is closed"):
        encoder.encode(FRAMES_THWC, 2)


@pytest.mark.parametrize("reason", ["capture", "work", "rtx"])
def test_what_cannot_be_captured_runs_without_a_graph_and_says_so(
    tmp_path: Path, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path, "tensorrt-rtx" if reason == "rtx" else "tensorrt")
    rig.gpu.cannot_capture = reason == "capture"
    rig.trt.capturable = reason == "capture"
    encoder = rig.open()
    for budget in (1, 2, 3):
        assert_encodes(encoder, FRAMES_THWC, budget)
    assert rig.gpu.launches == 0
    assert encoder.name.endswith("fp16, no CUDA graph")
    assert caplog.text.count("cannot be captured") == 1, "tried once"
    encoder.close()
    assert rig.gpu.alive == 0


def test_a_failing_run_is_one_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    encoder = rig.open()
    rig.trt.fails_to_run = True
    with pytest.raises(BundleError, match=r"engines/k\.engine: TensorRT failed"):
        encoder.encode(FRAMES_THWC, 2)
    encoder.close()
    assert rig.gpu.alive == 0


@pytest.mark.parametrize(
    ("plan", "reason"), [(b"not a plan", "magic tag does not match"), (b"", "it gives no reason")]
)
def test_an_engine_that_tensorrt_refuses_is_named_and_nothing_leaks(
    tmp_path: Path, plan: bytes, reason: str
) -> None:
    rig = Rig(tmp_path).with_plan(plan)
    with pytest.raises(BundleError, match=f"TensorRT refuses the engine: {reason}"):
        rig.open()
    assert rig.gpu.alive == 0


def test_an_engine_is_mapped_for_as_long_as_it_is_deserialised(tmp_path: Path) -> None:
    """A copy would take as much memory again, which on a Jetson is the GPU's."""
    rig = Rig(tmp_path)
    rig.open()
    assert isinstance(rig.trt.runtime.plan, mmap.mmap) and rig.trt.runtime.plan.closed


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("out_of_memory", r"no execution context .*free memory of the GPU"),
        ("needs_newer_driver", r"error: 35\); the driver must know its CUDA"),
    ],
)
def test_what_keeps_tensorrt_from_running_is_said(tmp_path: Path, fault: str, told: str) -> None:
    rig = Rig(tmp_path)
    setattr(rig.trt, fault, True)
    with pytest.raises(BackendUnavailable, match=told):
        rig.open()
    assert rig.gpu.alive == 0


def test_an_engine_of_another_environment_is_told_from_a_full_gpu(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.trt.out_of_memory = True
    rig.trt.why_no_context = "Inconsistent setting of NVIDIA_TF32_OVERRIDE env var at build 0"
    with pytest.raises(BackendUnavailable, match="set NVIDIA_TF32_OVERRIDE as it was when"):
        rig.open()


def test_a_manifest_that_lies_about_types_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.with_plan(rig.plan(codes="FLOAT"))
    with pytest.raises(BundleError, match="engine and manifest disagree about codes float"):
        rig.open()
    assert rig.gpu.alive == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"compute_capability": "8.6"}, r"made for SM 8\.6, this GPU is 8\.7"),
        ({"tensorrt_version": "10.4.0"}, r"made by tensorrt 10\.4\.0, here is 10\.3\.0"),
        ({"onnx_sha256": "c" * 64}, "stale: made from another encoder"),
    ],
)
def test_a_stale_or_foreign_engine_never_runs(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    rig = Rig(tmp_path, **changes)
    with pytest.raises(BackendUnavailable, match=reason):
        rig.open()
    assert rig.trt.runtime is None and rig.gpu.alive == 0


def test_a_plugin_is_loaded_before_the_engine(tmp_path: Path, own_cache: Path) -> None:
    library = tmp_path / "plugin.so"
    library.write_bytes(b"elf")
    sha256 = file_sha256(library)
    rig = Rig(tmp_path, plugin_sha256=sha256)
    with pytest.raises(BackendUnavailable, match="needs the plugin library"):
        rig.open()
    plugin_folder().mkdir(parents=True)
    kept = library.rename(plugin_folder() / f"{sha256}.so")
    for _ in range(2):  # of one process
        rig.open().close()
        assert rig.trt.runtime.registry.loaded == [str(kept)]
    assert not rig.trt.runtime.engine_host_code_allowed


def test_a_version_compatible_engine_brings_its_plugin(tmp_path: Path) -> None:
    rig = Rig(tmp_path, plugin_sha256="d" * 64, version_compatible=True)
    rig.open().close()
    assert rig.trt.runtime.registry.loaded == [] and rig.trt.runtime.engine_host_code_allowed


def test_free_frames_take_the_usual_shape(tmp_path: Path) -> None:
    shape = (FRAMES, SIZE, SIZE, 3)
    profile = ProfileRecord(input="frames", min=(1, SIZE, SIZE, 3), opt=shape, max=shape)
    rig = Rig(tmp_path, profiles=(profile,))
    plan = json.loads(rig.plan())
    plan["tensors"][0][2] = [-1, SIZE, SIZE, 3]
    assert_encodes(rig.with_plan(json.dumps(plan).encode()).open(), FRAMES_THWC, 2)


def test_both_flavours_are_in_the_table_and_say_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"tensorrt", "tensorrt-rtx"} <= ENCODERS.keys()
    monkeypatch.setattr("vqedge_runtime.encoders.providers.missing_gpu", lambda: None)
    rig = Rig(tmp_path)
    try:
        import tensorrt  # noqa: F401
    except ImportError:
        with pytest.raises(BackendUnavailable, match=r"pip install 'vqedge\[tensorrt\]'"):
            open_encoder("tensorrt", rig.bundle.path_of("encoder"))
    else:
        pytest.skip("TensorRT is installed")


# ---- kernels that TensorRT-RTX compiles


@pytest.fixture
def rtx(tmp_path: Path, own_cache: Path) -> Rig:
    return Rig(tmp_path, "tensorrt-rtx")


def run_once(rig: Rig) -> int:
    """What a process does that asks once; how often kernels have been compiled by now."""
    encoder = rig.open()
    assert_encodes(encoder, FRAMES_THWC, 2)
    encoder.close()
    return int(rig.trt.compiled)


def kernel_files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "kernels").iterdir())


def test_kernels_are_compiled_once_for_an_engine(tmp_path: Path, rtx: Rig) -> None:
    assert [run_once(rtx) for _ in range(3)] == [1, 1, 1]
    (kept,) = kernel_files(tmp_path)
    os.utime(kept, (0, 0))
    written = kept.stat()
    run_once(rtx)
    assert kept.stat().st_ino == written.st_ino, "nothing new, nothing written"
    assert kept.stat().st_mtime > written.st_mtime, "but used, so that others go first"


def test_kernels_are_read_from_a_cache_that_is_read_only(
    rtx: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    run_once(rtx)
    monkeypatch.setattr(os, "utime", refuses)
    assert run_once(rtx) == 1


@pytest.mark.parametrize("change", ["engine", "driver", "gpu"])
def test_kernels_of_another_engine_driver_or_gpu_are_not_used(
    tmp_path: Path, rtx: Rig, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    run_once(rtx)
    monkeypatch.setattr(FakeRuntimeCache, "deserialize", lambda *_: pytest.fail("read"))
    if change == "engine":
        rtx.with_plan(rtx.plan() + b" ")
    elif change == "driver":
        rtx.gpu.driver = "CUDA 13.0"
    else:
        rtx.gpu = rtx.trt.gpu = FakeCuda("8.6")
    assert run_once(rtx) == 2
    assert len(kernel_files(tmp_path)) == 2


@pytest.mark.parametrize("content", ["cut", "empty", "refused"])
def test_kernels_that_are_damaged_or_refused_are_compiled_anew(
    tmp_path: Path, rtx: Rig, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    run_once(rtx)
    (kept,) = kernel_files(tmp_path)
    whole, strange = kept.read_bytes(), b"kernels of 1.0"
    refused = hashlib.sha256(strange).digest() + strange
    kept.write_bytes({"cut": whole[:-1], "empty": b"", "refused": refused}[content])
    given: list[bytes] = []
    real = FakeRuntimeCache.deserialize
    monkeypatch.setattr(
        FakeRuntimeCache, "deserialize", lambda *args: given.append(args[1]) or real(*args)
    )
    assert run_once(rtx) == 2
    assert kept.read_bytes() == whole
    assert given == ([strange] if content == "refused" else []), "nothing that is cut is shown"


def test_a_cache_for_kernels_that_cannot_be_written_costs_time_only(
    tmp_path: Path, rtx: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path / "file" / "below"))
    assert [run_once(rtx) for _ in range(2)] == [1, 2]


def test_only_the_newest_kernels_are_kept(
    tmp_path: Path, rtx: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_KEPT_FILES", 2)
    for number in range(4):
        rtx.gpu.driver = f"CUDA 13.{number}"
        run_once(rtx)
    assert len(kernel_files(tmp_path)) == 2
    assert run_once(rtx) == 4, "the last one is there"


def test_tensorrt_itself_keeps_no_kernels(tmp_path: Path, own_cache: Path) -> None:
    run_once(Rig(tmp_path))
    assert not (own_cache / "kernels").exists()


# ---- among the other backends


class Slow(FakeEncoder):
    def encode(self, frames_thwc: Any, budget: int, text: Any = None) -> Any:
        time.sleep(0.02)
        return super().encode(frames_thwc, budget)


def install(monkeypatch: pytest.MonkeyPatch, rig: Rig) -> None:
    """The rig's TensorRT and GPU, and beside them nothing but a slow ONNX Runtime."""
    monkeypatch.setenv("VQEDGE_CACHE", str(rig.bundle.root.parent / "cache"))
    monkeypatch.setattr(tensorrt, "Cuda", lambda: rig.gpu)
    monkeypatch.setattr(tensorrt, "tensorrt_module", lambda _: rig.trt)
    here = replace(ENCODERS["tensorrt"], missing=lambda: None)
    slow = EncoderBackend(lambda *_: Slow(), lambda: None)
    for name, backend in ENCODERS.items():  # not removed, which would change their order for good
        monkeypatch.setitem(ENCODERS, name, replace(backend, missing=lambda: Missing("", "")))
    monkeypatch.setitem(ENCODERS, "tensorrt", here)
    monkeypatch.setitem(ENCODERS, "onnxruntime", slow)
    monkeypatch.setattr(auto, "CANDIDATES", ("tensorrt", "onnxruntime"))


def test_auto_takes_an_engine_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path)
    install(monkeypatch, rig)
    encoder = open_encoder("auto", rig.bundle)
    assert encoder.name == "tensorrt 10.3.0 SM 8.7 fp16 (auto: fastest of 2 here)"
    assert "measuring tensorrt, onnxruntime on this machine, once" in caplog.text
    assert_encodes(encoder, FRAMES_THWC, 2)
    encoder.close()
    caplog.clear()
    open_encoder("auto", rig.bundle).close()
    assert not caplog.text, "remembered"
    rig.with_plan(rig.plan() + b" ")
    open_encoder("auto", rig.bundle).close()
    assert "measuring tensorrt" in caplog.text, "another engine is measured anew"


def test_a_check_says_which_engine_it_is_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path)
    install(monkeypatch, rig)
    assert engine_key(rig.bundle, "tensorrt") == "k"
    assert engine_key(rig.bundle, "onnxruntime") is None
    assert engine_key(rig.bundle, "auto") is None


@pytest.mark.parametrize(
    "changes",
    [{"compute_capability": "8.6"}, {"onnx_sha256": "c" * 64}, {"plugin_sha256": "d" * 64}],
)
def test_auto_leaves_out_an_engine_that_must_not_or_cannot_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
) -> None:
    rig = Rig(tmp_path, **changes)
    install(monkeypatch, rig)
    with caplog.at_level(logging.WARNING):
        assert open_encoder("auto", rig.bundle).name == "fake encoder (auto: the only one here)"
    assert rig.trt.runtime is None, "nothing of it was loaded"
    (told,) = caplog.messages
    assert told.startswith("tensorrt is left out: ") and "vqedge build" in told


@pytest.mark.parametrize("installed", [True, False])
def test_auto_says_that_an_engine_has_no_gpu_where_its_tensorrt_is_installed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    installed: bool,
) -> None:
    rig = Rig(tmp_path)
    install(monkeypatch, rig)
    gone = replace(ENCODERS["tensorrt"], missing=lambda: Missing("no NVIDIA GPU here", ""))
    monkeypatch.setitem(ENCODERS, "tensorrt", gone)
    monkeypatch.setattr(auto, "find_spec", {"tensorrt": object() if installed else None}.get)
    with caplog.at_level(logging.WARNING):
        assert list(auto.candidates(rig.bundle)) == ["onnxruntime"]
    assert caplog.messages == ["tensorrt is left out: no NVIDIA GPU here"] * installed


def test_a_bundle_without_engines_costs_no_look_at_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = Rig(tmp_path)
    install(monkeypatch, rig)
    monkeypatch.setattr(tensorrt, "Cuda", lambda: pytest.fail("asked for the GPU"))
    monkeypatch.setattr(tensorrt, "tensorrt_module", lambda _: pytest.fail("loaded TensorRT"))
    bare = write_bundle(tmp_path / "bare.vqedge")
    with caplog.at_level(logging.WARNING):
        assert list(auto.candidates(bare)) == ["onnxruntime"]
    assert not caplog.text


def test_the_bench_has_a_row_for_an_engine_though_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where `auto` would not take it, and where the first clip fails."""
    rig = Rig(tmp_path)
    install(monkeypatch, rig)
    monkeypatch.setattr(auto, "CANDIDATES", ("onnxruntime",))
    rows = side_by_side(rig.bundle, FRAMES_THWC, 1)
    assert rows["tensorrt"]["name"] == "tensorrt 10.3.0 SM 8.7 fp16"
    assert rows["tensorrt"]["over_fp32"] < 1
    rig.trt.fails_to_run = True
    rows = side_by_side(rig.bundle, FRAMES_THWC, 1)
    assert "TensorRT failed" in rows["tensorrt"]["error"] and "encode_ms" in rows["onnxruntime"]
    assert rig.gpu.alive == 0
