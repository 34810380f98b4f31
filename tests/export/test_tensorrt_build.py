"""Engines from a bundle's encoder, in a process of its own, with a fake TensorRT in it."""

from __future__ import annotations

import logging
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from fake_tensorrt import FakeTensorRT
from tiny_bundle import fill_folder, tiny_facts, tiny_quantizer
from tiny_engine import ENGINE_OUTPUTS, tiny_encoder, write_tiny_onnx

import vqedge.cli
from vqedge.bundle import bundle_writer, open_bundle, rewritten
from vqedge.checkpoint import PARITY
from vqedge.engines import cached_engine, cached_plugin
from vqedge.errors import BackendUnavailable, ExportError
from vqedge.files import file_sha256
from vqedge_export.report import BackendParity, report_from_file, report_of
from vqedge_export.tensorrt import build
from vqedge_export.tensorrt.build import Source, engine_from_onnx, offer_of
from vqedge_export.tensorrt.into_bundle import build_into_bundle
from vqedge_export.tensorrt.job import Job, Outcome
from vqedge_export.tensorrt.library import Library
from vqedge_export.tensorrt.options import BuildOptions
from vqedge_export.tensorrt.worker import outcome_of

pytestmark = pytest.mark.usefixtures("own_cache")
SITE = Path(__file__).parents[1] / "fakes"
RTX = BuildOptions(precision="fp32", capabilities=("8.6",))


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real building process, with the fake for `import tensorrt`."""
    paths = [str(SITE / "site"), str(SITE), *sys.path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in paths if path))
    monkeypatch.setenv("FAKE_TENSORRT", "1.7.1.116")


class Installed:
    """The fake in this process: which version is there, and how many engines it built."""

    def __init__(self) -> None:
        self.version, self.engines = "1.7.1.116", 0
        self.capability: str | None = "8.7"

    def run(self, job: Job) -> Outcome:
        library = Library(
            FakeTensorRT(self.version, rtx=job.flavour == "tensorrt-rtx"), job.flavour
        )
        self.engines += job.onnx is not None
        outcome = outcome_of(job, library)
        assert outcome.offer is not None
        offer = replace(outcome.offer, compute_capability=self.capability)
        return outcome.model_copy(update={"offer": offer})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    there = Installed()
    monkeypatch.setattr(build, "run_job", there.run)
    return there


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    monkeypatch.setattr(build, "prepare", lambda model, *_, **__: model)
    monkeypatch.setattr(build, "require_half_range", lambda *_: None)
    return Source(write_tiny_onnx(tmp_path / "encoder.onnx"), tiny_encoder(), tiny_quantizer())


def test_an_engine_is_built_once_and_then_taken_from_the_cache(
    source: Source, installed: Installed
) -> None:
    path, record = engine_from_onnx(source, "tensorrt-rtx", RTX)
    assert path.is_file() and path.stem == record.key
    assert record.tensorrt_version == "1.7.1.116" and record.compute_capability == "8.6"
    assert record.onnx_sha256 == file_sha256(source.onnx)
    assert record.inputs == source.encoder.inputs and record.outputs == ENGINE_OUTPUTS
    assert engine_from_onnx(source, "tensorrt-rtx", RTX) == (path, record)
    assert installed.engines == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "fp16"},
        {"capabilities": ("8.9",)},
        {"optimization_level": 4},
        {"workspace_mb": 9},
    ],
)
def test_every_option_makes_another_engine(
    source: Source, installed: Installed, changes: dict[str, Any]
) -> None:
    _, record = engine_from_onnx(source, "tensorrt-rtx", RTX)
    _, other = engine_from_onnx(source, "tensorrt-rtx", replace(RTX, **changes))
    assert other.key != record.key and installed.engines == 2


def test_another_encoder_or_version_makes_another_engine(
    source: Source, installed: Installed
) -> None:
    _, record = engine_from_onnx(source, "tensorrt-rtx", RTX)
    installed.version = "1.8.0"
    _, newer = engine_from_onnx(source, "tensorrt-rtx", RTX)
    assert newer.tensorrt_version == "1.8.0" and newer.key != record.key
    model = onnx.load(str(source.onnx))
    model.doc_string = "another"
    source.onnx.write_bytes(model.SerializeToString())
    _, other = engine_from_onnx(source, "tensorrt-rtx", RTX)
    assert other.onnx_sha256 != record.onnx_sha256 and other.key not in (record.key, newer.key)


def test_a_damaged_engine_in_the_cache_is_built_again(source: Source, installed: Installed) -> None:
    path, record = engine_from_onnx(source, "tensorrt-rtx", RTX)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    again, _ = engine_from_onnx(source, "tensorrt-rtx", RTX)
    assert again.read_bytes() == whole and installed.engines == 2
    assert cached_engine(record.key) is not None


def test_tensorrt_needs_the_gpu_it_builds_for(source: Source, installed: Installed) -> None:
    installed.version, installed.capability = "10.3.0", None
    with pytest.raises(ExportError, match="TensorRT builds on the GPU that it builds for"):
        engine_from_onnx(source, "tensorrt", BuildOptions())


def test_the_plugin_is_kept_where_the_runtime_looks_for_it(
    source: Source, installed: Installed, tmp_path: Path
) -> None:
    installed.version = "10.3.0"
    plugin = tmp_path / "plugin.so"
    plugin.write_bytes(b"elf")
    _, record = engine_from_onnx(source, "tensorrt", BuildOptions(), plugin)
    assert record.plugin_sha256 == file_sha256(plugin)
    assert cached_plugin(file_sha256(plugin)).read_bytes() == b"elf"
    _, without = engine_from_onnx(source, "tensorrt", BuildOptions())
    assert without.plugin_sha256 is None and without.key != record.key


@pytest.mark.parametrize("damage", ["deleted", "cut short"])
def test_a_plugin_that_was_lost_is_kept_again_though_the_engine_is_in_the_cache(
    source: Source, installed: Installed, tmp_path: Path, damage: str
) -> None:
    installed.version = "10.3.0"
    plugin = tmp_path / "plugin.so"
    plugin.write_bytes(b"elf")
    sha256 = file_sha256(plugin)
    first = engine_from_onnx(source, "tensorrt", BuildOptions(), plugin)
    kept = cached_plugin(sha256)
    if damage == "deleted":
        kept.unlink()
    else:
        kept.write_bytes(b"e")
    assert engine_from_onnx(source, "tensorrt", BuildOptions(), plugin) == first
    assert cached_plugin(sha256) == kept and installed.engines == 1


def test_free_frames_are_described_in_the_record(
    source: Source, installed: Installed, tmp_path: Path
) -> None:
    frames, budget = source.encoder.inputs
    free = frames.model_copy(update={"shape": ("t", *frames.shape[1:])})
    path = write_tiny_onnx(tmp_path / "free.onnx", free_frames=True)
    encoder = tiny_encoder(inputs=(free, budget))
    _, record = engine_from_onnx(Source(path, encoder, source.quantizer), "tensorrt-rtx", RTX)
    (profile,) = record.profiles
    assert (profile.min, profile.opt, profile.max) == ((1, 4, 4, 3), (2, 4, 4, 3), (2, 4, 4, 3))


def test_the_building_process_builds(
    source: Source, process: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('a stranger')")
    monkeypatch.chdir(tmp_path)
    path, record = engine_from_onnx(source, "tensorrt-rtx", RTX)
    assert b'"made_by": "1.7.1.116"' in path.read_bytes()
    assert record.outputs == ENGINE_OUTPUTS


def test_what_tensorrt_says_is_told_where_progress_is_wanted(
    source: Source, process: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        engine_from_onnx(source, "tensorrt-rtx", RTX)
    assert "building tensorrt-rtx-1.7.1.116-sm86-fp32-" in caplog.text
    assert "a warning" not in caplog.text
    with caplog.at_level(logging.INFO):
        engine_from_onnx(source, "tensorrt-rtx", replace(RTX, workspace_mb=9))
    assert "a warning" in caplog.text and "chosen a kernel" in caplog.text
    assert "a number of everything" not in caplog.text


@pytest.mark.parametrize(
    ("flags", "told"), [([], False), (["--verbose"], True), (["--debug"], True)]
)
def test_tensorrt_talks_where_the_command_line_asks_for_it(
    source: Source,
    installed: Installed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    flags: list[str],
    told: bool,
) -> None:
    jobs: list[Job] = []
    for name in ("", "vqedge_export"):
        caplog.set_level(logging.WARNING, name)  # both as they were, afterwards
    monkeypatch.setattr(  # which does nothing where pytest has its handlers
        logging, "basicConfig", lambda **given: logging.getLogger().setLevel(given["level"])
    )
    monkeypatch.setattr(build, "run_job", lambda job: jobs.append(job) or installed.run(job))
    words = ["build", str(unreported_bundle(tmp_path, source)), "--target", "tensorrt-rtx"]
    vqedge.cli.app([*flags, *words, "--precision", "fp32"], standalone_mode=False)
    assert [job.verbose for job in jobs if job.onnx] == [told]


def test_a_long_build_says_that_it_lives(
    source: Source,
    installed: Installed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def slow(job: Job) -> Outcome:
        deadline = time.monotonic() + 10
        while job.onnx is not None and "building for " not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return installed.run(job)

    monkeypatch.setattr(build, "_TELL_SECONDS", 0.001)
    monkeypatch.setattr(build, "run_job", slow)
    engine_from_onnx(source, "tensorrt-rtx", RTX)
    told = len(caplog.records)
    time.sleep(0.02)
    assert len(caplog.records) == told, "and not afterwards"


def test_a_native_abort_becomes_one_line(
    source: Source, process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "1.7.1.116 abort")
    with pytest.raises(ExportError) as caught:
        engine_from_onnx(source, "tensorrt-rtx", RTX)
    line = str(caught.value)
    assert "tensorrt-rtx: the building process died of SIGABRT" in line
    assert "Assertion failed: kernel | second line" in line and "\n" not in line
    assert not list(source.onnx.parent.glob("cache/engines/*"))


def test_a_library_that_does_not_load_is_unavailable(
    process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_TENSORRT", "10.3.0 missing")
    with pytest.raises(BackendUnavailable, match=r"tensorrt cannot be loaded \(libnvinfer\.so\.10"):
        offer_of("tensorrt")


def unreported_bundle(folder: Path, source: Source) -> Path:
    """A bundle with the source's encoder and without a parity report."""
    with bundle_writer(folder / "t.vqedge") as draft:
        fill_folder(draft.folder)
        (draft.folder / "encoder.onnx").write_bytes(source.onnx.read_bytes())
        (draft.folder / PARITY).unlink()
        return draft.finish(tiny_facts(encoder=source.encoder)).root


