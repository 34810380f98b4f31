"""A model whose weights lie in a file of their own: copies of it are small, and so are its readers.

A weight that is part of a model is copied with it, again into one string to write or to open it,
and once more where that is parsed: six times what it takes, in the memory that a Jetson shares with
its GPU. A file of weights is mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from vqedge.errors import ExportError
from vqedge.temporary import temporary_folder

_LEAST_BYTES = 1024  # of a weight in the file: shapes and axes are read where the graph is
_ALIGNMENT = 4096  # bytes, so that each can be mapped
_ERRORS_ONLY = 3


@dataclass(frozen=True)
class LightCopy:
    """A copy of a model to change and to run; the original is left alone."""

    model: onnx.ModelProto
    path: Path  # of the model; its weights are beside it

    def session(self, in_order: bool = False) -> ort.InferenceSession:
        """It in ONNX Runtime on the CPU, without remarks on what could not be folded.

        Args:
            in_order: run nodes as they stand in the graph; else any may wait until it is needed.
        """
        self.path.write_bytes(self.model.SerializeToString())
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        if in_order:
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        providers = ["CPUExecutionProvider"]
        return ort.InferenceSession(str(self.path), options, providers=providers)


@contextmanager
def light_copy(model: onnx.ModelProto) -> Iterator[LightCopy]:
    """A light copy in a folder for the time being; sessions opened meanwhile stay good.

    Raises:
        ExportError: the disk of temporary files has no room for the weights.
        ConfigError: there is no such disk.
    """
    with temporary_folder() as folder:
        path = folder / "model.onnx"
        yield LightCopy(save_apart(model, path), path)


def save_apart(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Write a model, and its weights into a file beside it; one weight at a time is copied.

    Args:
        model: is left alone.
        path: in a folder of temporary files.

    Returns:
        what was written to `path`: the model without its weights, which names that file.

    Raises:
        ExportError: the disk has no room for the weights.
    """
    try:
        return _saved_apart(model, path)
    except OSError as error:
        raise ExportError(
            f"{path.parent}: the weights, {model.ByteSize() / 1e6:.0f} MB, cannot be written "
            f"({error.strerror}); set TMPDIR to a folder on a disk with room"
        ) from error


def _saved_apart(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    graph = helper.make_graph(
        model.graph.node,
        model.graph.name,
        model.graph.input,
        model.graph.output,
        value_info=model.graph.value_info,
    )
    light = helper.make_model(
        graph,
        functions=model.functions,
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    with path.with_suffix(".weights").open("wb") as file:
        for tensor in model.graph.initializer:
            _put_apart(tensor, light.graph.initializer.add(), file)
    path.write_bytes(light.SerializeToString())
    return light


def _put_apart(tensor: TensorProto, light: TensorProto, file: BinaryIO) -> None:
    raw = tensor.raw_data
    if len(raw) < _LEAST_BYTES:
        light.CopyFrom(tensor)
        return
    light.name, light.data_type = tensor.name, tensor.data_type
    light.dims.extend(tensor.dims)
    light.data_location = TensorProto.EXTERNAL
    start = file.seek(-(-file.tell() // _ALIGNMENT) * _ALIGNMENT)
    place = {"location": Path(file.name).name, "offset": start, "length": file.write(raw)}
    for key, value in place.items():
        light.external_data.add(key=key, value=str(value))
