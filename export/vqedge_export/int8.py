"""A lighter encoder: the linear layers of the ViT in int8, all that decides ids in float32.

Weights are quantised by column, symmetrically, when the file is made; activations by tensor, while
it runs (DynamicQuantizeLinear), so that nothing has to be calibrated and equal graphs give equal
bytes. Standard ops only. Layers that read the same tensor share its quantisation.

One scale for a whole tensor serves its widest channel (see `layers`). Behind a LayerNormalization
the spread of the channels is known without data, it is that of the normalisation's weights; most of
it is moved into the rows of the matrices that read it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from vqedge_export.graph import copied
from vqedge_export.layers import (
    channel_factors,
    column_scales,
    linear_layers,
    quantised_columns,
    replace_nodes,
)

_WIDE = 4.0  # a normalised value lies within so many standard deviations, nearly always


def int8_encoder(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a filled encoder whose ViT multiplies in int8.

    Raises:
        ExportError: the graph has no ViT that the exporter wrote.
    """
    copy = copied(model)
    graph = copy.graph
    weights = {item.name: item for item in graph.initializer}
    layers = {node.name: node for node in linear_layers(graph)}
    _even_out_channels(graph, list(layers.values()), weights)
    nodes: list[onnx.NodeProto] = []
    read: set[str] = set()
    for node in graph.node:
        if node.name not in layers:
            nodes.append(node)
            continue
        source = node.input[0]
        nodes += _activation_nodes(source) if source not in read else []
        nodes += _layer_nodes(node)
        read.add(source)
    read_by_layers = dict.fromkeys(node.input[1] for node in layers.values())  # some by two
    lighter = [part for name in read_by_layers for part in _weight_tensors(weights[name])]
    replace_nodes(graph, nodes, lighter)
    return copy


def _even_out_channels(
    graph: onnx.GraphProto, layers: list[onnx.NodeProto], weights: dict[str, TensorProto]
) -> None:
    """Divide what a LayerNormalization gives by a factor a channel, multiply it back in the layers.

    The product is the same.
    """
    for norm, readers in _norms_of_layers(graph, layers):
        names = [node.input[1] for node in readers]
        scale, shift = (numpy_helper.to_array(weights[name]) for name in norm.input[1:3])
        matrices = [numpy_helper.to_array(weights[name]) for name in names]
        factor = channel_factors(_WIDE * np.abs(scale) + np.abs(shift), matrices)
        changed = {norm.input[1]: scale / factor, norm.input[2]: shift / factor}
        changed |= {n: matrix * factor[:, None] for n, matrix in zip(names, matrices, strict=True)}
        for name, values in changed.items():
            weights[name].CopyFrom(numpy_helper.from_array(values, name))


def _norms_of_layers(
    graph: onnx.GraphProto, layers: list[onnx.NodeProto]
) -> Iterator[tuple[onnx.NodeProto, list[onnx.NodeProto]]]:
    """Each LayerNormalization that `layers` alone read, and which of them do.

    Left out is one where anything else reads a weight that would change.
    """
    times_read = Counter(name for node in graph.node for name in node.input)
    for norm in graph.node:
        if norm.op_type != "LayerNormalization":
            continue
        readers = [node for node in graph.node if norm.output[0] in node.input]
        if not readers or any(node not in layers for node in readers):
            continue
        changed = {*norm.input[1:3], *(node.input[1] for node in readers)}
        if all(times_read[name] == 1 for name in changed):
            yield norm, readers


def _activation_nodes(source: str) -> list[onnx.NodeProto]:
    outputs = [f"{source}/{part}" for part in ("int8", "scale", "zero")]
    return [helper.make_node("DynamicQuantizeLinear", [source], outputs, name=f"{source}/quantize")]


def _layer_nodes(layer: onnx.NodeProto) -> list[onnx.NodeProto]:
    """`x @ weight` as an integer product and one multiplication: a pattern that runtimes fuse."""
    (source, weight), (product,) = layer.input, layer.output
    values = [f"{source}/int8", f"{weight}/int8", f"{source}/zero", f"{weight}/zero"]
    scales = [f"{source}/scale", f"{weight}/scale"]
    sums, floats, scale = (f"{product}/{part}" for part in ("sums", "floats", "scale"))
    return [
        helper.make_node("MatMulInteger", values, [sums], name=f"{layer.name}/int8"),
        helper.make_node("Cast", [sums], [floats], name=f"{layer.name}/cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", scales, [scale], name=f"{layer.name}/scale"),
        helper.make_node("Mul", [floats, scale], [product], name=layer.name),
    ]


def _weight_tensors(weight: TensorProto) -> list[TensorProto]:
    values = numpy_helper.to_array(weight)
    scales = column_scales(values)
    parts: dict[str, npt.NDArray[Any]] = {
        "int8": quantised_columns(values, scales),
        "scale": scales,
        "zero": np.zeros(len(scales), np.int8),
    }
    return [numpy_helper.from_array(part, f"{weight.name}/{name}") for name, part in parts.items()]
