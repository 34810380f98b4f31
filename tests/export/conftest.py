"""One small export for the tests of this folder: codes of the clip, and learned ones."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime as ort
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_export import BothArrays, config_of

from vqedge.model.checkpoint import Checkpoint, clip_quantizer, save_checkpoint
from vqedge.model.encoder import Bridge, VideoEncoder
from vqedge_export.assemble import graph_of
from vqedge_export.graph import BaseArrays, checkpoint_arrays, filled
from vqedge_export.onnx_export import write_graph


@pytest.fixture(scope="session", params=["kmeans", "codebook"])
def checkpoint(
    request: pytest.FixtureRequest, vit_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    """Random bridge behind the real backbone's first block."""
    torch.manual_seed(2)
    config = config_of(request.param)
    bridge = Bridge(config)
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.constant_(bridge.attention.scale, 4.0)  # the length of every row
    llm = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules="0"))
    position = clip_quantizer(config, Path()).vit.position
    folder = tmp_path_factory.mktemp("checkpoint")
    return save_checkpoint(folder, config, position, bridge, llm, {})


@pytest.fixture(scope="session")
def arrays(checkpoint: Checkpoint, vit_source: Path) -> BothArrays:
    """Tensors of the checkpoint and of the backbone."""
    own = checkpoint_arrays(checkpoint.path / "model.safetensors")
    return own, dict(BaseArrays("dinov2-s14-focus", vit_source))


@pytest.fixture(scope="session")
def graph(checkpoint: Checkpoint, vit_source: Path) -> onnx.ModelProto:
    write_graph(checkpoint, vit_source)
    return graph_of(checkpoint.path)


@pytest.fixture(scope="session")
def model(graph: onnx.ModelProto, arrays: BothArrays) -> bytes:
    return filled(graph, *arrays).SerializeToString(deterministic=True)


@pytest.fixture(scope="session")
def session(model: bytes) -> ort.InferenceSession:
    onnx.checker.check_model(onnx.load_from_string(model))
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="session")
def encoder(checkpoint: Checkpoint) -> VideoEncoder:
    return checkpoint.encoder()
