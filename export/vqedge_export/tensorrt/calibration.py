"""What has to be known before the ViT's precision is lowered: how large its values become.

Measured by the float32 encoder in ONNX Runtime, on generated clips and for int8 on those of the
user; for int8 it is measured again, on clips that were not among them, whether the ids are kept.

Values never leave the encoder, only their largest and their mean square: those of all layers at
once would be gigabytes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, shape_inference

from vqedge.bundle import EncoderRecord
from vqedge.data.generated import generated_frames
from vqedge.errors import ExportError, ParityError
from vqedge_export.flips import OnnxReader, encoders_compared, feeds_for
from vqedge_export.graph import nodes_to
from vqedge_export.layers import replace_nodes
from vqedge_export.light import LightCopy, light_copy
from vqedge_export.report import MOST_SAFE_NEAREST, VariantParity
from vqedge_export.tensorrt.half import LARGEST_HALF
from vqedge_export.tensorrt.qdq import Channels, inputs_of_layers
from vqedge_export.tensorrt.region import vit_region

logger = logging.getLogger(__name__)

CALIBRATION_SEED, CALIBRATION_CLIPS = 90_003, 8
CHECK_CLIPS = 3
RANGE_CLIPS = 2  # large values hardly depend on the picture
_LARGEST, _POWER = "/largest", "/power"  # of a tensor, added to its name

Frames = npt.NDArray[np.uint8]


def generated_clips(encoder: EncoderRecord, seed: int, count: int) -> list[Frames]:
    """Clips of the generated world, uint8 `[T, size, size, 3]` each."""
    return [generated_frames(seed, index, encoder.frames, encoder.size) for index in range(count)]


def digest_of(clips: Sequence[Frames]) -> str:
    """Tells calibrations apart: sha256 over all pixels."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(repr(clip.shape).encode())
        digest.update(np.ascontiguousarray(clip).tobytes())
    return digest.hexdigest()


def measured_channels(model: onnx.ModelProto, clips: Sequence[Frames]) -> dict[str, Channels]:
    """The inputs of the ViT's linear layers, over all clips.

    Args:
        model: the encoder in float32.
        clips: uint8 `[T, size, size, 3]` each; at least one.

    Raises:
        ExportError: the graph has no such layer.
    """
    heights = {item.name: item.dims[0] for item in model.graph.initializer if item.dims}
    readers = inputs_of_layers(model.graph)
    probes = {
        name: _channel_probes(name, heights[layers[0].input[1]]) for name, layers in readers.items()
    }
    with light_copy(model) as copy:
        seen = _shown(copy, probes, clips)
    return {
        name: Channels(
            np.max([found[name + _LARGEST] for found in seen], axis=0),
            np.mean([found[name + _POWER] for found in seen], axis=0, dtype=np.float64),
        )
        for name in readers
    }


def require_half_range(model: onnx.ModelProto, clips: Sequence[Frames]) -> None:
    """Refuse a ViT some of whose values float16 cannot hold: they would be infinite, every id 0.

    ONNX Runtime would not show it, as on the CPU it runs a graph in float16 in float32.

    Args:
        model: the encoder in float32.
        clips: uint8 `[T, size, size, 3]` each; at least one.

    Raises:
        ExportError: names the first such node, or the ViT cannot be found.
    """
    largest = largest_values(model, clips)
    for name, value in largest.items():
        if not value <= LARGEST_HALF:
            raise ExportError(
                f"{name}: values of {value:,.0f} in float32, float16 holds {LARGEST_HALF:,.0f} at "
                "most and the ids would be lost; use --precision fp32"
            )
    name = max(largest, key=lambda name: largest[name])
    level = logging.INFO if largest[name] <= LARGEST_HALF / 2 else logging.WARNING
    told = "values of up to %.0f in the ViT, at %s; float16 holds %.0f"
    logger.log(level, told, largest[name], name, LARGEST_HALF)


