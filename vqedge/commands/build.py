"""`vqedge build`: a TensorRT engine for an existing bundle, on the machine that will run it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vqedge.bundle import bundle_or_default, open_bundle
from vqedge.choices import chosen
from vqedge.commands.frames import EncoderSpec, Frames, frames_in_folder
from vqedge.commands.output import json_result, result, say
from vqedge.engines import DEVICES, ENGINE_PRECISIONS, FLAVOURS, TYPINGS, Flavour, plugin_path
from vqedge.errors import UsageError

if TYPE_CHECKING:
    from vqedge_export.tensorrt.options import BuildOptions

_TAKES_PLUGIN: Flavour = "tensorrt"
_MOST_CLIPS = 64  # of a folder to calibrate on; more change little


def run_build(
    bundle: Path | None,
    target: str,
    *,
    options: BuildOptions | None = None,
    plugin: str | None = None,
    calibrate: Path | None = None,
    as_json: bool = False,
) -> None:
    """Build an engine into a bundle and print its record.

    Raises:
        UsageError: a value that is not one of those offered, or options that do not go together.
        BundleError: no bundle was given, and none is here.
        BackendUnavailable: TensorRT is not installed.
        ExportError: it cannot do what is asked, or failed.
    """
    from vqedge_export.tensorrt.build import require_buildable
    from vqedge_export.tensorrt.into_bundle import build_into_bundle

    flavour, wanted = chosen("--target", target, FLAVOURS), options or build_options()
    if calibrate is not None:
        require_int8(wanted, calibrate)
    require_takes_plugin((flavour,), plugin)
    place = bundle_or_default(bundle)
    encoder = open_bundle(place, verify=False).manifest.encoder  # verified when it is built into
    require_buildable(flavour, wanted)
    clips = calibration_clips(calibrate, encoder) if calibrate is not None else []
    library = plugin_library_for((flavour,), wanted, plugin)
    made, record = build_into_bundle(place, flavour, wanted, library, clips)
    size_bytes = (made.root / record.file).stat().st_size
    if as_json:
        engine = record.model_dump(mode="json") | {"size_bytes": size_bytes}
        json_result({"bundle": str(made.root), "engine": engine})
        return
    say(f"{size_bytes / 1e6:9.1f} MB  {record.file}")
    if record.plugin_sha256 is not None and not record.version_compatible:
        say(
            f"other machines need {plugin_path(record.plugin_sha256)}, too; --plugin none or "
            "--version-compatible makes an engine that needs none"
        )
    say(f"next: vqedge check {made.root} --backend {flavour}")
    result(str(made.root))


def build_options(
    precision: str | None = None,
    sm: str | None = None,
    *,
    typing: str = "strong",
    optimization_level: int = 3,
    workspace_mb: int | None = None,
    version_compatible: bool = False,
    hardware_compatible: bool = False,
    device: str = "gpu",
) -> BuildOptions:
    """How an engine is built, as users write it: see `vqedge build --help`.

    Raises:
        UsageError: a value that is not one of those offered.
    """
    from vqedge_export.tensorrt.options import BuildOptions, capabilities_from_text

    options = BuildOptions(
        capabilities=capabilities_from_text(sm),
        typing=chosen("--typing", typing, TYPINGS),
        optimization_level=optimization_level,
        workspace_mb=workspace_mb,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        device=chosen("--device", device, DEVICES),
    )
    if precision is None:
        return options
    return replace(options, precision=chosen("--precision", precision, ENGINE_PRECISIONS))


def plugin_library_for(
    flavours: Iterable[str], options: BuildOptions, plugin: str | None
) -> Path | None:
    """The library that `--plugin` asks for, compiled if need be; None where no engine takes one.

    Raises:
        BackendUnavailable: no such file.
    """
    from vqedge_export.tensorrt.plugin_build import AUTO_PLUGIN, plugin_from_text

    if _TAKES_PLUGIN not in flavours:
        return None
    sms = [int(capability.replace(".", "")) for capability in options.capabilities]
    return plugin_from_text(plugin or AUTO_PLUGIN, sms, options.hardware_compatible)


def require_takes_plugin(flavours: Iterable[str], plugin: str | None) -> None:
    """Refuse `--plugin` for engines that take none.

    Raises:
        UsageError: none of the engines takes one.
    """
    if plugin is not None and _TAKES_PLUGIN not in flavours:
        raise UsageError(f"--plugin {plugin}: only --target {_TAKES_PLUGIN} takes a plugin")


def require_int8(options: BuildOptions, folder: Path) -> None:
    """Refuse `--calibrate` of what is not calibrated.

    Raises:
        UsageError: the engine is not in int8.
    """
    if options.precision != "int8":
        raise UsageError(f"--calibrate {folder}: {options.precision} needs no calibration")


def calibration_clips(folder: Path, encoder: EncoderSpec) -> list[Frames]:
    """The videos of a folder, as an encoder takes them.

    Raises:
        ConfigError: no folder, or no file in it is a video.
    """
    clips = list(frames_in_folder(folder, encoder, _MOST_CLIPS))
    say(f"calibrating on {len(clips)} videos of {folder}")
    return clips
