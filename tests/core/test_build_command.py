"""`vqedge build`, `export --target`, and engines in `inspect`: what the command line says."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
from test_engines import record
from tiny_bundle import write_bundle

import vqedge.cli
from vqedge.bundle import rewritten
from vqedge.commands.build import (
    build_options,
    plugin_library_for,
    require_takes_plugin,
    run_build,
)
from vqedge.commands.export import ExportOptions, run_export
from vqedge.commands.inspect import facts_of
from vqedge.engines import cache_engine, plugin_path
from vqedge.errors import BundleError, ConfigError, ExportError, UsageError
from vqedge_export.targets import TARGETS
from vqedge_export.tensorrt.options import BuildOptions, Offer

TINY = Path(__file__).parents[2] / "models/tiny"


def test_options_are_checked_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--target onnx: choose one of tensorrt, tensorrt-rtx"):
        run_build(tmp_path, "onnx")
    with pytest.raises(UsageError, match="--precision fp8: choose one of fp32, fp16, int8"):
        build_options("fp8")
    with pytest.raises(UsageError, match="--typing strict: choose one of strong, weak"):
        build_options(typing="strict")
    with pytest.raises(UsageError, match="--device npu: choose one of gpu, dla"):
        build_options(device="npu")


def test_only_int8_is_calibrated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fp16 needs no calibration"):
        run_build(tmp_path, "tensorrt", calibrate=tmp_path)
    with pytest.raises(UsageError, match="fp16 needs no calibration"):
        ExportOptions(target="tensorrt-rtx", calibrate=tmp_path)


@pytest.fixture
def buildable(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """TensorRT can build whatever it is asked for."""
    asked = Mock()
    monkeypatch.setattr("vqedge_export.tensorrt.build.require_buildable", asked)
    return asked


def test_a_folder_to_calibrate_on_holds_videos(tmp_path: Path, buildable: Mock) -> None:
    bundle = write_bundle(tmp_path / "t.vqedge").root
    empty = tmp_path / "empty"
    for found in ("no such folder", "no file in it is a video"):
        with pytest.raises(ConfigError, match=f"{found}; give a folder of videos"):
            run_build(bundle, "tensorrt", options=build_options("int8"), calibrate=empty)
        empty.mkdir(exist_ok=True)


def test_what_is_not_given_keeps_its_default() -> None:
    options = build_options(None, "86,89")
    assert options == BuildOptions(precision="fp16", capabilities=("8.6", "8.9"))


def test_every_option_reaches_the_builder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buildable: Mock
) -> None:
    bundle = write_bundle(tmp_path / "t.vqedge").root
    built = Mock(side_effect=BundleError("stop"))
    monkeypatch.setattr("vqedge_export.tensorrt.into_bundle.build_into_bundle", built)
    wanted = BuildOptions("fp32", ("8.6",), "weak", 5, 7, True, True, "dla")
    flags = "--precision fp32 --sm 86 --typing weak --optimization-level 5 --workspace-mb 7"
    flags += " --version-compatible --hardware-compatible --device dla --plugin none"
    with pytest.raises(BundleError, match="stop"):
        vqedge.cli.app(["build", str(bundle), *flags.split()], standalone_mode=False)
    built.assert_called_once_with(bundle, "tensorrt", wanted, None, [])
    buildable.assert_called_once_with("tensorrt", wanted)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """What compiles the plugin, for minutes."""
    compiled = Mock(return_value=Path("made.so"))
    monkeypatch.setattr("vqedge_export.tensorrt.plugin_build.plugin_library", compiled)
    return compiled


def test_no_plugin_is_compiled_for_a_bundle_that_is_not_there(
    tmp_path: Path, compiled: Mock
) -> None:
    with pytest.raises(BundleError, match=r"none\.vqedge"):
        run_build(tmp_path / "none.vqedge", "tensorrt")
    compiled.assert_not_called()


@pytest.mark.parametrize("command", ["build", "export"])
def test_no_plugin_is_compiled_for_an_engine_that_cannot_be_built(
    tmp_path: Path, compiled: Mock, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    offer = Offer("tensorrt", "10.3.0", "8.7", (), weak_typing=True)
    monkeypatch.setattr("vqedge_export.tensorrt.build.offer_of", lambda _: offer)
    monkeypatch.setattr("vqedge_export.targets.require_installed", lambda _: None)
    with pytest.raises(ExportError, match=r"--sm 86: TensorRT builds for the GPU .* is 8\.7"):
        if command == "build":
            bundle = write_bundle(tmp_path / "t.vqedge").root
            run_build(bundle, "tensorrt", options=build_options(None, "86"))
        else:
            options = ExportOptions(target="tensorrt", sm="86")
            run_export(TINY, tmp_path / "out.vqedge", options=options)
    compiled.assert_not_called()


@pytest.mark.parametrize("needed", [True, False])
def test_a_plugin_that_other_machines_need_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    buildable: Mock,
    capsys: pytest.CaptureFixture[str],
    needed: bool,
) -> None:
    made = record(plugin_sha256="d" * 64, version_compatible=not needed)
    bundle = rewritten(write_bundle(tmp_path / "t.vqedge"), {made.file: b"plan"}, (made,))
    built = Mock(return_value=(bundle, made))
    monkeypatch.setattr("vqedge_export.tensorrt.into_bundle.build_into_bundle", built)
    run_build(bundle.root, "tensorrt", plugin="none")
    told = capsys.readouterr().err
    assert (f"other machines need {plugin_path('d' * 64)}, too; --plugin none" in told) == needed
    assert told.endswith(f"next: vqedge check {bundle.root} --backend tensorrt\n")


def test_every_option_reaches_the_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Mock(side_effect=BundleError("stop"))
    monkeypatch.setattr("vqedge_export.targets.require_possible", Mock())
    monkeypatch.setattr("vqedge_export.pipeline.export_bundle", made)
    flags = "--target tensorrt --precision fp16 --sm 87 --plugin none --llm-quant F16"
    flags += " --no-check --plugin-node --record --overwrite"
    with pytest.raises(BundleError, match="stop"):
        vqedge.cli.app(["export", str(TINY), "-o", "b", *flags.split()], standalone_mode=False)
    assert made.call_args.args[:2] == (TINY, Path("b"))
    assert made.call_args.kwargs == {
        "quant": "F16",
        "precision": None,  # fp16 is the engine's
        "check": False,
        "record": True,
        "plugin_node": True,
        "overwrite": True,
        "targets": (TARGETS["tensorrt"],),
        "options": BuildOptions(precision="fp16", capabilities=("8.7",)),
        "plugin": None,
        "calibration": (),
    }


@pytest.mark.parametrize("words", [["t.vqedge"], ["-m", "t.vqedge"], []])
def test_the_bundle_is_named_in_any_way(
    words: list[str], monkeypatch: pytest.MonkeyPatch, buildable: Mock, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("t.vqedge", "other.vqedge"):
        write_bundle(Path(name))
    built = Mock(side_effect=BundleError("stop"))
    monkeypatch.setattr("vqedge_export.tensorrt.into_bundle.build_into_bundle", built)
    monkeypatch.setenv("VQEDGE_BUNDLE", "other.vqedge")
    with pytest.raises(BundleError, match="stop"):
        vqedge.cli.app(["build", *words, "--plugin", "none"], standalone_mode=False)
    assert built.call_args.args[0] == Path("t.vqedge" if words else "other.vqedge")


def test_options_of_engines_need_an_engine(tmp_path: Path) -> None:
    for changes in ({"precision": "fp16"}, {"sm": "86"}, {"calibrate": tmp_path}):
        with pytest.raises(UsageError, match="add --target tensorrt or tensorrt-rtx"):
            ExportOptions(target="onnx", **changes)  # type: ignore[arg-type]


def test_a_plugin_needs_an_engine_that_takes_one() -> None:
    for flavours in ((), ("tensorrt-rtx",)):
        with pytest.raises(UsageError, match="only --target tensorrt takes a plugin"):
            require_takes_plugin(flavours, "auto")
        require_takes_plugin(flavours, None)
        assert plugin_library_for(flavours, build_options(None, None), None) is None


def test_the_plugin_is_compiled_for_the_gpus_of_the_engine(compiled: Mock) -> None:
    options = build_options(None, "87,120")
    assert plugin_library_for(("tensorrt",), options, None) == Path("made.so")
    compiled.assert_called_once_with([87, 120])


def test_an_engine_in_a_bundle_is_inspected_by_its_record(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "t.vqedge")
    made = rewritten(bundle, {"engines/k.engine": b"plan"}, (record(),))
    kind, facts = facts_of(made.root / "engines/k.engine")
    assert kind == "engine" and facts["size_bytes"] == 4
    assert facts["engine"]["compute_capability"] == "8.7"
    assert facts["engine"]["inputs"][0]["name"] == "frames"


def test_an_engine_in_the_cache_too_and_a_lone_one_says_why_not(
    tmp_path: Path, own_cache: Path
) -> None:
    lone = tmp_path / "lone.engine"
    lone.write_bytes(b"plan")
    with pytest.raises(BundleError, match="an engine tells nothing without its record"):
        facts_of(lone)
    kind, facts = facts_of(cache_engine(lone, record()))
    assert kind == "engine" and facts["engine"]["precision"] == "fp16"
