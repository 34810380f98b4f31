"""The linear layers of the ViT as they stand in the encoder's graph, and what int8 makes of them.

A layer is `x @ weight` with a stored weight `[in, out]`. Its columns are quantised one by one; its
input has one scale, which serves the widest of its channels. What a channel is made narrower by is
multiplied back in the row of the weight that reads it, where it costs next to nothing: the idea of
SmoothQuant (arXiv 2211.10438). How wide channels are is for the caller to know.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from vqedge.errors import ExportError

VIT = "/quantizer/vit/"  # what the exporter calls the ViT's nodes
LEVELS = 127
_MOVED = 0.8  # of the spread of a tensor's channels; 0 moves nothing, 1 all of it

Floats = npt.NDArray[np.float32]


def linear_layers(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The products of the ViT with a stored matrix, in the graph's order.

    Raises:
        ExportError: there are none: another exporter wrote the graph.
    """
    stored = {item.name for item in graph.initializer}
    layers = [
        node
        for node in graph.node
        if node.op_type == "MatMul" and node.name.startswith(VIT) and node.input[1] in stored
    ]
    if not layers:
        raise ExportError(
            f"the encoder's graph has no linear layer below {VIT}; export the checkpoint again"
        )
    return layers


def replace_nodes(
    graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto], tensors: Sequence[TensorProto] = ()
) -> None:
    """Put `nodes` in place of the graph's and `tensors` in that of tensors nobody reads then."""
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
    drop_unread(graph)
    graph.initializer.extend(tensors)


def drop_unread(graph: onnx.GraphProto) -> None:
    """Leave out tensors that no node reads."""
    read = {name for node in graph.node for name in node.input}
    for place in reversed(range(len(graph.initializer))):  # a copy of all would stay in memory
        if graph.initializer[place].name not in read:
            del graph.initializer[place]


def channel_factors(width: Floats, matrices: Sequence[Floats]) -> Floats:
    """How much narrower each channel becomes, 1 in the geometric mean.

    Args:
        width: largest value to expect in a channel, `[in]`.
        matrices: what multiplies it, `[in, out]` each.
    """
    rows = np.max([np.abs(matrix).max(axis=1) for matrix in matrices], axis=0)
    exponent = _MOVED * _log(width) - (1 - _MOVED) * _log(rows)
    factor: Floats = np.exp(exponent - exponent.mean()).astype(np.float32)
    return factor


def column_scales(weight: npt.NDArray[np.floating]) -> Floats:
    """What one level stands for in each column of `[in, out]`, float32 `[out]`."""
    largest = np.abs(weight).max(axis=0).astype(np.float32)
    scales: Floats = (np.where(largest > 0, largest, 1) / LEVELS).astype(np.float32)
    return scales


def quantised_columns(
    weight: npt.NDArray[np.floating], scales: npt.NDArray[np.floating]
) -> npt.NDArray[np.int8]:
    """Integers `[in, out]` with `integers * scales` as near to the weight as they come."""
    values = np.rint(weight / scales.astype(np.float32)).clip(-LEVELS, LEVELS)
    return values.astype(np.int8)


def _log(values: Floats) -> npt.NDArray[np.float64]:
    """Logarithms; what is next to nothing beside the largest counts as a thousandth of it."""
    largest = float(values.max()) or 1.0
    found: npt.NDArray[np.float64] = np.log(np.maximum(values.astype(np.float64) / largest, 1e-3))
    return found