def test_an_engine_goes_into_a_bundle_and_takes_the_place_of_what_it_supersedes(
    source: Source, installed: Installed, tmp_path: Path
) -> None:
    root = unreported_bundle(tmp_path, source)
    for version in ("1.7.1.116", "1.8.0"):
        installed.version = version
        build_into_bundle(root, "tensorrt-rtx", RTX)
    newest = build_into_bundle(root, "tensorrt-rtx", replace(RTX, precision="fp16"))[1]
    bundle = open_bundle(root)
    assert [(item.tensorrt_version, item.precision) for item in bundle.manifest.engines] == [
        ("1.8.0", "fp16"),
        ("1.8.0", "fp32"),
    ]
    assert bundle.manifest.engines[0] == newest
    assert (bundle.path_of("encoder")).read_bytes() == source.onnx.read_bytes()
    assert len(list((root / "engines").iterdir())) == 2


def test_figures_of_the_engine_that_ran_before_leave_the_report(
    source: Source, installed: Installed, tmp_path: Path
) -> None:
    root = unreported_bundle(tmp_path, source)
    bundle, first = build_into_bundle(root, "tensorrt-rtx", RTX)
    zero = dict.fromkeys(("ids_differ", "safe_ids_differ", "margin_where_ids_differ"), 0.0)
    zero |= {"token_cosine": None, "token_cosine_mean": 1.0, "token_cosine_patches": None}
    zero |= {"maps_differ": 0.0, "clips": 1, "clips_same": 1}
    row = BackendParity(backend="b", reference="r", **zero)
    rows = {"tensorrt-rtx": row.model_copy(update={"engine": first.key})}
    rows |= {"openvino": row, "auto": row, "tensorrt": row}
    report = report_of(bundle).model_copy(update={"backends": rows})
    rewritten(bundle, {PARITY: report.to_json().encode()})

    def told() -> set[str]:
        found = report_from_file(open_bundle(root).root / PARITY)
        assert found is not None
        return set(found.backends)

    build_into_bundle(root, "tensorrt-rtx", RTX)
    assert told() == {"tensorrt-rtx", "openvino", "tensorrt"}, "the same engine"
    build_into_bundle(root, "tensorrt-rtx", replace(RTX, precision="fp16"))
    assert told() == {"openvino", "tensorrt"}
