"""`vqedge export`: checkpoint in, checked bundle out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import onnx

from vqedge.base.weights import encoder_weights, llm_weights
from vqedge.bundle import Bundle, EngineRecord, bundle_writer
from vqedge.checkpoint import GRAPH, PARITY
from vqedge.config import ModelConfig
from vqedge.errors import ConfigError
from vqedge.files import file_sha256
from vqedge.model.checkpoint import Checkpoint, open_checkpoint
from vqedge.model.llm import tokenizer_from_gguf
from vqedge_export.assemble import (
    DEFAULT_PRECISION,
    DEFAULT_QUANT,
    check_precision,
    finish,
    present,
)
from vqedge_export.flips import OnnxReader, compared
from vqedge_export.graph import save_model
from vqedge_export.onnx_export import stripped_graph
from vqedge_export.parity import OpenLlm, encoder_parity, generated_clip, llm_parity, require
from vqedge_export.report import TOLERANCES, MeasuredVariant, ParityReport
from vqedge_export.targets import (
    BASE,
    ENCODER,
    LLM,
    Making,
    Target,
    require_installed,
    require_words,
)
from vqedge_export.tensorrt.options import BuildOptions

logger = logging.getLogger(__name__)

_PARITY_PATCHES = 24_576  # that is 12 clips of models/tiny
_PARITY_CLIPS = (3, 12)  # at least one at every budget


def export_bundle(
    checkpoint: Path,
    out: Path,
    open_llm: OpenLlm,
    *,
    quant: str = DEFAULT_QUANT,
    precision: str = DEFAULT_PRECISION,
    check: bool = True,
    record: bool = False,
    plugin_node: bool = False,
    overwrite: bool = False,
    targets: Sequence[Target] = (),
    options: BuildOptions | None = None,
    plugin: Path | None = None,
) -> tuple[Bundle, ParityReport]:
    """Export a checkpoint to a bundle.

    Args:
        checkpoint: a folder written by `vqedge train`.
        out: the bundle to make.
        open_llm: opens a GGUF file for its logits.
        quant: type of the language model's weights.
        precision: the lightest encoder to put in, `fp32` or `int8`; the one in fp32 always is.
        check: measure parity and refuse to write a bundle that fails it.
        record: store graph and parity report in the checkpoint, so that `assemble` can use them.
        plugin_node: leave the body of NearestCodebook out (TensorRT 10.3); ONNX Runtime cannot run
            it.
        overwrite: replace `out` if it is a bundle.
        targets: what to add to encoder and language model.
        options: how to build them.
        plugin: library with the NearestCodebook plugin, for TensorRT.

    Raises:
        BackendUnavailable: a target's TensorRT is not installed.
        CheckpointError: the checkpoint is incomplete.
        ConfigError: no such precision, a target that does not fit the model, or `record` without
            a check, or of a graph that `assemble` cannot use.
        ExportError: the encoder cannot be traced or the language model not quantised.
        ParityError: a figure is outside its tolerance.
        BundleError: `out` cannot be written.
    """
    if record and (plugin_node or not check):
        raise ConfigError(
            "--record stores a graph that runs everywhere and its measured parity; "
            f"leave out {'--plugin-node' if plugin_node else '--no-check'}"
        )
    check_precision(precision)
    require_installed(targets)
    opened = open_checkpoint(checkpoint)
    require_words(targets, opened.config)
    base = encoder_weights(opened.config.encoder, checkpoint).path
    logger.info("tracing the encoder")
    graph = stripped_graph(opened, base, plugin_node)
    with bundle_writer(out, overwrite=overwrite) as draft:
        making = Making(
            draft.folder,
            checkpoint,
            opened.config,
            graph,
            quant,
            precision,
            options or BuildOptions(),
            plugin,
        )
        for target in BASE:
            logger.info("writing %s", target.name)
            target.export(making)
        logger.info("measuring parity")
        comparing = open_llm if check and not plugin_node else None
        report = _report(opened, draft.folder, quant, comparing)
        if report.tolerance:
            require(report, report.tolerance)
        engines: list[EngineRecord] = []
        for target in targets:
            logger.info("writing %s", target.name)
            engines += target.export(making)
        bundle = finish(draft, checkpoint, opened.config, graph, report, tuple(engines))
    if record:
        _record(checkpoint, graph, report)
    return bundle, report


def parity_clips(config: ModelConfig) -> int:
    """On how many clips parity is measured: about as many patches, whatever a clip has of them."""
    least, most = _PARITY_CLIPS
    return max(least, min(most, round(_PARITY_PATCHES / config.encoder.patches)))


def measured_report(checkpoint: Path, bundle: Bundle, open_llm: OpenLlm) -> ParityReport:
    """Measure a bundle's parity again on this machine, against the checkpoint it came from.

    Raises:
        ParityError: a figure is outside its tolerance.
    """
    opened = open_checkpoint(checkpoint)
    quant = bundle.manifest.llm.quantization
    report = _report(opened, bundle.root, quant, open_llm)
    require(report, TOLERANCES[quant])
    return report


def _report(
    checkpoint: Checkpoint, folder: Path, quant: str, open_llm: OpenLlm | None
) -> ParityReport:
    """Parity of a bundle's files with a checkpoint; without `open_llm` only what the files are."""
    encoder, llm = folder / ENCODER, folder / LLM
    report = ParityReport(
        encoder_sha256=file_sha256(encoder),
        llm_sha256=file_sha256(llm),
        quantization=quant,
        measured="at export" if open_llm else "not measured",
    )
    if open_llm is None:
        return report
    clips = parity_clips(checkpoint.config)
    logger.info("comparing PyTorch with ONNX Runtime on %d clips", clips)
    compared = encoder_parity(checkpoint, encoder, clips)
    logger.info("comparing transformers with llama.cpp %s", quant)
    base = llm_weights(checkpoint.config.llm, checkpoint.path).path
    tokenizer = tokenizer_from_gguf(base, checkpoint.config.llm.system)
    figures = {
        "encoder": compared.encoder,
        "codebook": compared.codebook,
        "llm": llm_parity(checkpoint, tokenizer, compared.rows, llm, open_llm),
        "variants": _variants(folder, checkpoint.config),
        "tolerance": TOLERANCES[quant],
    }
    return report.model_copy(update=figures)


def _variants(folder: Path, config: ModelConfig) -> dict[str, MeasuredVariant]:
    """The lighter encoders of a bundle, against the one in float32, on the same clips."""
    if not present(folder):
        return {}
    clips = [generated_clip(index, config) for index in range(parity_clips(config))]
    budget, measured = config.quantizer.default_budget, {}
    reference = OnnxReader(folder / ENCODER)
    wanted = [reference(clip, budget) for clip in clips]
    for precision, file in present(folder).items():
        logger.info("comparing the encoders in fp32 and %s", precision)
        reader = OnnxReader(folder / file)
        found = compared(wanted, (reader(clip, budget) for clip in clips))
        sha256 = file_sha256(folder / file)
        measured[precision] = MeasuredVariant(sha256=sha256, **found.model_dump())
    return measured


def _record(checkpoint: Path, graph: onnx.ModelProto, report: ParityReport) -> None:
    save_model(graph, checkpoint / GRAPH)
    (checkpoint / PARITY).write_text(report.to_json(), encoding="utf-8")
