"""A bundle from a checkpoint without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import onnx
from safetensors.numpy import load_file

from vqedge.base.fetch import BaseWeights, fetch
from vqedge.base.sources import PackageSource
from vqedge.bundle import (
    BaseWeightsRecord,
    BridgeRecord,
    Bundle,
    BundleDraft,
    BundleFacts,
    CodebookRecord,
    EncoderRecord,
    LlmRecord,
    ProvenanceRecord,
    QuantizerRecord,
    TensorRecord,
    VariantRecord,
    bundle_writer,
)
from vqedge.checkpoint import CONFIG, GRAPH, LORA, MODEL, PARITY, model_config_of
from vqedge.config import ModelConfig
from vqedge.errors import CheckpointError, ConfigError
from vqedge.files import file_sha256
from vqedge.licences import licence_texts
from vqedge.prompt import SYSTEM
from vqedge_export.gguf import gguf_from_lora, llm_facts
from vqedge_export.graph import (
    TABLES,
    Arrays,
    adaptive_error_of,
    base_arrays,
    bridge_of,
    checkpoint_arrays,
    exported_kind,
    filled,
    save_model,
)
from vqedge_export.int8 import int8_encoder
from vqedge_export.report import ParityReport, report_from_file

ENCODER, BRIDGE, LLM = "encoder.onnx", "bridge.onnx", "llm.gguf"
VARIANTS = {"int8": ("encoder.int8.onnx", int8_encoder)}  # by precision: file, how it is made
PRECISIONS = ("fp32", *VARIANTS)
DEFAULT_PRECISION = "int8"
DEFAULT_QUANT = "Q8_0"  # the fastest within one point of accuracy: docs/measured/quant_*.json
_TOOLS = ("onnx", "gguf", "llama-cpp-python")


def assemble_bundle(
    checkpoint: Path,
    out: Path,
    *,
    quant: str = DEFAULT_QUANT,
    precision: str = DEFAULT_PRECISION,
    overwrite: bool = False,
) -> Bundle:
    """Make the bundle that `export` makes, from a checkpoint that carries its graph.

    The parity report is the one the exporter stored with the checkpoint, kept for the files whose
    bytes are the same as when it was measured.

    Args:
        checkpoint: a checkpoint folder with `encoder.graph.onnx`.
        out: the bundle to make.
        quant: type of the language model's weights.
        precision: the lightest encoder to put in, `fp32` or `int8`; the one in fp32 always is.
        overwrite: replace `out` if it is a bundle.

    Raises:
        ConfigError: no such precision.
        CheckpointError: a file is missing or does not fit the others.
        ExportError: the checkpoint's quantizer is a comparison.
        FetchError: base weights are not there and cannot be downloaded.
        BundleError: `out` cannot be written.
    """
    config = model_config_of(checkpoint)
    exported_kind(config)
    check_precision(precision)
    graph = graph_of(checkpoint)
    with bundle_writer(out, overwrite=overwrite) as draft:
        write_models(draft, checkpoint, config, graph, quant, precision)
        report = _known_report(checkpoint, draft.folder, quant)
        return finish(draft, checkpoint, config, graph, report)


def write_models(
    draft: BundleDraft,
    checkpoint: Path,
    config: ModelConfig,
    graph: onnx.ModelProto,
    quant: str,
    precision: str,
) -> None:
    """Put encoder with its variants, bridge and language model into a bundle being written."""
    vit, llm = fetch(config.encoder.source), fetch(config.llm.source)
    model = filled(graph, checkpoint_arrays(checkpoint / MODEL), base_arrays(vit.path))
    save_model(model, draft.folder / ENCODER)
    if precision in VARIANTS:
        file, lighter = VARIANTS[precision]
        save_model(lighter(model), draft.folder / file)
    save_model(bridge_of(model), draft.folder / BRIDGE)
    lora = load_file(checkpoint / LORA)
    gguf_from_lora(llm.path, lora, config.llm, draft.folder / LLM, quant)


def finish(
    draft: BundleDraft,
    checkpoint: Path,
    config: ModelConfig,
    graph: onnx.ModelProto,
    report: ParityReport,
) -> Bundle:
    """Add report and licences, describe the bundle, and move it into place."""
    weights = [fetch(config.encoder.source), fetch(config.llm.source)]
    (draft.folder / PARITY).write_text(report.to_json(), encoding="utf-8")
    licences = draft.folder / "LICENSES"
    licences.mkdir()
    for name, text in licence_texts([item.source for item in weights]).items():
        (licences / name).write_text(text, encoding="utf-8")
    facts = BundleFacts(
        encoder=_encoder_record(graph, config, draft.folder),
        bridge=_bridge_record(graph),
        quantizer=_quantizer_record(graph, config, checkpoint_arrays(checkpoint / MODEL)),
        llm=_llm_record(draft.folder / LLM, report.quantization),
        provenance=_provenance_record(checkpoint, weights),
    )
    return draft.finish(facts)


def present(folder: Path) -> dict[str, str]:
    """Files of the lighter encoders in a bundle or draft, by precision."""
    return {name: file for name, (file, _) in VARIANTS.items() if (folder / file).exists()}


def check_precision(precision: str) -> None:
    """Refuse a precision that no encoder comes in.

    Raises:
        ConfigError: it is none of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"--precision {precision}: give one of {', '.join(PRECISIONS)}")


