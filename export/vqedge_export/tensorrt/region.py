"""The ViT in the encoder's graph: the part whose precision can be lowered.

Everything behind it, quantizer, hash and attention, decides ids or is small, and stays float32. The
exporter names nodes by module, so the ViT is what is called `/quantizer/vit/...`; the pixels'
normalisation in front of its first convolution is not part of the region.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from vqedge.errors import ExportError
from vqedge_export.layers import VIT


@dataclass(frozen=True)
class Region:
    """Nodes whose precision can be lowered, constants apart, and where data enters and leaves."""

    nodes: list[onnx.NodeProto]
    entry: str  # float32 pixels, normalised
    exit: str  # float32 features, the quantizer's input


def vit_region(model: onnx.ModelProto) -> Region:
    """Find the ViT.

    Constants are not in it, wherever their names say they are: the tracer shares equal ones.

    Raises:
        ExportError: the graph was not written by this exporter.
    """
    own = [node for node in model.graph.node if _is_vit(node)]
    convolution = next((node for node in own if node.op_type == "Conv"), None)
    if convolution is None:
        raise _stranger("has no convolution below " + VIT)
    entry = convolution.input[0]
    before = _ancestors(own, entry)
    nodes = [node for node in own if before.isdisjoint(node.output)]
    inside = {name for node in nodes for name in node.output}
    others = [node for node in model.graph.node if inside.isdisjoint(node.output)]
    leaving = inside.intersection(name for node in others for name in node.input)
    if len(leaving) != 1:
        raise _stranger(f"takes {len(leaving)} tensors from its ViT, want 1")
    return Region(nodes, entry, leaving.pop())


def _is_vit(node: onnx.NodeProto) -> bool:
    return node.name.startswith(VIT) and node.op_type != "Constant"


def _ancestors(nodes: list[onnx.NodeProto], tensor: str) -> set[str]:
    """The tensor and all that it is computed from."""
    maker = {name: node for node in nodes for name in node.output}
    found, waiting = set(), [tensor]
    while waiting:
        name = waiting.pop()
        if name in maker and name not in found:
            found.add(name)
            waiting += maker[name].input
    return found


def _stranger(what: str) -> ExportError:
    return ExportError(
        f"the encoder's graph {what}; its precision cannot be lowered: use --precision fp32"
    )
