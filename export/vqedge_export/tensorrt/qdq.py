"""int8 in the graph itself: quantize/dequantize pairs around the ViT's linear layers.

TensorRT 11 and TensorRT-RTX have no calibrators; what is to be multiplied in int8 is said by
QuantizeLinear and DequantizeLinear on both inputs of a product: symmetric, a scale by column for
the weight, one for the input, measured before (`calibration`). That one serves all channels, and
those of a ViT are uneven: with scales alone half of the ids turn (docs/tensorrt.md). So an input's
channels are evened out first, by a product with a constant that the rows of the weights undo; it is
elementwise, as what stands before it.

An input that would be told too coarsely all the same stays in floating point, and its layers do.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from vqedge.errors import ExportError
from vqedge_export.layers import (
    LEVELS,
    VIT,
    channel_factors,
    column_scales,
    linear_layers,
    quantised_columns,
    replace_nodes,
)

logger = logging.getLogger(__name__)

OPSET, IR_VERSION = 19, 9  # from which on scales may be float16
_LEAST_SIGNAL_DB = 30.0  # of an input over the error of its rounding
_LEAST_SCALE = 2.0**-14  # float16 tells smaller ones coarsely

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Channels:
    """What was seen of a tensor's channels over the calibration clips.

    Attributes:
        largest: absolute value, float32 `[C]`.
        power: mean square, float64 `[C]`.
    """

    largest: Floats
    power: npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Input:
    """A tensor that layers read in int8."""

    factors: Floats  # of its channels, `[C]`
    scale: np.float32


def quantised(model: onnx.ModelProto, channels: Mapping[str, Channels]) -> onnx.ModelProto:
    """The same model, changed in place, whose ViT multiplies in int8.

    Args:
        model: the encoder in float32.
        channels: of every tensor that a linear layer of the ViT reads, by its name.

    Raises:
        ExportError: the graph has no such layer, or none whose input can be told in int8.
    """
    graph = model.graph
    weights = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    readers = inputs_of_layers(graph)
    inputs = {name: _input_of(channels[name], nodes, weights) for name, nodes in readers.items()}
    told = {name: item for name, item in inputs.items() if item is not None}
    if not told:
        raise ExportError("no linear layer of the ViT can be told in int8; use --precision fp16")
    if len(told) < len(inputs):
        logger.warning(
            "%d of %d inputs of layers stay in floating point", len(inputs) - len(told), len(inputs)
        )
    layers = {node.name: told[name] for name in told for node in readers[name]}
    nodes: list[onnx.NodeProto] = []
    seen: set[str] = set()
    for node in graph.node:
        if node.name not in layers:
            nodes.append(node)
            continue
        source, weight = node.input
        if source not in seen:
            seen.add(source)
            nodes += _input_nodes(graph, source, told[source])
        nodes += _layer_nodes(graph, node, weights[weight] * layers[node.name].factors[:, None])
    replace_nodes(graph, nodes)
    _raise_opset(model)
    return model


def inputs_of_layers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    """The tensors that linear layers of the ViT read, and who reads each.

    Raises:
        ExportError: there are none.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in linear_layers(graph):
        readers.setdefault(node.input[0], []).append(node)
    return readers


def _input_of(
    seen: Channels, layers: list[onnx.NodeProto], weights: Mapping[str, Floats]
) -> _Input | None:
    """How to tell a tensor in int8; None where its error would be too near to it."""
    factors = channel_factors(seen.largest, [weights[node.input[1]] for node in layers])
    scale = max(float((seen.largest / factors).max()) / LEVELS, _LEAST_SCALE)
    signal, noise = float((seen.power / factors**2).mean()), scale**2 / 12
    enough = signal >= noise * 10 ** (_LEAST_SIGNAL_DB / 10)
    return _Input(factors, np.float32(scale)) if enough else None


def _input_nodes(graph: onnx.GraphProto, source: str, told: _Input) -> list[onnx.NodeProto]:
    parts: dict[str, npt.NDArray[Any]] = {
        "evened_by": (1 / told.factors).astype(np.float32),
        "scale": np.array(told.scale, np.float32),
        "zero": np.array(0, np.int8),
    }
    _store(graph, source, parts)
    even, ints, floats = (f"{source}/{part}" for part in ("even", "int8", "told"))
    steps = [f"{source}/scale", f"{source}/zero"]
    return [
        helper.make_node("Mul", [source, f"{source}/evened_by"], [even], name=f"{VIT}even{source}"),
        helper.make_node("QuantizeLinear", [even, *steps], [ints], name=f"{VIT}quantize{source}"),
        helper.make_node(
            "DequantizeLinear", [ints, *steps], [floats], name=f"{VIT}dequantize{source}"
        ),
    ]


def _layer_nodes(
    graph: onnx.GraphProto, layer: onnx.NodeProto, weight: Floats
) -> list[onnx.NodeProto]:
    """The layer behind what `_input_nodes` gave, its weight in int8."""
    scales = np.maximum(column_scales(weight), np.float32(_LEAST_SCALE))
    scales = np.nextafter(scales.astype(np.float16), np.float16(np.inf)).astype(np.float32)
    parts: dict[str, npt.NDArray[Any]] = {
        "scale": scales,
        "zero": np.zeros(len(scales), np.int8),
        "int8": quantised_columns(weight, scales),
    }
    _store(graph, layer.name, parts)
    names = [f"{layer.name}/{part}" for part in ("int8", "scale", "zero")]
    told = f"{layer.name}/weight"
    product = helper.make_node(
        "MatMul", [f"{layer.input[0]}/told", told], list(layer.output), name=layer.name
    )
    return [
        helper.make_node(
            "DequantizeLinear", names, [told], name=f"{layer.name}/dequantize", axis=1
        ),
        product,
    ]


def _store(graph: onnx.GraphProto, owner: str, parts: Mapping[str, npt.NDArray[Any]]) -> None:
    graph.initializer.extend(
        numpy_helper.from_array(part, f"{owner}/{name}") for name, part in parts.items()
    )


def _raise_opset(model: onnx.ModelProto) -> None:
    """What stands in the graph means the same from opset 18 to 19."""
    model.ir_version = max(model.ir_version, IR_VERSION)
    for owner in (model, *model.functions):
        for item in owner.opset_import:
            if not item.domain:
                item.version = max(item.version, OPSET)
