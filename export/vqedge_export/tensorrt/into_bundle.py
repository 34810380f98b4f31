"""Add an engine to a bundle that exists: its own ONNX is enough, no checkpoint and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vqedge.bundle import Bundle, EngineRecord, open_bundle, rewritten
from vqedge.checkpoint import PARITY
from vqedge.engines import Flavour
from vqedge_export.report import ParityReport, report_from_file
from vqedge_export.tensorrt.build import Source, engine_from_onnx
from vqedge_export.tensorrt.calibration import Frames
from vqedge_export.tensorrt.options import BuildOptions

_AUTO = "auto"  # as a backend is checked by: it may have been an engine


def build_into_bundle(
    path: Path,
    flavour: Flavour,
    options: BuildOptions,
    plugin: Path | None = None,
    calibration: Sequence[Frames] = (),
) -> tuple[Bundle, EngineRecord]:
    """Build an engine on this machine and put it into the bundle.

    Engines that it makes useless leave the bundle: those of another encoder, and those of the same
    TensorRT flavour for the same GPUs in the same precision. What `vqedge check` measured of the
    engine that ran before leaves the parity report. The bundle changes as a whole or not
    at all.

    Args:
        path: the bundle.
        flavour: which TensorRT.
        options: precision, GPUs, and what the builder is told.
        plugin: library with the NearestCodebook plugin.
        calibration: clips for int8 beside the generated ones.

    Raises:
        BundleError: the bundle is not intact, or cannot be written.
        CheckpointError: its parity report cannot be read.
        BackendUnavailable: TensorRT is not installed.
        ExportError: it cannot do what is asked, or failed.
        ParityError: int8 does not keep the ids.
    """
    bundle = open_bundle(path)
    manifest = bundle.manifest
    encoder = bundle.path_of("encoder")
    source = Source(encoder, manifest.encoder, manifest.quantizer, tuple(calibration))
    report = report_from_file(bundle.root / PARITY)
    engine, record = engine_from_onnx(source, flavour, options, plugin)
    kept = tuple(old for old in manifest.engines if not _supersedes(record, old))
    files: dict[str, Path | bytes] = {record.file: engine, **_report_left(report, record)}
    return rewritten(bundle, files, (record, *kept)), record


def _report_left(report: ParityReport | None, new: EngineRecord) -> dict[str, Path | bytes]:
    """The parity report, if it told of another engine where the new one will run."""
    if report is None:
        return {}
    backends = {
        name: item
        for name, item in report.backends.items()
        if name not in (new.tensorrt_flavour, _AUTO) or item.engine == new.key
    }
    if backends == report.backends:
        return {}
    return {PARITY: report.model_copy(update={"backends": backends}).to_json().encode()}


def _supersedes(new: EngineRecord, old: EngineRecord) -> bool:
    same = (new.tensorrt_flavour, new.compute_capability, new.precision) == (
        old.tensorrt_flavour,
        old.compute_capability,
        old.precision,
    )
    return same or old.onnx_sha256 != new.onnx_sha256
