"""The ViT in PyTorch computes what the fetched ONNX file computes, at the block that is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from vqedge.base.focus_onnx import vit_arrays_from_onnx
from vqedge.config import DINOV2_S14, EncoderConfig, ModelConfig
from vqedge.errors import CheckpointError, ConfigError
from vqedge.model.answer import CheckpointAnswerer
from vqedge.model.vit import ViT, attention_from_features, vit_from_source

Array = np.ndarray[Any, Any]
SIZE, PATCHES, WIDTH = 224, 256, 384
NORMED, BLOCK_9 = "/backbone/layernorm/Add_1_output_0", "/backbone/encoder/layer.8/Add_1_output_0"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def source(vit_source: Path) -> onnx.ModelProto:
    return onnx.load(str(vit_source))


@pytest.fixture(scope="module")
def frame() -> Array:
    rng = np.random.default_rng(11)
    return rng.integers(0, 256, (1, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def wanted(source: onnx.ModelProto, frame: Array) -> dict[str, Array]:
    """Hidden states of the source graph, its own outputs left out."""
    model = onnx.ModelProto()
    model.CopyFrom(source)
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in (NORMED, BLOCK_9)
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = ((frame / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    return dict(zip((NORMED, BLOCK_9), session.run(None, {"input_image": pixels}), strict=True))


@pytest.mark.parametrize(("block", "norm", "name"), [(12, True, NORMED), (9, False, BLOCK_9)])
def test_it_computes_what_the_source_computes(
    vit_source: Path, frame: Array, wanted: dict[str, Array], block: int, norm: bool, name: str
) -> None:
    vit = vit_from_source(vit_source, EncoderConfig(block=block, size=SIZE, final_norm=norm))
    with torch.inference_mode():
        found = vit(torch.from_numpy(frame)).numpy()
    reference = wanted[name][:, 1:]  # without the CLS token
    difference = np.abs(found - reference)
    print(f"{name}: max {difference.max():.2e}, mean {difference.mean():.2e}")
    assert found.shape == (1, PATCHES, WIDTH)
    assert np.abs(reference).max() > 1, "nothing to compare"
    assert difference.max() < 1e-4
    assert not any(parameter.requires_grad for parameter in vit.parameters())
    assert not vit.training


def test_the_final_norm_may_follow_any_block(
    vit_source: Path, frame: Array, wanted: dict[str, Array]
) -> None:
    vit = vit_from_source(vit_source, EncoderConfig(block=9, size=SIZE))
    with torch.inference_mode():
        found = vit(torch.from_numpy(frame)).numpy()
    raw = wanted[BLOCK_9][:, 1:].astype(np.float64)
    arrays = vit_arrays_from_onnx(vit_source)
    centered = raw - raw.mean(axis=-1, keepdims=True)
    unit = centered / np.sqrt(raw.var(axis=-1, keepdims=True) + 1e-6)
    assert np.abs(found - (unit * arrays["norm.weight"] + arrays["norm.bias"])).max() < 1e-4


def test_patches_are_row_major_and_frames_apart(vit_source: Path) -> None:
    """A spot in a frame changes its own patch most; the other frame not at all."""
    vit = vit_from_source(vit_source, EncoderConfig(block=1, size=112))
    frames = torch.full((2, 112, 112, 3), 90, dtype=torch.uint8)
    with torch.inference_mode():
        plain = vit(frames)
        frames[1, 14 * 2 : 14 * 3, 14 * 5 : 14 * 6] = torch.tensor([220, 30, 30], dtype=torch.uint8)
        spotted = vit(frames)
    change = (spotted - plain).norm(dim=-1)
    assert change[0].max() == 0
    assert int(change[1].argmax()) == 2 * 8 + 5


def test_positions_are_the_stored_ones_at_the_size_they_were_stored_for(vit_source: Path) -> None:
    arrays = vit_arrays_from_onnx(vit_source)
    stored = np.concatenate(
        [
            arrays["position_cls"].reshape(1, 1, WIDTH),
            arrays["position_grid"].reshape(1, -1, WIDTH),
        ],
        axis=1,
    )
    assert stored.shape == (1, 1 + 37 * 37, WIDTH)
    vit = vit_from_source(vit_source, EncoderConfig(block=1, size=37 * 14))
    np.testing.assert_allclose(vit.position.numpy(), stored, atol=1e-6)


@pytest.mark.parametrize(
    "missing", ["backbone.encoder.layer.3.norm1.weight", "backbone.embeddings.cls_token"]
)
def test_a_missing_tensor_is_named(source: onnx.ModelProto, tmp_path: Path, missing: str) -> None:
    broken = onnx.ModelProto()
    broken.graph.node.extend(source.graph.node)
    broken.graph.initializer.extend(
        item for item in source.graph.initializer if item.name != missing
    )
    path = tmp_path / "broken.onnx"
    onnx.save(broken, str(path))
    with pytest.raises(CheckpointError, match=missing):
        vit_from_source(path, EncoderConfig(block=1))


@pytest.mark.parametrize(("block", "size"), [(0, 224), (13, 224), (-1, 224), (9, 225), (9, 15)])
def test_a_block_or_size_that_cannot_be(block: int, size: int) -> None:
    with pytest.raises(ConfigError, match=f"block {block} of 1..12, size {size}"):
        ViT(block, size)


# ---- what CLS attends to


def test_attention_is_that_of_the_source(
    vit_source: Path, source: onnx.ModelProto, frame: Array
) -> None:
    """The source graph's own softmax of the ninth block, mean over heads."""
    softmaxes = [n.output[0] for n in source.graph.node if n.op_type == "Softmax"]
    name = next(name for name in softmaxes if "layer.8/" in name)
    model = onnx.ModelProto()
    model.CopyFrom(source)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = ((frame / 255 - MEAN) / STD).transpose(0, 3, 1, 2).astype(np.float32)
    wanted = session.run(None, {"input_image": pixels})[0].mean(axis=1)[:, 0]
    vit = vit_from_source(vit_source, EncoderConfig(block=9, size=SIZE))
    with torch.inference_mode():
        found = vit(torch.from_numpy(frame), True)
        plain = vit(torch.from_numpy(frame))
    assert torch.equal(found[..., :-1], plain), "features do not change"
    assert np.abs(found[..., -1].numpy() - wanted[:, 1:]).max() < 1e-5
    assert wanted[:, 1:].max() > 2 * wanted[:, 1:].mean(), "nothing to compare"