def graph_of(checkpoint: Path) -> onnx.ModelProto:
    """The stripped graph that a checkpoint carries.

    Raises:
        CheckpointError: there is none.
    """
    path = checkpoint / GRAPH
    if not path.is_file():
        raise CheckpointError(
            f"{checkpoint}: no {GRAPH}; where torch is installed, "
            f"run `vqedge export {checkpoint} -o OUT.vqedge --record`"
        )
    return onnx.load(str(path), load_external_data=False)


def _known_report(checkpoint: Path, folder: Path, quant: str) -> ParityReport:
    """The checkpoint's own report, for the parts whose files came out the same."""
    encoder, llm = file_sha256(folder / ENCODER), file_sha256(folder / LLM)
    known = report_from_file(checkpoint / PARITY)
    lighter = {precision: file_sha256(folder / file) for precision, file in present(folder).items()}
    same_encoder = known is not None and known.encoder_sha256 == encoder
    same_llm = known is not None and known.llm_sha256 == llm
    return ParityReport(
        encoder_sha256=encoder,
        llm_sha256=llm,
        quantization=quant,
        encoder=known.encoder if known and same_encoder else None,
        codebook=known.codebook if known and same_encoder else None,
        llm=known.llm if known and same_llm else None,
        variants={
            precision: figures
            for precision, figures in (known.variants if known and same_encoder else {}).items()
            if lighter.get(precision) == figures.sha256
        },
        tolerance=known.tolerance if known and same_encoder and same_llm else None,
        measured="at export" if same_encoder and same_llm else "not measured",
    )


def _encoder_record(graph: onnx.ModelProto, config: ModelConfig, folder: Path) -> EncoderRecord:
    encoder = config.encoder
    return EncoderRecord(
        file=ENCODER,
        inputs=tuple(_tensor(item) for item in graph.graph.input),
        outputs=tuple(_tensor(item) for item in graph.graph.output),
        frames=encoder.frames,
        size=encoder.size,
        grid=encoder.grid,
        source=encoder.source,
        block=encoder.block,
        opset=next(item.version for item in graph.opset_import if not item.domain),
        custom_op="function" if graph.functions else "node",
        precision="fp32",
        variants=tuple(_variant_records(folder)),
    )


def _variant_records(folder: Path) -> Iterator[VariantRecord]:
    for precision, file in present(folder).items():
        yield VariantRecord.model_validate({"file": file, "precision": precision})


def _bridge_record(graph: onnx.ModelProto) -> BridgeRecord:
    bridge = bridge_of(graph).graph
    return BridgeRecord(
        file=BRIDGE,
        inputs=tuple(_tensor(item) for item in bridge.input),
        outputs=tuple(_tensor(item) for item in bridge.output),
    )


def _quantizer_record(
    graph: onnx.ModelProto, config: ModelConfig, weights: Arrays
) -> QuantizerRecord:
    quantizer, kind = config.quantizer, exported_kind(config)
    return QuantizerRecord(
        kind=kind,
        codes=quantizer.codes,
        iterations=quantizer.iterations,
        default_budget=quantizer.default_budget,
        adaptive_error=adaptive_error_of(graph),
        codebook=_codebook_record(config, weights) if kind == "codebook" else None,
    )


def _codebook_record(config: ModelConfig, weights: Arrays) -> CodebookRecord:
    """Size and sha256 of the tables, as little-endian float32: equal ids mean the same with it."""
    tables = weights[TABLES].astype("<f4")
    return CodebookRecord(
        levels=config.quantizer.levels,
        entries=config.quantizer.entries,
        sha256=hashlib.sha256(tables.tobytes()).hexdigest(),
    )


def _llm_record(path: Path, quant: str) -> LlmRecord:
    llm = llm_facts(path)
    return LlmRecord(
        file=LLM,
        arch=llm.arch,
        width=llm.width,
        vocab_size=llm.vocab_size,
        quantization=quant,
        context_length=llm.context_length,
        chat_template=llm.chat_template,
        system_prompt=SYSTEM,
    )


def _provenance_record(checkpoint: Path, weights: list[BaseWeights]) -> ProvenanceRecord:
    return ProvenanceRecord(
        created_by=f"vqedge {version('vqedge')}",
        checkpoint_sha256=_checkpoint_sha256(checkpoint),
        base_weights=tuple(_base_record(item) for item in weights),
        tools={name: version(name) for name in _TOOLS},
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorRecord:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(item.dim_param or item.dim_value for item in kind.shape.dim)
    return TensorRecord.model_validate({"name": value.name, "dtype": dtype, "shape": shape})


def _checkpoint_sha256(checkpoint: Path) -> str:
    """One digest over the files that make the model."""
    digest = hashlib.sha256()
    for name in (CONFIG, MODEL, LORA):
        digest.update(f"{name} {file_sha256(checkpoint / name)}\n".encode())
    return digest.hexdigest()


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
