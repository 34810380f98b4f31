"""The weight-stripped encoder graph: every weight is a reference by name, filled without torch.

A checkpoint carries the graph, its own weights and nothing of the base; `filled` puts both in.
Export and assemble both go through `filled`, so they write the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from vqedge.base.backbones import BACKBONES
from vqedge.base.tensors import Array, Arrays, TensorFile, not_finite
from vqedge.config import BackboneSource, ModelConfig
from vqedge.errors import CheckpointError, ExportError
from vqedge.files import replacing
from vqedge.reducers import reducer_of
from vqedge.sampling import DEFAULT_RULE, FrameRule

BASE_PREFIX = "quantizer.vit."
ROW_MASK = "row_mask"  # an output of graphs whose rows are not one a code
WORDS = "words"  # an output of graphs whose rows are words of a vocabulary
TABLES = "bridge.codebook.tables"
WORD_ROWS = "bridge.table"
BASE_LOCATION, CHECKPOINT_LOCATION = "base", "model.safetensors"
BRIDGED = ("tokens", ROW_MASK, WORDS)  # outputs that the bridge makes of the others
LARGEST_BYTES = (1 << 31) - (1 << 22)  # of weights in a file that protobuf can still read
TEXT = "text"  # an input of graphs whose tokens follow the question: float32 [d_llm]
FEATURES = "features"  # the tensor that the quantizer reads, float32 [patches, width]
_ADAPTIVE_ERROR = "vqedge.adaptive_error"  # metadata of a graph that takes the adaptive budget
_REDUCER = "vqedge.reducer"  # metadata of a graph whose quantizer is a reducer
_FRAME_RULE = "vqedge.frame_rule"  # metadata of a graph that wants other frames than usual


def stored_kind(config: ModelConfig) -> Literal["kmeans", "codebook"]:
    """How bundle and files name codes: by ids of a learned codebook, or, as `kmeans`, by value."""
    return "codebook" if config.quantizer.kind == "codebook" else "kmeans"


def rounds_of(config: ModelConfig) -> int:
    """Rounds of k-means in the graph before the last assignment; a reducer has none."""
    return 0 if reducer_of(config.quantizer.kind) else config.quantizer.iterations


def note_quantizer(model: onnx.ModelProto, config: ModelConfig) -> None:
    """Write into the graph which reducer it is, or what error its adaptive budget reaches."""
    reducer = reducer_of(config.quantizer.kind)
    if reducer is not None:
        model.metadata_props.add(key=_REDUCER, value=reducer)
    else:
        note_adaptive_error(model, config.quantizer.adaptive_error)


def noted_reducer(graph: onnx.ModelProto) -> str | None:
    """The reducer that `note_quantizer` wrote; None for k-means and learned codebooks."""
    return {item.key: item.value for item in graph.metadata_props}.get(_REDUCER)


def note_frames(model: onnx.ModelProto, rule: FrameRule) -> None:
    """Write into the graph which frames it wants, so that files of other frames name another."""
    if rule != DEFAULT_RULE:
        model.metadata_props.add(key=_FRAME_RULE, value=" ".join(rule))


def note_adaptive_error(model: onnx.ModelProto, error: float) -> None:
    """Write into the graph that it takes the adaptive budget, and what error that one reaches."""
    model.metadata_props.add(key=_ADAPTIVE_ERROR, value=repr(error))


def adaptive_error_of(graph: onnx.ModelProto) -> float | None:
    """What `note_adaptive_error` wrote; None for a graph of fixed budgets."""
    noted = {item.key: item.value for item in graph.metadata_props}
    return float(noted[_ADAPTIVE_ERROR]) if _ADAPTIVE_ERROR in noted else None


def stripped(
    model: onnx.ModelProto, checkpoint_names: set[str], base_names: set[str]
) -> onnx.ModelProto:
    """A copy of the model in which every known weight is a reference to the file that holds it.

    Args:
        model: the traced encoder, weights inside.
        checkpoint_names: tensors of the checkpoint's `model.safetensors`.
        base_names: tensors of the base backbone, with the prefix they have in the graph.
    """
    copy = copied(model)
    for tensor in copy.graph.initializer:
        if tensor.name in checkpoint_names:
            _refer(tensor, CHECKPOINT_LOCATION)
        elif tensor.name in base_names:
            _refer(tensor, BASE_LOCATION)
    return copy


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy to change, weights included; see `vqedge_export.light` for one without."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def filled(graph: onnx.ModelProto, checkpoint: Arrays, base: Arrays) -> onnx.ModelProto:
    """A copy of a stripped graph with its weights in place, as float32.

    Raises:
        CheckpointError: a reference names a tensor that is not there or has another shape.
    """
    sources = {CHECKPOINT_LOCATION: checkpoint, BASE_LOCATION: base}
    copy = copied(graph)
    for tensor in copy.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location = {item.key: item.value for item in tensor.external_data}.get("location", "")
        array = sources.get(location, {}).get(tensor.name)
        if array is None or list(array.shape) != list(tensor.dims):
            raise CheckpointError(
                f"encoder.graph.onnx wants {tensor.name!r} {list(tensor.dims)} from {location!r}; "
                "the checkpoint's files do not belong together, export it again"
            )
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float32), tensor.name))
    return copy


def bridge_of(encoder: onnx.ModelProto) -> onnx.ModelProto:
    """The end of an encoder as a graph of its own: codes or ids and index map to tokens.

    The same nodes, so a file's tokens are those of its video.

    Raises:
        ExportError: the tokens are made from anything else, too.
    """
    outputs = {item.name: item for item in encoder.graph.output}
    inputs = [outputs[name] for name in ("codes", "ids", "index_map") if name in outputs]
    known = {item.name for item in (*inputs, *encoder.graph.initializer)}
    nodes = nodes_to({*BRIDGED} & outputs.keys(), encoder.graph, known)
    used = {name for node in nodes for name in node.input}
    weights = [item for item in encoder.graph.initializer if item.name in used]
    told = [outputs[name] for name in BRIDGED if name in outputs]
    graph = helper.make_graph(nodes, "bridge", inputs, told, weights)
    opsets = [item for item in encoder.opset_import if not item.domain]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=encoder.ir_version, producer_name="vqedge"
    )


def nodes_to(wanted: set[str], graph: onnx.GraphProto, known: set[str]) -> list[onnx.NodeProto]:
    """The nodes that make `wanted` of tensors that are known, in their order.

    Raises:
        ExportError: they are made of something else, too.
    """
    missing, nodes = wanted, []
    for node in reversed(graph.node):
        if missing.isdisjoint(node.output):
            continue
        nodes.append(node)
        missing = (missing | set(node.input)) - set(node.output) - known - {""}
    if missing:
        raise ExportError(
            f"the graph makes its tokens of {min(missing)!r}, too; "
            "export the checkpoint again: vqedge export CHECKPOINT -o OUT.vqedge --record"
        )
    return nodes[::-1]


def checkpoint_arrays(path: Path) -> dict[str, npt.NDArray[np.floating]]:
    """Tensors of a checkpoint's file, as `model.safetensors`, read with NumPy.

    Raises:
        CheckpointError: it is missing or damaged, or a number in it is not finite.
    """
    tensors = dict(TensorFile(path))
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise not_finite(path, name)
    return tensors


class BaseArrays(Mapping[str, Array]):
    """Tensors of a backbone, named as in the graph, read one by one where they can be."""

    def __init__(self, source: BackboneSource, path: Path) -> None:
        self._arrays = BACKBONES[source].arrays(path)

    def __getitem__(self, name: str) -> Array:
        if not name.startswith(BASE_PREFIX):
            raise KeyError(name)
        return self._arrays[name.removeprefix(BASE_PREFIX)]

    def __iter__(self) -> Iterator[str]:
        return (BASE_PREFIX + name for name in self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def save_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model with deterministic bytes, whole or not at all.

    Raises:
        ExportError: it is larger than such a file may be.
    """
    if sum(tensor.ByteSize() for tensor in model.graph.initializer) > LARGEST_BYTES:
        raise ExportError(
            f"{path.name}: more than the 2 GiB that one ONNX file can hold; import a smaller "
            "backbone, or again with an earlier --block, a LLaVA with --mode codes"
        )
    with replacing(path) as temporary:
        temporary.write_bytes(model.SerializeToString(deterministic=True))


def _refer(tensor: TensorProto, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=location)
