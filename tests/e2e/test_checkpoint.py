"""models/tiny: small, pickle-free, the same by both roads, and as good as it says."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from vqedge.base.fetch import fetch
from vqedge.checkpoint import GRAPH
from vqedge.commands.evaluate import BundleAnswerer
from vqedge.data.suites import suite_items
from vqedge.evaluate import evaluate
from vqedge.files import file_sha256
from vqedge.model.checkpoint import open_checkpoint
from vqedge_export.onnx_export import stripped_graph
from vqedge_export.report import report_from_file
from vqedge_runtime import VideoQA

SIZE_LIMIT_BYTES = 30e6
LEAST = 0.85  # of the synthetic suite: without the frames' order a model got 84 %, without any 32 %


def test_checkpoint_is_small_and_holds_no_pickle(checkpoint: Path) -> None:
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < SIZE_LIMIT_BYTES
    assert {path.suffix for path in files} == {".json", ".safetensors", ".onnx"}


def test_assembled_encoder_equals_the_exported_one_byte_for_byte(
    checkpoint: Path, bundle: Path
) -> None:
    report = report_from_file(checkpoint / "parity.json")
    assert report is not None
    assert file_sha256(bundle / "encoder.onnx") == report.encoder_sha256


@pytest.mark.slow
def test_tracing_again_gives_the_stored_graph(checkpoint: Path) -> None:
    traced = stripped_graph(open_checkpoint(checkpoint), fetch("dinov2-s14-focus").path)
    assert traced == onnx.load(str(checkpoint / GRAPH), load_external_data=False)


def test_parity_report_is_within_its_tolerance(checkpoint: Path) -> None:
    report = report_from_file(checkpoint / "parity.json")
    assert report is not None and report.tolerance is not None
    assert report.faults(report.tolerance) == []


@pytest.mark.slow
def test_accuracy_on_held_out_clips_through_the_bundle(qa: VideoQA, checkpoint: Path) -> None:
    """Sixty questions; at least what was measured of this checkpoint, less three standard errors.

    Never less than `LEAST`, whatever was measured.
    """
    items = suite_items("synthetic", 60)
    report = evaluate(BundleAnswerer(qa), "synthetic", items).to_dict()
    measured = json.loads((checkpoint.parents[1] / "docs/measured/eval_bundle.json").read_text())
    share = measured["accuracy"]
    slack = 3 * (share * (1 - share) / len(items)) ** 0.5
    assert report["accuracy"] >= max(LEAST, share - slack)
    assert report["tokens_mean"] <= 32
