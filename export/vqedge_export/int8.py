"""A lighter encoder: the linear layers of the ViT in int8, all that decides ids in float32.

Weights are quantised by column, symmetrically, when the file is made; activations by tensor, while
it runs (DynamicQuantizeLinear), so that nothing has to be calibrated and equal graphs give equal
bytes. Standard ops only. Layers that read the same tensor share its quantisation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from vqedge.errors import ExportError

VIT = "/quantizer/vit/"  # what the exporter calls the ViT's nodes
_LEVELS = 127


def int8_encoder(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a filled encoder whose ViT multiplies in int8.

    Raises:
        ExportError: the graph has no ViT that the exporter wrote.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    weights = {item.name: item for item in graph.initializer}
    layers = {n.name: n for n in graph.node if _is_layer(n, weights)}
    if not layers:
        raise ExportError(
            f"the encoder's graph has no linear layer below {VIT}; export the checkpoint again"
        )
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
    _replace(graph, nodes, [weights[node.input[1]] for node in layers.values()])
    return copy


def _is_layer(node: onnx.NodeProto, weights: dict[str, TensorProto]) -> bool:
    return node.op_type == "MatMul" and node.name.startswith(VIT) and node.input[1] in weights


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


def _replace(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], weights: list[TensorProto]
) -> None:
    """Put in the new nodes, and integers for the weights that nobody else reads."""
    kept = {name for node in nodes for name in node.input}
    lighter = [part for weight in weights for part in _weight_tensors(weight)]
    others = [item for item in graph.initializer if item.name in kept]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*others, *lighter])


def _weight_tensors(weight: TensorProto) -> list[TensorProto]:
    values, scale = quantised_columns(numpy_helper.to_array(weight))
    parts: dict[str, npt.NDArray[Any]] = {
        "int8": values,
        "scale": scale,
        "zero": np.zeros(len(scale), np.int8),
    }
    return [numpy_helper.from_array(part, f"{weight.name}/{name}") for name, part in parts.items()]


def quantised_columns(
    weight: npt.NDArray[np.floating],
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers `[in, out]` and scale `[out]` with `integers * scale` near to the weight."""
    largest = np.abs(weight).max(axis=0).astype(np.float32)
    scale = (np.where(largest > 0, largest, 1) / _LEVELS).astype(np.float32)
    values = np.rint(weight / scale).clip(-_LEVELS, _LEVELS).astype(np.int8)
    return values, scale
