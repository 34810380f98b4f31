"""Read the DINOv2-S/14 backbone out of its source ONNX file as named NumPy arrays.

Names and layouts are those of `vqedge.model.vit.ViT`: a linear layer's weight is `[in, out]`, used
as `x @ weight + bias`, exactly as the source graph stores it. Nothing is transposed or rounded on
the way, so a graph assembled from these arrays equals one exported from the PyTorch model byte for
byte.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from vqedge.errors import CheckpointError

BLOCKS = 12
_BLOCK_LINEARS = {
    "attention.query": "attention/attention/query",
    "attention.key": "attention/attention/key",
    "attention.value": "attention/attention/value",
    "attention.output": "attention/output/dense",
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}
_BLOCK_VECTORS = {
    "norm1.weight": "norm1.weight",
    "norm1.bias": "norm1.bias",
    "scale1": "layer_scale1.lambda1",
    "norm2.weight": "norm2.weight",
    "norm2.bias": "norm2.bias",
    "scale2": "layer_scale2.lambda1",
}
_EMBEDDINGS = {
    "patch.weight": "backbone.embeddings.patch_embeddings.projection.weight",
    "patch.bias": "backbone.embeddings.patch_embeddings.projection.bias",
    "cls_token": "backbone.embeddings.cls_token",
    "norm.weight": "backbone.layernorm.weight",
    "norm.bias": "backbone.layernorm.bias",
}
_POSITION_CLS = "/backbone/embeddings/Concat_6"
_POSITION_GRID = "/backbone/embeddings/Reshape_1"


def vit_arrays_from_onnx(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """Load every backbone tensor of the source file.

    Returns:
        float32 arrays by parameter name, plus `position_cls` `[1, 1, D]` and `position_grid`
        `[1, G*G, D]`, the embeddings as stored (37 x 37 positions, 518 px) before interpolation.

    Raises:
        CheckpointError: the file is not the expected backbone; names the first missing tensor.
    """
    graph = onnx.load(str(path)).graph
    initializers = {item.name: item for item in graph.initializer}
    inputs_of = {node.name: list(node.input) for node in graph.node}

    def array(name: str) -> npt.NDArray[np.float32]:
        if name not in initializers:
            raise CheckpointError(
                f"{path}: no tensor {name!r}; is this the file `vqedge fetch` got?"
            )
        return numpy_helper.to_array(initializers[name])

    def constant_of(node: str) -> npt.NDArray[np.float32]:
        for name in inputs_of.get(node, ()):
            if name in initializers:
                return array(name)
        return array(node)

    arrays = {ours: array(theirs) for ours, theirs in _EMBEDDINGS.items()}
    arrays["position_cls"] = constant_of(_POSITION_CLS)
    arrays["position_grid"] = constant_of(_POSITION_GRID)
    for index in range(BLOCKS):
        ours, theirs = f"blocks.{index}", f"backbone.encoder.layer.{index}"
        for name, source in _BLOCK_VECTORS.items():
            arrays[f"{ours}.{name}"] = array(f"{theirs}.{source}")
        for name, source in _BLOCK_LINEARS.items():
            node = f"/backbone/encoder/layer.{index}/{source}/MatMul"
            arrays[f"{ours}.{name}.weight"] = constant_of(node)
            arrays[f"{ours}.{name}.bias"] = array(f"{theirs}.{source.replace('/', '.')}.bias")
    return arrays
