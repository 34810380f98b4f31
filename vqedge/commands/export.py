"""`vqedge export`, `vqedge assemble`: make bundles and tell what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqedge.bundle import Bundle
from vqedge.checkpoint import PARITY, model_config_of
from vqedge.commands.build import (
    build_options,
    calibration_clips,
    plugin_library_for,
    require_int8,
    require_takes_plugin,
)
from vqedge.commands.output import json_result, result, say
from vqedge.engines import FLAVOURS
from vqedge.errors import ParityError, UsageError

if TYPE_CHECKING:
    from vqedge_export.targets import Target
    from vqedge_export.tensorrt.options import BuildOptions


@dataclass(frozen=True)
class ExportOptions:
    """What is exported, and how: see `vqedge export --help`.

    Raises:
        UsageError: a value that is none of those offered, or options that do not go together.
    """

    target: str | None = None
    precision: str | None = None
    sm: str | None = None
    plugin: str | None = None
    calibrate: Path | None = None
    llm_quant: str | None = None
    check: bool = True
    record: bool = False
    plugin_node: bool = False
    overwrite: bool = False

    @cached_property
    def targets(self) -> Sequence[Target]:
        """What is made beside ONNX and GGUF."""
        from vqedge_export.targets import engine_targets

        return engine_targets(self.target)

    @cached_property
    def engine(self) -> BuildOptions:
        """How engines are built."""
        return build_options(self.precision, self.sm)

    @property
    def onnx_precision(self) -> str | None:
        """Precision of the lightest ONNX encoder, if it is named; fp16 is for engines alone."""
        return None if self.precision == "fp16" else self.precision

    def __post_init__(self) -> None:
        """Refuse what no checkpoint makes right, before any file is opened."""
        from vqedge_export.gguf import check_quant

        if self.llm_quant is not None:
            check_quant(self.llm_quant)
        given = {
            "--sm": self.engine.capabilities,
            "--precision fp16": self.precision == "fp16",
            "--calibrate": self.calibrate,
        }
        flags = [flag for flag, value in given.items() if value]
        if not any(row.name in FLAVOURS for row in self.targets) and flags:
            raise UsageError(f"{flags[0]} is about engines; add --target tensorrt or tensorrt-rtx")
        if self.calibrate is not None:
            require_int8(self.engine, self.calibrate)
        require_takes_plugin([row.name for row in self.targets], self.plugin)


def run_export(
    checkpoint: Path,
    out: Path,
    *,
    options: ExportOptions | None = None,
    as_json: bool = False,
) -> None:
    """Export a checkpoint and print the parity table; in JSON also one that failed.

    Raises:
        UsageError: `--record` of what cannot be.
        ConfigError: a target that does not fit the model.
        BackendUnavailable: a target's TensorRT is not installed.
        CheckpointError: the checkpoint is incomplete.
        ExportError: the encoder cannot be traced, the language model not quantised, or an engine
            not built.
        ParityError: a figure is outside its tolerance.
        BundleError: `out` cannot be written.
    """
    config = model_config_of(checkpoint)
    from vqedge_export.assemble import DEFAULT_QUANT
    from vqedge_export.pipeline import export_bundle
    from vqedge_export.targets import require_possible
    from vqedge_runtime.llm import open_llama_cpp

    wanted = options or ExportOptions()
    require_possible(wanted.targets, config, wanted.engine)
    library = plugin_library_for([row.name for row in wanted.targets], wanted.engine, wanted.plugin)
    clips = calibration_clips(wanted.calibrate, config.encoder) if wanted.calibrate else ()
    try:
        bundle, report = export_bundle(
            checkpoint,
            out,
            open_llama_cpp,
            quant=wanted.llm_quant or DEFAULT_QUANT,
            precision=wanted.onnx_precision,
            check=wanted.check,
            record=wanted.record,
            plugin_node=wanted.plugin_node,
            overwrite=wanted.overwrite,
            targets=wanted.targets,
            options=wanted.engine,
            plugin=library,
            calibration=clips,
        )
    except ParityError as error:
        if as_json:
            json_result({"bundle": None, "files": {}, "parity": error.figures})
        raise
    print_bundle(bundle, report.model_dump(mode="json"), as_json)


def run_assemble(
    checkpoint: Path,
    out: Path,
    *,
    llm_quant: str | None = None,
    precision: str | None = None,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Make a bundle without torch and print what it holds.

    Raises:
        UsageError: a value that is none of those offered.
        CheckpointError: the checkpoint is incomplete, or was not exported with `--record`.
        ExportError: the language model cannot be quantised.
        BundleError: `out` cannot be written.
    """
    from vqedge_export.assemble import DEFAULT_QUANT, assemble_bundle
    from vqedge_export.report import report_from_file

    bundle = assemble_bundle(
        checkpoint,
        out,
        quant=llm_quant or DEFAULT_QUANT,
        precision=precision,
        overwrite=overwrite,
    )
    report = report_from_file(bundle.root / PARITY)
    print_bundle(bundle, report.model_dump(mode="json") if report else {}, as_json)


def print_bundle(bundle: Bundle, parity: dict[str, Any], as_json: bool) -> None:
    """Files and sizes, what was measured, and the bundle's path."""
    files = {file.path: file.size_bytes for file in bundle.manifest.files}
    if as_json:
        json_result({"bundle": str(bundle.root), "files": files, "parity": parity})
        return
    for path, size in files.items():
        say(f"{size / 1e6:9.1f} MB  {path}")
    parts = {part: parity.get(part) or {} for part in ("encoder", "codebook", "llm")}
    parts |= parity.get("variants", {}) | parity.get("flips", {})
    for part, values in parts.items():
        for name, value in values.items():
            told = format(value, ".6g") if isinstance(value, int | float) else value
            say(f"{part} {name}: {told}")
    result(str(bundle.root))
