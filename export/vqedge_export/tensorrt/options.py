"""What can be asked of an engine, and what a version of TensorRT has to refuse."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from vqedge.engines import (
    JETSONS,
    LEAST_TENSORRT,
    Device,
    EnginePrecision,
    Flavour,
    Typing,
    version_of,
)
from vqedge.errors import ConfigError, ExportError, UsageError

LEVELS = range(6)
RTX_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")  # what an engine is made for unless one says


@dataclass(frozen=True)
class BuildOptions:
    """How to build an engine.

    Attributes:
        precision: of the ViT; int8 multiplies in int8 and does the rest in float16. The quantizer
            and all behind it stay float32.
        capabilities: GPUs to build for, as ("8.6", "8.9"); empty for the usual ones of the flavour.
        typing: "strong", the graph says the type of every tensor; "weak", TensorRT 10 chooses
            types by its builder flags and the quantizer is pinned to float32.
        optimization_level: 0 (fast to build) to 5 (fast to run).
        workspace_mb: most scratch memory of a layer on the GPU; None for no limit.
        version_compatible: later TensorRT of the same major version may run the engine.
        hardware_compatible: any GPU of compute capability 8.0 and above may run it, Jetsons aside.
        device: "gpu"; "dla" is refused, with the reason.
    """

    precision: EnginePrecision = "fp16"
    capabilities: tuple[str, ...] = ()
    typing: Typing = "strong"
    optimization_level: int = 3
    workspace_mb: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    device: Device = "gpu"

    def __post_init__(self) -> None:
        if self.optimization_level not in LEVELS:
            raise ConfigError(f"--optimization-level {self.optimization_level}: want 0 to 5")
        if self.workspace_mb is not None and self.workspace_mb < 1:
            raise ConfigError(f"--workspace-mb {self.workspace_mb}: want at least 1")

    def spelled(self, calibration: str | None = None) -> str:
        """The options that shape an engine, beside precision and GPUs, in one spelling.

        Args:
            calibration: tells the clips that int8 was calibrated on from others.
        """
        rest = asdict(self) | ({"calibration": calibration} if calibration else {})
        del rest["precision"], rest["capabilities"]
        return json.dumps(rest, sort_keys=True)


@dataclass(frozen=True)
class Offer:
    """What a TensorRT that was found can do."""

    flavour: Flavour
    version: str
    compute_capability: str | None  # of this machine's GPU
    capabilities: tuple[str, ...]  # that it can build for without the GPU; none of TensorRT proper
    weak_typing: bool

    @property
    def takes_plugin(self) -> bool:
        """TensorRT-RTX has no plugins."""
        return self.flavour == "tensorrt"


def capabilities_from_text(text: str | None) -> tuple[str, ...]:
    """`--sm 86,89` as ("8.6", "8.9"); none for None.

    Raises:
        UsageError: not a list of compute capabilities.
    """
    parts = [part.strip() for part in text.split(",")] if text is not None else []
    if not all(part.isdigit() and 2 <= len(part) <= 3 for part in parts):
        raise UsageError(f"--sm {text!r}: want compute capabilities such as 86,89")
    return tuple(dict.fromkeys(f"{part[:-1]}.{part[-1]}" for part in parts))


def targets_of(options: BuildOptions, offer: Offer) -> tuple[str, ...]:
    """The compute capabilities to build for.

    Raises:
        ExportError: TensorRT cannot build for them here.
    """
    if offer.flavour == "tensorrt":
        return _this_gpu(options, offer)
    wanted = options.capabilities or RTX_CAPABILITIES
    missing = [item for item in wanted if item not in offer.capabilities]
    if missing:
        raise ExportError(
            f"TensorRT-RTX {offer.version} cannot build for SM {', '.join(missing)}; "
            f"--sm takes {', '.join(item.replace('.', '') for item in offer.capabilities)}"
        )
    return wanted


def require_possible(options: BuildOptions, offer: Offer, plugin: bool) -> None:
    """Refuse what this TensorRT cannot do.

    Raises:
        ExportError: says every reason.
    """
    faults = [reason for wrong, reason in _refusals(options, offer, plugin) if wrong]
    if faults:
        raise ExportError(f"{_name(offer)} {offer.version}: {'; '.join(faults)}")


def _refusals(options: BuildOptions, offer: Offer, plugin: bool) -> list[tuple[bool, str]]:
    rtx = offer.flavour == "tensorrt-rtx"
    too_old = not rtx and version_of(offer.version) < LEAST_TENSORRT
    return [
        (too_old, "want 10.3 or later; upgrade TensorRT, or JetPack to 6.2"),
        (
            options.precision == "int8" and options.typing == "weak",
            "int8 is told by the graph, which types everything; leave out --typing weak",
        ),
        (
            options.typing == "weak" and not offer.weak_typing,
            "networks are strongly typed, there are no precision flags; leave out --typing weak, "
            "the graph brings its precision",
        ),
        (
            options.device == "dla",
            "the DLA runs none of the LayerNorm, k-means and plugin layers of this encoder; build "
            "for the GPU",
        ),
        (
            plugin and not offer.takes_plugin,
            "has no plugins; leave the plugin out, the graph's own NearestCodebook is used",
        ),
        (
            rtx and options.hardware_compatible,
            "has no hardware compatibility level; list the GPUs with --sm instead",
        ),
        (
            not rtx and options.hardware_compatible and offer.compute_capability in JETSONS,
            "JetPack has no hardware compatibility; leave out --hardware-compatible",
        ),
        (
            rtx and options.version_compatible,
            "engines run on the version that built them only; leave out --version-compatible",
        ),
    ]


def _this_gpu(options: BuildOptions, offer: Offer) -> tuple[str, ...]:
    here = offer.compute_capability
    if here is None:
        raise ExportError(
            "TensorRT builds on the GPU that it builds for, and none is here; run vqedge build on "
            "the device, or use --target tensorrt-rtx"
        )
    if options.capabilities not in ((), (here,)):
        asked = ", ".join(item.replace(".", "") for item in options.capabilities)
        raise ExportError(
            f"--sm {asked}: TensorRT builds for the GPU it runs on, which is {here}; "
            "leave --sm out, or use --target tensorrt-rtx"
        )
    return (here,)


def _name(offer: Offer) -> str:
    return "TensorRT" if offer.flavour == "tensorrt" else "TensorRT-RTX"
