"""The table of what `vqedge export` makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from vqedge import packages
from vqedge.errors import BackendUnavailable, UsageError
from vqedge_export import targets
from vqedge_export.targets import BASE, TARGETS, engine_targets, require_installed
from vqedge_export.tensorrt import build


def test_every_bundle_holds_encoder_and_language_model() -> None:
    assert [row.name for row in BASE] == ["onnx", "gguf"]
    assert engine_targets(None) == engine_targets("onnx") == engine_targets("gguf, onnx") == ()


def test_engines_come_on_top_in_the_tables_order() -> None:
    assert [row.name for row in engine_targets("tensorrt-rtx,tensorrt")] == [
        "tensorrt",
        "tensorrt-rtx",
    ]


def test_an_unknown_target_is_answered_with_the_known_ones() -> None:
    for text in ("openvino", "", "onnx,", "All"):
        with pytest.raises(UsageError, match="choose one of onnx, gguf, gguf-vocab, tensorrt"):
            engine_targets(text)


def test_all_is_what_is_installed_and_says_what_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = replace(TARGETS["tensorrt-rtx"], needs=("json",))
    not_here = replace(TARGETS["tensorrt"], needs=("no_such_module",))
    rows = TARGETS | {"tensorrt-rtx": here, "tensorrt": not_here}
    monkeypatch.setattr(targets, "TARGETS", rows)
    assert engine_targets("all") == (here,)
    assert "leaves out tensorrt: it is not installed" in caplog.text


def test_what_is_missing_is_said_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "find_spec", lambda _: None)
    monkeypatch.setattr(packages, "_is_jetson", lambda: False)
    require_installed(BASE)
    for name, module in (("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")):
        told = rf"--target {name}: {module} is not installed; pip install 'vqedge\[{name}\]'"
        with pytest.raises(BackendUnavailable, match=told):
            require_installed((*BASE, TARGETS[name]))


def test_an_engine_is_calibrated_on_what_export_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[build.Source] = []

    def built(source: build.Source, *_: Any) -> Any:
        seen.append(source)
        (tmp_path / "built").write_bytes(b"plan")
        return tmp_path / "built", SimpleNamespace(file="engines/k.engine")

    monkeypatch.setattr(build, "engine_from_onnx", built)
    for name in ("encoder_record", "quantizer_record", "checkpoint_arrays"):
        monkeypatch.setattr(targets, name, lambda *_: None)
    clips = (np.zeros((2, 4, 4, 3), np.uint8),)
    made = targets.Making(tmp_path, tmp_path, *[None] * 4, calibration=clips)  # type: ignore[arg-type]
    TARGETS["tensorrt-rtx"].export(made)
    assert seen[0].calibration is clips