def largest_values(model: onnx.ModelProto, clips: Sequence[Frames]) -> dict[str, float]:
    """The largest absolute value that every node of the ViT gives, by its name, in their order.

    Raises:
        ExportError: the ViT cannot be found, or the type of what a node gives not be told.
    """
    with light_copy(model) as copy:
        inferred = shape_inference.infer_shapes(copy.model).graph.value_info
        kinds = {item.name: item.type.tensor_type.elem_type for item in inferred}
        made = {node.output[0]: node.name for node in vit_region(copy.model).nodes}
        if untyped := next((name for name in made if name not in kinds), None):
            raise ExportError(f"{made[untyped]}: its type cannot be told, nor whether float16 does")
        floats = [name for name in made if kinds[name] == TensorProto.FLOAT]
        seen = _shown(copy, {name: _range_probes(name) for name in floats}, clips)
    return {
        made[name]: float(np.max([found[name + _LARGEST] for found in seen])) for name in floats
    }


def require_nearest_kept(
    full: onnx.ModelProto, lowered: onnx.ModelProto, clips: Sequence[Frames], budget: int
) -> VariantParity:
    """Compare nearest codes in ONNX Runtime; the bar is that of the CPU's int8 encoder.

    Args:
        full: the encoder in float32.
        lowered: the same in int8, NearestCodebook with its body.
        clips: that `lowered` was not calibrated on.
        budget: most codes a clip.

    Raises:
        ParityError: too many patches that were safe are nearest to another code.
    """
    others = {"int8": OnnxReader(lowered)}
    figures = encoders_compared(OnnxReader(full), others, clips, budget)["int8"]
    if not figures.safe_nearest_differ <= MOST_SAFE_NEAREST:
        raise ParityError(
            f"int8 brings {figures.safe_nearest_differ:.2%} of safe patches nearest another code, "
            f"at most {MOST_SAFE_NEAREST:.0%} is allowed; calibrate on clips like those it is for "
            "(vqedge build --calibrate FOLDER), or use --precision fp16"
        )
    return figures


def _channel_probes(name: str, width: int) -> list[onnx.NodeProto]:
    """The largest absolute value and the mean square of each of a tensor's last axis."""
    rows, first, square = f"{name}/rows", f"{name}/first", f"{name}/square"
    return [
        helper.make_node("Constant", [], [f"{rows}/shape"], value_ints=[-1, width]),
        helper.make_node("Constant", [], [first], value_ints=[0]),
        helper.make_node("Reshape", [name, f"{rows}/shape"], [rows]),
        helper.make_node("Abs", [rows], [f"{rows}/size"]),
        helper.make_node("ReduceMax", [f"{rows}/size", first], [name + _LARGEST], keepdims=0),
        helper.make_node("Mul", [rows, rows], [square]),
        helper.make_node("ReduceMean", [square, first], [name + _POWER], keepdims=0),
    ]


def _range_probes(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Abs", [name], [f"{name}/size"]),
        helper.make_node("ReduceMax", [f"{name}/size"], [name + _LARGEST], keepdims=0),
    ]


def _shown(
    copy: LightCopy, probes: Mapping[str, Sequence[onnx.NodeProto]], clips: Iterable[Frames]
) -> list[dict[str, npt.NDArray[np.float32]]]:
    """What probes of tensors, by their names, give for every clip.

    Each runs right behind what makes the tensor: later, it would keep that in memory.
    """
    graph = copy.model.graph
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes += [node, *(probe for name in node.output for probe in probes.get(name, ()))]
    replace_nodes(graph, nodes)
    made = (name for nodes in probes.values() for node in nodes for name in node.output)
    names = [name for name in made if name.endswith((_LARGEST, _POWER))]
    del graph.output[:]
    for name in names:
        graph.output.add(name=name)
    known = {item.name for item in (*graph.input, *graph.initializer)}
    replace_nodes(graph, nodes_to({*names}, graph, known))
    session = copy.session(in_order=True)
    # the ViT reads no budget, and no question
    passes = (session.run(names, feeds_for(session, clip, 1)) for clip in clips)
    return [dict(zip(names, values, strict=True)) for values in passes]
