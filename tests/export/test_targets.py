"""The table of what `vqedge export` makes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vqedge.errors import BackendUnavailable, ConfigError
from vqedge_export import targets
from vqedge_export.targets import BASE, TARGETS, engine_targets, require_installed


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
        with pytest.raises(ConfigError, match=r"gguf \(\.gguf\), gguf-vocab \(\.gguf\), tensorrt"):
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


def test_what_is_missing_is_said_before_any_work() -> None:
    require_installed(BASE)
    absent = replace(TARGETS["tensorrt"], needs=("no_such_module",))
    with pytest.raises(
        BackendUnavailable, match=r"no_such_module is not installed.*vqedge\[tensorrt\]"
    ):
        require_installed((*BASE, absent))