def test_without_a_class_token_what_stands_out_is_attended_to() -> None:
    small = {"class_token": False, "width": 24, "heads": 3, "hidden": 8}
    shape = DINOV2_S14.model_copy(update=small)
    torch.manual_seed(0)
    vit = ViT(2, 56, True, shape).eval()
    for values in vit.parameters():
        torch.nn.init.normal_(values, std=0.1)
    frames = torch.randint(0, 256, (2, 56, 56, 3), dtype=torch.uint8)
    with torch.inference_mode():
        rows, both = vit(frames), vit(frames, True)
    assert torch.equal(both[..., :-1], rows)
    assert torch.equal(both[..., -1], attention_from_features(rows))


class _Loaded(Exception):
    """Weights would be loaded now."""


@pytest.fixture
def rounding() -> Iterator[tuple[Any, ...]]:
    """What multiplies on CUDA, allowed to round float32."""
    backends: tuple[Any, ...] = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = True
    yield backends
    for backend, allowed in zip(backends, before, strict=True):
        backend.allow_tf32 = allowed


def test_a_gpu_evaluates_in_exact_float32(
    monkeypatch: pytest.MonkeyPatch, rounding: tuple[Any, ...]
) -> None:
    def encoder() -> None:
        raise _Loaded

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    checkpoint: Any = SimpleNamespace(config=ModelConfig(), encoder=encoder)
    with pytest.raises(_Loaded):
        CheckpointAnswerer(checkpoint, lambda *_: np.empty(0, np.uint8))
    assert not any(backend.allow_tf32 for backend in rounding)
