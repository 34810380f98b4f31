"""What the manifest says of an encoder, read from its graph and the checkpoint's configuration."""

from __future__ import annotations

import hashlib

import onnx

from vqedge.base.tensors import Arrays
from vqedge.bundle import (
    BridgeRecord,
    CodebookRecord,
    EncoderRecord,
    QuantizerRecord,
    TensorRecord,
    VariantRecord,
)
from vqedge.config import ModelConfig
from vqedge.reducers import follows_question
from vqedge_export.graph import TABLES, adaptive_error_of, bridge_of, rounds_of, stored_kind


def encoder_record(
    graph: onnx.ModelProto,
    config: ModelConfig,
    file: str,
    variants: tuple[VariantRecord, ...] = (),
) -> EncoderRecord:
    """The encoder in `file`, whose graph with or without weights is `graph`."""
    encoder = config.encoder
    return EncoderRecord(
        file=file,
        inputs=tuple(_tensor(item) for item in graph.graph.input),
        outputs=tuple(_tensor(item) for item in graph.graph.output),
        frames=encoder.frames,
        size=encoder.size,
        grid=encoder.grid,
        source=encoder.source,
        block=encoder.block,
        sampling=encoder.sampling,
        resize=encoder.resize,
        opset=next(item.version for item in graph.opset_import if not item.domain),
        custom_op="function" if graph.functions else "node",
        precision="fp32",
        variants=variants,
    )


def bridge_record(graph: onnx.ModelProto, file: str) -> BridgeRecord:
    """The bridge in `file`, cut from an encoder's graph."""
    bridge = bridge_of(graph).graph
    return BridgeRecord(
        file=file,
        inputs=tuple(_tensor(item) for item in bridge.input),
        outputs=tuple(_tensor(item) for item in bridge.output),
    )


def quantizer_record(
    graph: onnx.ModelProto, config: ModelConfig, weights: Arrays
) -> QuantizerRecord:
    """The quantizer and its budgets; `weights` are the checkpoint's."""
    quantizer, kind = config.quantizer, stored_kind(config)
    return QuantizerRecord(
        kind=kind,
        codes=quantizer.codes,
        iterations=rounds_of(config),
        default_budget=quantizer.default_budget,
        adaptive_error=adaptive_error_of(graph),
        codebook=_codebook_record(config, weights) if kind == "codebook" else None,
        per_question=follows_question(quantizer.kind),
    )


def _codebook_record(config: ModelConfig, weights: Arrays) -> CodebookRecord:
    """Size and sha256 of the tables, as little-endian float32: equal ids mean the same with it."""
    tables = weights[TABLES].astype("<f4")
    return CodebookRecord(
        levels=config.quantizer.levels,
        entries=config.quantizer.entries,
        sha256=hashlib.sha256(tables.tobytes()).hexdigest(),
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorRecord:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(item.dim_param or item.dim_value for item in kind.shape.dim)
    return TensorRecord.model_validate({"name": value.name, "dtype": dtype, "shape": shape})
