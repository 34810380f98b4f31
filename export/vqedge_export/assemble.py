"""A bundle from a checkpoint without torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from pydantic import ValidationError

from vqedge.base.fetch import BaseWeights
from vqedge.base.sources import PackageSource
from vqedge.base.weights import encoder_weights, llm_weights
from vqedge.bundle import (
    BaseWeightsRecord,
    Bundle,
    BundleDraft,
    BundleFacts,
    EngineRecord,
    LlmRecord,
    ProvenanceRecord,
    VariantRecord,
    bundle_writer,
)
from vqedge.checkpoint import (
    GRAPH,
    LORA,
    MODEL,
    PARITY,
    checkpoint_sha256,
    model_config_of,
    require_same_save,
)
from vqedge.choices import chosen
from vqedge.config import ModelConfig
from vqedge.errors import CheckpointError, ExportError
from vqedge.files import file_sha256
from vqedge.licences import licence_texts
from vqedge.validation import first_fault
from vqedge.video_words import vocabulary_of
from vqedge_export.gguf import check_quant, llm_facts
from vqedge_export.graph import checkpoint_arrays
from vqedge_export.records import bridge_record, encoder_record, quantizer_record
from vqedge_export.report import ParityReport, report_from_file
from vqedge_export.targets import BASE, BRIDGE, ENCODER, LLM, VARIANTS, Making

PRECISIONS = ("fp32", *VARIANTS)
DEFAULT_PRECISION = "int8"
DEFAULT_QUANT = "Q8_0"  # the fastest within one point of accuracy: docs/measured/quant_*.json
_NO_GRAPH = "not an ONNX graph; copy the checkpoint again (git lfs pull, if it is a pointer)"
_TOOLS = ("onnx", "gguf", "llama-cpp-python")


def assemble_bundle(
    checkpoint: Path,
    out: Path,
    *,
    quant: str = DEFAULT_QUANT,
    precision: str | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Make the bundle that `export` makes, from a checkpoint that carries its graph.

    The parity report is the one the exporter stored with the checkpoint, kept for the files whose
    bytes are the same as when it was measured.

    Args:
        checkpoint: a checkpoint folder with `encoder.graph.onnx`.
        out: the bundle to make.
        quant: type of the language model's weights.
        precision: the lightest encoder to put in, `fp32` or `int8`, by default as
            `default_precision`; the one in fp32 always is.
        overwrite: replace `out` if it is a bundle.

    Raises:
        UsageError: no such precision or `quant`.
        CheckpointError: a file is missing, does not fit the others, or holds NaN or infinity; or
            the checkpoint was saved anew meanwhile.
        FetchError: base weights are not there and cannot be downloaded.
        BundleError: `out` cannot be written.
    """
    if precision is not None:
        check_precision(precision)
    check_quant(quant)
    config, sha256 = model_config_of(checkpoint), checkpoint_sha256(checkpoint)
    graph = graph_of(checkpoint)
    for name in (MODEL, LORA):  # milliseconds, and what comes first takes many seconds
        checkpoint_arrays(checkpoint / name)
    with bundle_writer(out, overwrite=overwrite) as draft:
        making = Making(
            folder=draft.folder,
            checkpoint=checkpoint,
            config=config,
            graph=graph,
            quant=quant,
            precision=precision or default_precision(config),
        )
        for target in BASE:
            target.export(making)
        report = _known_report(checkpoint, draft.folder, quant)
        return finish(draft, making, sha256, report)


def finish(
    draft: BundleDraft,
    making: Making,
    sha256: str,
    report: ParityReport,
    engines: tuple[EngineRecord, ...] = (),
) -> Bundle:
    """Add report and licences, describe the bundle, and move it into place.

    Args:
        draft: the bundle, with the files of all targets.
        making: what it was made from.
        sha256: the checkpoint's digest, from before any of them was written.
        report: of its parity.
        engines: in it.

    Raises:
        CheckpointError: the checkpoint was saved anew since `sha256`.
        ExportError: the checkpoint is larger than a bundle may be, or its files do not fit.
    """
    checkpoint, config, graph = making.checkpoint, making.config, making.graph
    weights = [encoder_weights(config.encoder, checkpoint), llm_weights(config.llm, checkpoint)]
    (draft.folder / PARITY).write_text(report.to_json(), encoding="utf-8")
    licences = draft.folder / "LICENSES"
    licences.mkdir()
    for name, text in licence_texts([item.source for item in weights]).items():
        (licences / name).write_text(text, encoding="utf-8")
    try:
        facts = BundleFacts(
            encoder=encoder_record(graph, config, ENCODER, tuple(_variant_records(draft.folder))),
            bridge=bridge_record(graph, BRIDGE),
            quantizer=quantizer_record(graph, config, checkpoint_arrays(checkpoint / MODEL)),
            llm=_llm_record(draft.folder / LLM, report.quantization, config),
            provenance=_provenance_record(sha256, weights),
            engines=engines,
        )
    except ValidationError as error:
        raise ExportError(f"{checkpoint}: {first_fault(error)}; no bundle can hold it") from error
    require_same_save(checkpoint, sha256)
    return draft.finish(facts)


