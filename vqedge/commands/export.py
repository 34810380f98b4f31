"""`vqedge export`, `vqedge assemble`: make bundles and tell what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqedge.bundle import Bundle
from vqedge.checkpoint import PARITY, model_config_of
from vqedge.commands.build import (
    build_options,
    calibration_clips,
    plugin_library_for,
    require_int8,
)
from vqedge.commands.output import json_result, result, say
from vqedge.engines import FLAVOURS
from vqedge.errors import ParityError, UsageError


def run_export(
    checkpoint: Path,
    out: Path,
    *,
    target: str | None = None,
    precision: str | None = None,
    sm: str | None = None,
    plugin: str | None = None,
    calibrate: Path | None = None,
    llm_quant: str | None = None,
    check: bool = True,
    record: bool = False,
    plugin_node: bool = False,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Export a checkpoint and print the parity table; in JSON also one that failed.

    Raises:
        UsageError: flags that do not go together, or a value that is none of those offered.
        ConfigError: a target that does not fit the model.
        BackendUnavailable: a target's TensorRT is not installed.
        CheckpointError: the checkpoint is incomplete.
        ExportError: the encoder cannot be traced, or the language model not quantised.
        ParityError: a figure is outside its tolerance.
        BundleError: `out` cannot be written.
    """
    from vqedge_export.assemble import DEFAULT_QUANT, default_precision
    from vqedge_export.gguf import check_quant
    from vqedge_export.pipeline import export_bundle
    from vqedge_export.targets import engine_targets
    from vqedge_runtime.llm import open_llama_cpp

    quant = llm_quant or DEFAULT_QUANT
    check_quant(quant)
    targets = engine_targets(target)
    given = {"--sm": sm, "--precision fp16": precision == "fp16", "--calibrate": calibrate}
    flags = [flag for flag, value in given.items() if value]
    if flags and not any(row.name in FLAVOURS for row in targets):
        raise UsageError(f"{flags[0]} is about engines; add --target tensorrt or tensorrt-rtx")
    options = build_options(precision, sm)
    if calibrate is not None:
        require_int8(options, calibrate)
    config = model_config_of(checkpoint)
    try:
        bundle, report = export_bundle(
            checkpoint,
            out,
            open_llama_cpp,
            quant=quant,
            precision=precision or default_precision(config),
            check=check,
            record=record,
            plugin_node=plugin_node,
            overwrite=overwrite,
            targets=targets,
            options=options,
            plugin=plugin_library_for([row.name for row in targets], options, plugin),
            calibration=calibration_clips(calibrate, config.encoder) if calibrate else (),
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
        UsageError: a value that is none of those offered, or a precision about engines.
        CheckpointError: the checkpoint is incomplete, or was not exported with `--record`.
        ExportError: the language model cannot be quantised.
        BundleError: `out` cannot be written.
    """
    from vqedge_export.assemble import (
        DEFAULT_QUANT,
        assemble_bundle,
        check_precision,
        default_precision,
    )
    from vqedge_export.gguf import check_quant
    from vqedge_export.report import report_from_file

    if precision == "fp16":
        raise UsageError("--precision fp16 is about engines; add one with: vqedge build BUNDLE")
    if precision is not None:
        check_precision(precision)
    quant = llm_quant or DEFAULT_QUANT
    check_quant(quant)
    bundle = assemble_bundle(
        checkpoint,
        out,
        quant=quant,
        precision=precision or default_precision(model_config_of(checkpoint)),
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
