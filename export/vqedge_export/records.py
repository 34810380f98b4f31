"""What the manifest says of an encoder, read from its graph and the checkpoint's configuration."""

from __future__ import annotations

import onnx

from vqedge.bundle import CodebookRecord, EncoderRecord, QuantizerRecord, TensorRecord
from vqedge.config import ModelConfig
from vqedge_export.graph import adaptive_error_of, exported_kind


def encoder_record(graph: onnx.ModelProto, config: ModelConfig, file: str) -> EncoderRecord:
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
        opset=next(item.version for item in graph.opset_import if not item.domain),
        custom_op="function" if graph.functions else "node",
        precision="fp32",
    )


def quantizer_record(graph: onnx.ModelProto, config: ModelConfig) -> QuantizerRecord:
    """The quantizer and its budgets."""
    quantizer, kind = config.quantizer, exported_kind(config)
    tables = CodebookRecord(levels=quantizer.levels, entries=quantizer.entries)
    return QuantizerRecord(
        kind=kind,
        codes=quantizer.codes,
        iterations=quantizer.iterations,
        default_budget=quantizer.default_budget,
        adaptive_error=adaptive_error_of(graph),
        codebook=tables if kind == "codebook" else None,
    )


def _tensor(value: onnx.ValueInfoProto) -> TensorRecord:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    shape = tuple(item.dim_param or item.dim_value for item in kind.shape.dim)
    return TensorRecord.model_validate({"name": value.name, "dtype": dtype, "shape": shape})
