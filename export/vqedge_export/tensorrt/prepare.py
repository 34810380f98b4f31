"""The graph as TensorRT takes it, from the bundle's `encoder.onnx`. In fp32 values do not change.

Found with TensorRT-RTX 1.7, see docs/tensorrt.md:

- uint8 is a type of network inputs only: pixels are cast before they are transposed, not after;
- ArgMax, ArgMin and TopK want two dimensions: a vector becomes a row and back;
- NearestCodebook is the graph's own function, or a plain node where a plugin computes it.

The engine ends at the codes: the token rows come from the bundle's bridge, the same for every
encoder.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper

from vqedge.bundle import EncoderRecord, TensorRecord
from vqedge.engines import EnginePrecision
from vqedge.errors import ExportError
from vqedge.nearest_codebook import OP_NAME
from vqedge_export.graph import BRIDGED
from vqedge_export.layers import replace_nodes
from vqedge_export.op_function import ensure_function
from vqedge_export.tensorrt.half import halved
from vqedge_export.tensorrt.qdq import Channels, quantised

_ROW_OPS = ("ArgMax", "ArgMin", "TopK")
_FIRST_AXIS = "tensorrt_first_axis"


def prepare(
    model: onnx.ModelProto,
    precision: EnginePrecision,
    *,
    weak: bool = False,
    channels: Mapping[str, Channels] | None = None,
) -> onnx.ModelProto:
    """The encoder for TensorRT, changed in place; NearestCodebook is left as it is.

    Args:
        model: the bundle's encoder, float32.
        precision: of the ViT; int8 multiplies in int8 and does the rest in float16.
        weak: TensorRT lowers the precision itself; leave the graph's types alone.
        channels: what int8 was calibrated to, see `calibration.measured_channels`.

    Raises:
        ExportError: the graph is not one that vqedge writes.
    """
    outputs = model.graph.output
    for place in reversed(range(len(outputs))):
        if outputs[place].name in BRIDGED:
            del outputs[place]
    _cast_pixels_first(model)
    _give_rows(model)
    if precision == "int8":
        assert channels is not None, "int8 is calibrated"
        quantised(model, channels)
    return model if precision == "fp32" or weak else halved(model)


def engine_outputs(encoder: EncoderRecord) -> tuple[TensorRecord, ...]:
    """The encoder's outputs that an engine has."""
    return tuple(item for item in encoder.outputs if item.name not in BRIDGED)


def _cast_pixels_first(model: onnx.ModelProto) -> None:
    """`Cast(Transpose(uint8))` to `Transpose(Cast(uint8))`, each in the other's place."""
    pixels, nodes = _uint8_inputs(model), model.graph.node
    for transpose in nodes:
        if transpose.op_type != "Transpose" or transpose.input[0] not in pixels:
            continue
        readers = [node for node in nodes if transpose.output[0] in node.input]
        if len(readers) != 1 or readers[0].op_type != "Cast":
            raise ExportError(
                f"encoder.onnx: {transpose.input[0]} is not cast after it is transposed; "
                "export the checkpoint again"
            )
        _swap(transpose, readers[0])


def _swap(first: onnx.NodeProto, second: onnx.NodeProto) -> None:
    """Exchange the work of two nodes in a row; the tensors around and between them stay."""
    names = list(first.input), list(first.output), list(second.input), list(second.output)
    earlier = onnx.NodeProto()
    earlier.CopyFrom(first)
    first.CopyFrom(second)
    second.CopyFrom(earlier)
    for node, inputs, outputs in ((first, *names[:2]), (second, *names[2:])):
        node.input[:], node.output[:] = inputs, outputs


def _give_rows(model: onnx.ModelProto) -> None:
    """Put a dimension in front of what is searched, and take it off the result."""
    first = helper.make_tensor(_FIRST_AXIS, TensorProto.INT64, [1], [0])
    model.graph.initializer.append(first)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes += _with_row(node) if node.op_type in _ROW_OPS else [node]
    replace_nodes(model.graph, nodes)


def _with_row(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    row = f"{node.output[-1]}_row_in"
    search = onnx.NodeProto()
    search.CopyFrom(node)
    search.input[0] = row
    for attribute in search.attribute:
        if attribute.name == "axis" and attribute.i >= 0:
            attribute.i += 1
    lift = helper.make_node(
        "Unsqueeze", [node.input[0], _FIRST_AXIS], [row], name=f"{node.name}/row"
    )
    results = []
    for place, name in enumerate(node.output):
        search.output[place] = f"{name}_row"
        results.append(
            helper.make_node(
                "Squeeze", [f"{name}_row", _FIRST_AXIS], [name], name=f"{node.name}/flat{place}"
            )
        )
    return [lift, search, *results]


def settle_op(model: onnx.ModelProto, plugin: bool) -> None:
    """A plugin takes plain nodes; without one the op needs its body."""
    if not plugin:
        ensure_function(model)
        return
    kept = [function for function in model.functions if function.name != OP_NAME]
    del model.functions[:]
    model.functions.extend(kept)


def _uint8_inputs(model: onnx.ModelProto) -> set[str]:
    kinds = {item.name: item.type.tensor_type.elem_type for item in model.graph.input}
    return {name for name, kind in kinds.items() if kind == TensorProto.UINT8}