def present(folder: Path) -> dict[str, str]:
    """Files of the lighter encoders in a bundle or draft, by precision."""
    return {name: file for name, (file, _) in VARIANTS.items() if (folder / file).exists()}


def default_precision(config: ModelConfig) -> str:
    """The lightest encoder that a bundle holds unless the user says otherwise.

    int8 was measured on the backbone that is fetched; imported ones come in fp32: ADR 0016.
    """
    return DEFAULT_PRECISION if config.encoder.shape is None else "fp32"


def check_precision(precision: str) -> None:
    """Refuse a precision that no encoder comes in.

    Raises:
        UsageError: it is none of `PRECISIONS`.
    """
    chosen("--precision", precision, PRECISIONS)


def graph_of(checkpoint: Path) -> onnx.ModelProto:
    """The stripped graph that a checkpoint carries.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    path = checkpoint / GRAPH
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint}: no {GRAPH}; where torch is installed, "
            f"run `vqedge export {checkpoint} -o OUT.vqedge --record`"
        )
    try:
        graph = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise CheckpointError(f"{path}: {_NO_GRAPH}") from error
    if not graph.graph.node:  # an empty file is a model without any
        raise CheckpointError(f"{path}: {_NO_GRAPH}")
    return graph


def _known_report(checkpoint: Path, folder: Path, quant: str) -> ParityReport:
    """The checkpoint's own report, for the parts whose files came out the same."""
    encoder, llm = file_sha256(folder / ENCODER), file_sha256(folder / LLM)
    blank = ParityReport(
        encoder_sha256=encoder, llm_sha256=llm, quantization=quant, measured="not measured"
    )
    known = report_from_file(checkpoint / PARITY)
    if known is None:
        return blank
    kept: dict[str, Any] = {}
    if known.encoder_sha256 == encoder:
        lighter = {name: file_sha256(folder / file) for name, file in present(folder).items()}
        same = {
            name: row for name, row in known.variants.items() if lighter.get(name) == row.sha256
        }
        kept |= {"encoder": known.encoder, "codebook": known.codebook, "variants": same}
    if known.llm_sha256 == llm:
        kept["llm"] = known.llm
    if kept.keys() >= {"encoder", "llm"}:
        kept |= {"tolerance": known.tolerance, "measured": "at export"}
    return blank.model_copy(update=kept)


def _variant_records(folder: Path) -> Iterator[VariantRecord]:
    for precision, file in present(folder).items():
        yield VariantRecord.model_validate({"file": file, "precision": precision})


def _llm_record(path: Path, quant: str, config: ModelConfig) -> LlmRecord:
    llm, words = llm_facts(path), vocabulary_of(config)
    return LlmRecord(
        file=LLM,
        arch=llm.arch,
        width=llm.width,
        vocab_size=llm.vocab_size,
        video_words=len(words) if words else None,
        quantization=quant,
        context_length=llm.context_length,
        chat_template=llm.chat_template,
        system_prompt=config.llm.system,
    )


def _provenance_record(sha256: str, weights: list[BaseWeights]) -> ProvenanceRecord:
    return ProvenanceRecord(
        created_by=f"vqedge {version('vqedge')}",
        checkpoint_sha256=sha256,
        base_weights=tuple(_base_record(item) for item in weights),
        tools={name: version(name) for name in _TOOLS},
    )


def _base_record(weights: BaseWeights) -> BaseWeightsRecord:
    source = weights.source
    package, version_or_commit = source.name, str(weights.revision)
    if isinstance(source, PackageSource):
        package, version_or_commit = source.package, source.version
    return BaseWeightsRecord(
        name=source.name,
        package=package,
        version=version_or_commit,
        file_sha256=weights.sha256,
        licence=source.licence,
    )
