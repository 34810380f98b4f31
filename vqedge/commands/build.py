"""`vqedge build`: a TensorRT engine for an existing bundle, on the machine that will run it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from vqedge.bundle import open_bundle
from vqedge.commands.frames import EncoderSpec, Frames, frames_in_folder
from vqedge.commands.output import json_result, result, say
from vqedge.engines import FLAVOURS, EnginePrecision, Flavour
from vqedge.errors import UsageError

if TYPE_CHECKING:
    from vqedge_export.tensorrt.options import BuildOptions

_TAKES_PLUGIN: Flavour = "tensorrt"
_MOST_CLIPS = 64  # of a folder to calibrate on; more change little


def run_build(
    bundle: Path,
    target: str,
    *,
    precision: str | None = None,
    sm: str | None = None,
    plugin: str | None = None,
    calibrate: Path | None = None,
    as_json: bool = False,
    **more: Any,
) -> None:
    """Build an engine into a bundle and print its record."""
    from vqedge_export.tensorrt.into_bundle import build_into_bundle

    flavour = _flavour(target)
    options = build_options(precision, sm, **more)
    clips: list[Frames] = []
    if calibrate is not None:
        require_int8(options, calibrate)
        spec = open_bundle(bundle, verify=False).manifest.encoder  # verified when it is built into
        clips = calibration_clips(calibrate, spec)
    library = plugin_library_for((flavour,), options, plugin)
    made, record = build_into_bundle(bundle, flavour, options, library, clips)
    size_bytes = (made.root / record.file).stat().st_size
    if as_json:
        engine = record.model_dump(mode="json") | {"size_bytes": size_bytes}
        json_result({"bundle": str(made.root), "engine": engine})
        return
    say(f"{size_bytes / 1e6:9.1f} MB  {record.file}")
    result(str(made.root))


def build_options(precision: str | None, sm: str | None, **more: Any) -> BuildOptions:
    """Options of an engine from what the command line was given.

    Raises:
        UsageError: a value that is not one of those offered.
    """
    from vqedge_export.tensorrt.options import BuildOptions, capabilities_from_text

    choices = {
        "precision": get_args(EnginePrecision),
        "typing": ("strong", "weak"),
        "device": ("gpu", "dla"),
    }
    values = more | ({"precision": precision} if precision else {})
    for name, allowed in choices.items():
        if values.get(name, allowed[0]) not in allowed:
            raise UsageError(f"--{name} {values[name]}: want {', '.join(allowed)}")
    return BuildOptions(capabilities=capabilities_from_text(sm), **values)


def plugin_library_for(
    flavours: Iterable[str], options: BuildOptions, plugin: str | None
) -> Path | None:
    """The library that `--plugin` asks for, if one of the engines takes a plugin.

    Raises:
        BackendUnavailable: no such file.
        UsageError: none of the engines takes one.
    """
    from vqedge_export.tensorrt.plugin_build import AUTO_PLUGIN, plugin_from_text

    if _TAKES_PLUGIN not in flavours:
        if plugin is not None:
            raise UsageError(f"--plugin {plugin}: only --target {_TAKES_PLUGIN} takes a plugin")
        return None
    sms = [int(capability.replace(".", "")) for capability in options.capabilities]
    return plugin_from_text(plugin or AUTO_PLUGIN, sms, options.hardware_compatible)


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


def _flavour(target: str) -> Flavour:
    for flavour in FLAVOURS:
        if flavour == target:
            return flavour
    raise UsageError(f"--target {target}: an engine is of {' or '.join(FLAVOURS)}")
