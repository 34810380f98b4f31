"""`vqedge export`: checkpoint in, checked bundle out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import onnx

from vqedge.base.weights import encoder_weights, llm_weights
from vqedge.bundle import Bundle, EngineRecord, bundle_writer
from vqedge.checkpoint import GRAPH, PARITY, checkpoint_sha256
from vqedge.config import ModelConfig
from vqedge.errors import UsageError
from vqedge.files import file_sha256, replacing
from vqedge.model.checkpoint import Checkpoint, open_checkpoint
from vqedge.model.llm import tokenizer_from_gguf
from vqedge_export.assemble import (
    DEFAULT_QUANT,
    check_precision,
    default_precision,
    finish,
    present,
)
from vqedge_export.flips import OnnxReader, encoders_compared
from vqedge_export.gguf import check_quant
from vqedge_export.graph import save_model
from vqedge_export.onnx_export import stripped_graph
from vqedge_export.parity import (
    OpenLlm,
    encoder_parity,
    generated_clip,
    llm_parity,
    require,
    require_memory,
)
from vqedge_export.report import TOLERANCES, MeasuredVariant, ParityReport, report_of
from vqedge_export.targets import (
    BASE,
    ENCODER,
    LLM,
    Making,
    Target,
    require_possible,
)
from vqedge_export.tensorrt.calibration import Frames
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
    precision: str | None = None,
    check: bool = True,
    record: bool = False,
    plugin_node: bool = False,
    overwrite: bool = False,
    targets: Sequence[Target] = (),
    options: BuildOptions | None = None,
    plugin: Path | None = None,
    calibration: Sequence[Frames] = (),
) -> tuple[Bundle, ParityReport]:
    """Export a checkpoint to a bundle.

    Args:
        checkpoint: a folder written by `vqedge train`.
        out: the bundle to make.
        open_llm: opens a GGUF file for its logits.
        quant: type of the language model's weights.
        precision: the lightest ONNX encoder to put in, `fp32` or `int8`, by default as
            `default_precision`; the one in fp32 always is. That of engines is in `options`.
        check: measure parity and refuse to write a bundle that fails it.
        record: store graph and parity report in the checkpoint, so that `assemble` can use them.
        plugin_node: leave the body of NearestCodebook out, for TensorRT 10.3 alone; parity is
            measured with the body put back.
        overwrite: replace `out` if it is a bundle.
        targets: what to add to encoder and language model.
        options: how to build them.
        plugin: library with the NearestCodebook plugin, for TensorRT.
        calibration: clips for int8 engines beside the generated ones, uint8 `[T, size, size, 3]`.

    Raises:
        BackendUnavailable: a target's TensorRT is not installed.
        CheckpointError: the checkpoint is incomplete, or was saved anew meanwhile.
        UsageError: no such precision or `quant`, or `record` without a check, or of a graph that
            `assemble` cannot use.
        ConfigError: a target that does not fit the model.
        ExportError: the encoder cannot be traced or the language model not quantised, or memory
            does not hold what an imported one is compared with.
        ParityError: a figure is outside its tolerance.
        BundleError: `out` cannot be written.
    """
    if record:
        _require_recordable(check, plugin_node)
    if precision is not None:
        check_precision(precision)
    check_quant(quant)
    opened, sha256 = open_checkpoint(checkpoint), checkpoint_sha256(checkpoint)
    engine_options = options or BuildOptions()
    require_possible(targets, opened.config, engine_options)
    if check and opened.config.llm.source == "checkpoint":
        require_memory(llm_weights(opened.config.llm, checkpoint).path)
    with bundle_writer(out, overwrite=overwrite) as draft:
        graph = _traced(opened, plugin_node)
        making = Making(
            folder=draft.folder,
            checkpoint=checkpoint,
            config=opened.config,
            graph=graph,
            quant=quant,
            precision=precision or default_precision(opened.config),
            options=engine_options,
            plugin=plugin,
            calibration=tuple(calibration),
        )
        _write(BASE, making)
        report = _report(opened, draft.folder, quant, open_llm if check else None)
        if report.tolerance:
            require(report, report.tolerance)
        engines = _write(targets, making)
        bundle = finish(draft, making, sha256, report, engines)
    if record:
        _record(checkpoint, graph, report)
    return bundle, report


def _require_recordable(check: bool, plugin_node: bool) -> None:
    if plugin_node or not check:
        raise UsageError(
            "--record stores a graph that runs everywhere and its measured parity; "
            f"leave out {'--plugin-node' if plugin_node else '--no-check'}"
        )


def _traced(checkpoint: Checkpoint, plugin_node: bool) -> onnx.ModelProto:
    base = encoder_weights(checkpoint.config.encoder, checkpoint.path).path
    logger.info("tracing the encoder")
    return stripped_graph(checkpoint, base, plugin_node)


def _write(targets: Sequence[Target], making: Making) -> tuple[EngineRecord, ...]:
    """Write the files of some targets; the records of those that are engines."""
    engines: list[EngineRecord] = []
    for target in targets:
        logger.info("writing %s", target.name)
        engines += target.export(making)
    return tuple(engines)


def parity_clips(config: ModelConfig) -> int:
    """On how many clips parity is measured: about as many patches, whatever a clip has of them."""
    least, most = _PARITY_CLIPS
    return max(least, min(most, round(_PARITY_PATCHES / config.encoder.patches)))


def measured_report(checkpoint: Path, bundle: Bundle, open_llm: OpenLlm) -> ParityReport:
    """A bundle's report, with its parity measured again against the checkpoint it came from.

    Raises:
        CheckpointError: the checkpoint is incomplete.
    """
    known, quant = report_of(bundle), bundle.manifest.llm.quantization
    report = _report(open_checkpoint(checkpoint), bundle.root, quant, open_llm)
    kept = {"backends": known.backends, "flips": known.flips, "measured": "on this machine"}
    return report.model_copy(update=kept)


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
    logger.info("measuring parity")
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
    files = present(folder)
    if not files:
        return {}
    logger.info("comparing the encoders in fp32 and %s", ", ".join(files))
    readers = {precision: OnnxReader(folder / file) for precision, file in files.items()}
    clips = (generated_clip(index, config) for index in range(parity_clips(config)))
    budget = config.quantizer.default_budget
    found = encoders_compared(OnnxReader(folder / ENCODER), readers, clips, budget)
    return {
        precision: MeasuredVariant(
            sha256=file_sha256(folder / file), **found[precision].model_dump()
        )
        for precision, file in files.items()
    }


def _record(checkpoint: Path, graph: onnx.ModelProto, report: ParityReport) -> None:
    save_model(graph, checkpoint / GRAPH)
    with replacing(checkpoint / PARITY) as temporary:
        temporary.write_text(report.to_json(), encoding="utf-8")
