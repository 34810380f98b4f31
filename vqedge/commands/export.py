"""`vqedge export`, `vqedge assemble`, `vqedge check`: make bundles and measure them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqedge.bundle import Bundle, open_bundle
from vqedge.checkpoint import PARITY, model_config_of
from vqedge.commands.build import build_options, plugin_library_for
from vqedge.commands.output import json_result, result, say
from vqedge.engines import FLAVOURS
from vqedge.errors import ConfigError


def export(
    checkpoint: Path,
    out: Path,
    *,
    target: str | None = None,
    precision: str | None = None,
    sm: str | None = None,
    plugin: str | None = None,
    llm_quant: str | None = None,
    check: bool = True,
    record: bool = False,
    plugin_node: bool = False,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Export a checkpoint and print the parity table."""
    from vqedge_export.assemble import DEFAULT_QUANT, default_precision
    from vqedge_export.pipeline import export_bundle
    from vqedge_export.targets import engine_targets
    from vqedge_runtime.llm import open_llama_cpp

    targets = engine_targets(target)
    if not any(row.name in FLAVOURS for row in targets) and (sm or precision == "fp16"):
        flag = "--sm" if sm else "--precision fp16"
        raise ConfigError(f"{flag} is about engines; add --target tensorrt or tensorrt-rtx")
    options = build_options(precision, sm)
    bundle, report = export_bundle(
        checkpoint,
        out,
        open_llama_cpp,
        quant=llm_quant or DEFAULT_QUANT,
        precision=precision or default_precision(model_config_of(checkpoint)),
        check=check,
        record=record,
        plugin_node=plugin_node,
        overwrite=overwrite,
        targets=targets,
        options=options,
        plugin=plugin_library_for([row.name for row in targets], options, plugin),
    )
    print_bundle(bundle, report.model_dump(mode="json"), as_json)


def assemble(
    checkpoint: Path,
    out: Path,
    *,
    llm_quant: str | None = None,
    precision: str | None = None,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Make a bundle without torch and print what it holds."""
    from vqedge_export.assemble import DEFAULT_QUANT, assemble_bundle, default_precision
    from vqedge_export.report import report_from_file

    if precision == "fp16":
        raise ConfigError("--precision fp16 is about engines; add one with: vqedge build BUNDLE")

    bundle = assemble_bundle(
        checkpoint,
        out,
        quant=llm_quant or DEFAULT_QUANT,
        precision=precision or default_precision(model_config_of(checkpoint)),
        overwrite=overwrite,
    )
    report = report_from_file(bundle.root / PARITY)
    print_bundle(bundle, report.model_dump(mode="json") if report else {}, as_json)


def check(
    bundle: Path,
    *,
    checkpoint: Path | None = None,
    backend: str | None = None,
    videos: Path | None = None,
    limit: int | None = None,
    as_json: bool = False,
) -> None:
    """Verify a bundle's files; measure its parity on this machine.

    Args:
        bundle: the bundle.
        checkpoint: where it was exported from, to compare with PyTorch.
        backend: of the encoder, to compare with ONNX Runtime on generated clips.
        videos: a folder of clips that the lighter encoders are compared on.
        limit: most clips of it.
        as_json: print one document.
    """
    opened = open_bundle(bundle)
    figures: dict[str, Any] = {}
    if checkpoint is not None:
        from vqedge_export.pipeline import measured_report
        from vqedge_runtime.llm import open_llama_cpp

        figures = measured_report(checkpoint, opened, open_llama_cpp).model_dump(mode="json")
    if backend is not None:
        from vqedge.commands.compare import backend_figures

        opened, figures["backends"] = backend_figures(opened, backend)
    if videos is not None:
        from vqedge.commands.flips import flips_of

        found = flips_of(opened, videos, limit)
        figures["flips"] = {name: row.model_dump() for name, row in found.items()}
    if not figures:
        say("files are intact; --checkpoint, --backend or --videos measures parity")
    print_bundle(opened, figures, as_json)


def print_bundle(bundle: Bundle, parity: dict[str, Any], as_json: bool) -> None:
    """Files and sizes, what was measured, and the bundle's path."""
    files = {file.path: file.size_bytes for file in bundle.manifest.files}
    if as_json:
        json_result({"bundle": str(bundle.root), "files": files, "parity": parity})
        return
    for path, size in files.items():
        say(f"{size / 1e6:9.1f} MB  {path}")
    parts = {part: parity.get(part) or {} for part in ("encoder", "codebook", "llm")}
    parts |= parity.get("variants", {}) | parity.get("backends", {}) | parity.get("flips", {})
    for part, values in parts.items():
        for name, value in values.items():
            told = format(value, ".6g") if isinstance(value, int | float) else value
            say(f"{part} {name}: {told}")
    result(str(bundle.root))
