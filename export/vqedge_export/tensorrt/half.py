"""Float16 in the graph itself: TensorRT 11 and TensorRT-RTX know no precision flags.

The ViT's weights, constants and casts become float16; one cast leads in, one leads out, and the
quantizer reads float32. LayerNormalization and Softmax keep their float32 sums inside of TensorRT.

Before they lead out, features get a row in front that is taken off again, as a class token is: of a
tower without one, SigLIP's, TensorRT-RTX 1.7 builds no engine otherwise (docs/adr/0016).
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vqedge.errors import ExportError
from vqedge_export.layers import drop_unread
from vqedge_export.tensorrt.region import Region, vit_region

LARGEST_HALF = 65504.0  # that a float16 holds
_LARGEST_INT = (1 << 63) - 1


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, changed in place, with its ViT in float16.

    Raises:
        ExportError: the ViT cannot be found, or a weight is too large.
    """
    region = vit_region(model)
    _halve_constants(model, region)
    for node in region.nodes:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
    _cast_in_and_out(model, region)
    return model


def _halve_constants(model: onnx.ModelProto, region: Region) -> None:
    """Give the region float16 copies: equal constants are shared with the quantizer."""
    constants = _float_constants(model)
    used = sorted({name for node in region.nodes for name in node.input} & constants.keys())
    for name in used:
        for node in region.nodes:
            _rename(node.input, name, f"{name}_half")
    halves = [_half_tensor(constants[name], f"{name}_half") for name in used]
    drop_unread(model.graph)
    model.graph.initializer.extend(halves)


def _float_constants(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """Float32 weights, and values of Constant nodes, by name."""
    tensors = {item.name: item for item in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            values = [item.t for item in node.attribute if item.name == "value"]
            tensors |= dict(zip(node.output, values, strict=False))
    return {name: item for name, item in tensors.items() if item.data_type == TensorProto.FLOAT}


def _half_tensor(tensor: TensorProto, name: str) -> TensorProto:
    array = numpy_helper.to_array(tensor)
    if not np.abs(array).max(initial=0.0) <= LARGEST_HALF:
        raise ExportError(f"{tensor.name}: a value is too large for float16; use --precision fp32")
    return numpy_helper.from_array(array.astype(np.float16), name)


def _cast_in_and_out(model: onnx.ModelProto, region: Region) -> None:
    entry, leaving = f"{region.entry}_half", f"{region.exit}_half"
    for node in region.nodes:
        _rename(node.input, region.entry, entry)
        _rename(node.input, region.exit, leaving)
        _rename(node.output, region.exit, leaving)
    lead_in = helper.make_node(
        "Cast", [region.entry], [entry], name=f"{region.entry}/half", to=TensorProto.FLOAT16
    )
    apart = f"{leaving}_apart"
    lead_out = helper.make_node(
        "Cast", [apart], [region.exit], name=f"{region.exit}/float", to=TensorProto.FLOAT
    )
    nodes = list(model.graph.node)
    last = max(place for place, node in enumerate(nodes) if leaving in node.output)
    first = min(place for place, node in enumerate(nodes) if entry in node.input)
    for node in (lead_out, *reversed(_row_and_back(model.graph, leaving, apart))):
        model.graph.node.insert(last + 1, node)
    model.graph.node.insert(first, lead_in)


def _row_and_back(graph: onnx.GraphProto, features: str, same: str) -> list[onnx.NodeProto]:
    """Nodes that put a row of zeros in front of each frame's in `[T, P, D]`, and take it off."""
    numbers = {"pads": [0, 1, 0, 0, 0, 0], "first": [1], "end": [_LARGEST_INT], "axis": [1]}
    pads, *cut = (f"{features}_{name}" for name in numbers)
    for name, values in numbers.items():
        tensor = helper.make_tensor(f"{features}_{name}", TensorProto.INT64, [len(values)], values)
        graph.initializer.append(tensor)
    longer = f"{features}_longer"
    return [
        helper.make_node("Pad", [features, pads], [longer], name=longer),
        helper.make_node("Slice", [longer, *cut], [same], name=same),
    ]


def _rename(names: list[str], old: str, new: str) -> None:
    for place, name in enumerate(names):
        if name == old:
            names[place] = new
