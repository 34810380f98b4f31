"""The smallest encoder that TensorRT's builder and runtime can be tested with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from vqedge.bundle import EncoderRecord, TensorRecord

FRAMES, SIZE, GRID, CODES, WIDTH = 2, 4, 2, 3, 5
WEIGHT = "quantizer.vit.blocks.0.weight"  # as the exporter calls those of the ViT
_ONNX_KINDS = {
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "float32": TensorProto.FLOAT,
    "int32": TensorProto.INT32,
    "bool": TensorProto.BOOL,
}

INPUTS = (
    TensorRecord(name="frames", dtype="uint8", shape=(FRAMES, SIZE, SIZE, 3)),
    TensorRecord(name="budget", dtype="int64", shape=()),
)
OUTPUTS = (
    TensorRecord(name="tokens", dtype="float32", shape=(CODES, WIDTH)),
    TensorRecord(name="index_map", dtype="int32", shape=(FRAMES, GRID, GRID)),
    TensorRecord(name="mask", dtype="bool", shape=(CODES,)),
    TensorRecord(name="margin", dtype="float32", shape=(FRAMES, GRID, GRID)),
    TensorRecord(name="codes", dtype="float16", shape=(CODES, WIDTH)),
)
ENGINE_OUTPUTS = OUTPUTS[1:]  # without the token rows


def tiny_encoder(**changes: Any) -> EncoderRecord:
    """What a manifest says of it."""
    values: dict[str, Any] = {
        "file": "encoder.onnx",
        "inputs": INPUTS,
        "outputs": OUTPUTS,
        "frames": FRAMES,
        "size": SIZE,
        "grid": GRID,
        "source": "dinov2-s14-focus",
        "block": 1,
        "opset": 18,
        "custom_op": "function",
        "precision": "fp32",
        "variants": (),
    }
    values |= changes
    if "inputs" not in changes:
        clip = values["frames"], values["size"], values["size"], 3
        values["inputs"] = (INPUTS[0].model_copy(update={"shape": clip}), *INPUTS[1:])
    return EncoderRecord(**values)


def write_tiny_onnx(path: Path, free_frames: bool = False) -> Path:
    """A graph as it is prepared for an engine, with a ViT of one layer and a quantizer of two."""
    first = "t" if free_frames else FRAMES
    inputs = [_value(INPUTS[0], (first, SIZE, SIZE, 3)), _value(INPUTS[1], ())]
    nodes = [
        helper.make_node("MatMul", ["a", WEIGHT], ["b"], name="/quantizer/vit/blocks.0/MatMul"),
        helper.make_node("Shape", ["b"], ["c"], name="/quantizer/quantizer/Shape"),
        helper.make_node("MatMul", ["b", "b"], ["d"], name="/quantizer/quantizer/MatMul"),
    ]
    outputs = [_value(item, item.shape) for item in ENGINE_OUTPUTS]
    weights = [helper.make_tensor(WEIGHT, TensorProto.FLOAT, (1, 1), [1.0])]
    graph = helper.make_graph(nodes, "tiny", inputs, outputs, weights)
    path.write_bytes(helper.make_model(graph).SerializeToString())
    return path


def _value(tensor: TensorRecord, shape: tuple[int | str, ...]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, _ONNX_KINDS[tensor.dtype], shape)
