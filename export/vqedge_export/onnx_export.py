"""Trace the PyTorch encoder: static shapes, weights by name, NearestCodebook as a function."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.onnx.utils import register_custom_op_symbolic

from vqedge.base.tensors import TensorFile
from vqedge.checkpoint import GRAPH, MODEL
from vqedge.config import ModelConfig
from vqedge.errors import ExportError
from vqedge.model.checkpoint import Checkpoint
from vqedge.model.encoder import VideoEncoder
from vqedge.nearest_codebook import DOMAIN, OP_VERSION
from vqedge.reducers import follows_question
from vqedge.video_words import vocabulary_of
from vqedge_export.graph import (
    FEATURES,
    ROW_MASK,
    TEXT,
    WORDS,
    BaseArrays,
    note_frames,
    note_quantizer,
    save_model,
    stripped,
)
from vqedge_export.layers import drop_unread
from vqedge_export.op_function import OPSET, attach_function

INPUTS = ("frames", "budget")
OUTPUTS = ("tokens", "index_map", "mask", "margin")
CODES, IDS = "codes", "ids"  # one more output: what a clip's codes are, or those of a codebook
_QUANTIZED = ("codes", "indices", "mask", "margin")
_FLATTENED = "/quantizer/Flatten"  # the tracer's name for the last step before the quantizer


def write_graph(checkpoint: Checkpoint, base: Path) -> Path:
    """Trace a checkpoint's encoder and write its weight-stripped graph into the checkpoint folder.

    Args:
        checkpoint: what to trace.
        base: the fetched backbone file.

    Raises:
        ExportError: see `stripped_graph`.
    """
    path = checkpoint.path / GRAPH
    save_model(stripped_graph(checkpoint, base), path)
    return path


def stripped_graph(
    checkpoint: Checkpoint, base: Path, custom_node: bool = False
) -> onnx.ModelProto:
    """The traced encoder with every weight replaced by a reference.

    Args:
        checkpoint: what to trace.
        base: the backbone's weights.
        custom_node: leave the function body out (TensorRT 10.3 wants a plain plugin node).

    Raises:
        ExportError: the tracer could not express the model.
    """
    model = encoder_graph(checkpoint.encoder(), checkpoint.config)
    if not custom_node:
        attach_function(model)
    note_quantizer(model, checkpoint.config)
    note_frames(model, checkpoint.config.encoder.rule)
    names = set(TensorFile(checkpoint.path / MODEL))
    return stripped(model, names, set(BaseArrays(checkpoint.config.encoder.source, base)) - names)


def outputs_of(config: ModelConfig) -> tuple[str, ...]:
    """Names of the graph's outputs, in order."""
    told = (*OUTPUTS, IDS if config.quantizer.kind == "codebook" else CODES)
    if vocabulary_of(config):
        return (*told, ROW_MASK, WORDS)
    return told if config.attention.kind == "paper" else (*told, ROW_MASK)


def inputs_of(config: ModelConfig) -> tuple[str, ...]:
    """Names of the graph's inputs, in order."""
    return (*INPUTS, TEXT) if follows_question(config.quantizer.kind) else INPUTS


def encoder_graph(encoder: VideoEncoder, config: ModelConfig) -> onnx.ModelProto:
    """Trace an encoder with weights inside and NearestCodebook as a plain node.

    Raises:
        ExportError: the tracer could not express the model.
    """
    shape = (config.encoder.frames, config.encoder.size, config.encoder.size, 3)
    frames, budget = torch.zeros(shape, dtype=torch.uint8), torch.tensor(config.quantizer.codes)
    example: tuple[Tensor, ...] = (frames, budget)
    if TEXT in inputs_of(config):
        example = (*example, torch.zeros(config.llm.width))
    model = _cleaned(_traced(encoder, example, inputs_of(config), outputs_of(config)))
    _name_features(model.graph)
    return model


def quantizer_graph(
    quantizer: nn.Module, patches: Tensor, text: Tensor | None = None
) -> onnx.ModelProto:
    """Trace a quantizer alone, with the body of NearestCodebook if it has one, to measure it.

    Args:
        quantizer: from patches, a budget, and a question where it follows one, to `Quantized`.
        patches: an example of what it reads.
        text: an example of a question; None where it follows none.

    Raises:
        ExportError: the tracer could not express the quantizer.
    """
    example: tuple[Tensor, ...] = (patches, torch.tensor(1))
    names: tuple[str, ...] = (FEATURES, "budget")
    if text is not None:
        example, names = (*example, text), (*names, TEXT)
    model = _cleaned(_traced(quantizer, example, names, _QUANTIZED))
    attach_function(model)
    return model


def _traced(
    module: nn.Module, example: tuple[Tensor, ...], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """What the tracer makes of a module.

    Raises:
        ExportError: nothing, or the disk of temporary files has no room for it.
    """
    register_custom_op_symbolic(f"{DOMAIN}::nearest_codebook", _symbolic, OPSET)
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "traced.onnx"
            _trace(path, module, example, inputs, outputs)
            return onnx.load(path)
    except OSError as error:
        size = sum(tensor.nbytes for tensor in module.state_dict().values())
        raise ExportError(
            f"{tempfile.tempdir or 'TMPDIR'}: the traced encoder, {size / 1e6:.0f} MB, cannot be "
            f"written ({error.strerror}); set TMPDIR to a folder on a disk with room"
        ) from error


def _trace(
    path: Path,
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module,
                example,
                path,
                dynamo=False,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                custom_opsets={DOMAIN: OP_VERSION},
                do_constant_folding=False,
            )
        except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
            raise ExportError(f"the encoder cannot be traced to ONNX: {error}") from error


def _symbolic(graph: Any, x: Any, codebook: Any, metric: Any) -> Any:
    """One node; the metric becomes its attribute."""
    name = metric.node().s("value")
    indices, margin = graph.op(f"{DOMAIN}::NearestCodebook", x, codebook, metric_s=name, outputs=2)
    rows = x.type().sizes()[:1]
    indices.setType(x.type().with_dtype(torch.int32).with_sizes(rows))
    margin.setType(x.type().with_dtype(torch.float32).with_sizes(rows))
    return indices, margin


def _cleaned(model: onnx.ModelProto) -> onnx.ModelProto:
    """With each weight under its own name, and without the tracer's notes.

    Those name source files and change from run to run.
    """
    model.producer_name, model.producer_version, model.doc_string = "vqedge", "", ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    _copy_shared(model.graph)
    drop_unread(model.graph)
    return model


def _copy_shared(graph: onnx.GraphProto) -> None:
    """Store equal weights one by one: the tracer stores one, and nodes that hand on its values."""
    stored = {item.name: item for item in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Identity"]:
        if node.input[0] in stored:
            copy = graph.initializer.add()
            copy.CopyFrom(stored[node.input[0]])
            copy.name = node.output[0]
            stored[copy.name] = copy
            graph.node.remove(node)


def _name_features(graph: onnx.GraphProto) -> None:
    """Give what the quantizer reads its name: a runtime may cut the graph there."""
    traced = next(n.output[0] for n in graph.node if n.name == _FLATTENED)
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = FEATURES if name == traced else name
