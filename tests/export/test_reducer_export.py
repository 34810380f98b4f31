"""An encoder with another paper's reducer: exported, described and run like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper
from peft import LoraConfig, get_peft_model
from tiny_export import config_of

from vqedge.config import ModelConfig
from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge.model.checkpoint import Checkpoint, clip_quantizer, save_checkpoint
from vqedge.model.encoder import Bridge, trained_reducer
from vqedge.reducers import PREFIX
from vqedge_export.graph import (
    BaseArrays,
    adaptive_error_of,
    bridge_of,
    checkpoint_arrays,
    filled,
    noted_reducer,
    save_model,
)
from vqedge_export.int8 import int8_encoder
from vqedge_export.onnx_export import outputs_of, stripped_graph
from vqedge_export.parity import encoder_parity
from vqedge_export.records import encoder_record, quantizer_record
from vqedge_runtime.bridge.ort import OrtBridge
from vqedge_runtime.encoders.ort import OrtEncoder

KINDS = ("uniform-pool", "random-prune", "prumerge", "tome", "group-queries", "resampler")
ASKING = "reducer:query-window"


@pytest.fixture(scope="module", params=KINDS)
def reducing(
    request: pytest.FixtureRequest, vit_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, onnx.ModelProto]:
    """A checkpoint with a random bridge, and its whole graph."""
    config = config_of(f"{PREFIX}{request.param}")
    checkpoint = random_checkpoint(tmp_path_factory.mktemp("reducing"), config)
    return checkpoint, whole_graph(checkpoint, vit_source)


def random_checkpoint(folder: Path, config: ModelConfig, std: float = 0.1) -> Checkpoint:
    """Random weights of bridge and reducer around the real backbone."""
    torch.manual_seed(2)
    bridge = Bridge(config)
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.constant_(bridge.attention.scale, 4.0)
    vit = clip_quantizer(config, Path()).vit
    reducer = trained_reducer(config, vit)
    if reducer is not None:
        for parameter in reducer.parameters():
            torch.nn.init.normal_(parameter, std=std)
    llm = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules="0"))
    return save_checkpoint(folder, config, vit.position, bridge, llm, {}, reducer)


def whole_graph(checkpoint: Checkpoint, vit_source: Path) -> onnx.ModelProto:
    """The checkpoint's graph with its weights."""
    graph = stripped_graph(checkpoint, vit_source)
    base = dict(BaseArrays("dinov2-s14-focus", vit_source))
    return filled(graph, checkpoint_arrays(checkpoint.path / "model.safetensors"), base)


def test_the_graph_gives_what_pytorch_gives(
    reducing: tuple[Checkpoint, onnx.ModelProto], tmp_path: Path
) -> None:
    checkpoint, graph = reducing
    save_model(graph, tmp_path / "encoder.onnx")
    parity = encoder_parity(checkpoint, tmp_path / "encoder.onnx", 4).encoder
    assert (parity.clips, parity.ids_differ, parity.safe_ids_differ) == (4, 0.0, 0.0)
    assert parity.token_cosine > 0.99999 and parity.margin_difference < 1e-3


def test_weights_that_two_layers_read_are_in_an_int8_encoder_once(
    vit_source: Path, tmp_path: Path
) -> None:
    """PruMerge's attention reads the query and key of a block, as the block does."""
    checkpoint = random_checkpoint(tmp_path, config_of("reducer:prumerge"))
    light = int8_encoder(whole_graph(checkpoint, vit_source))
    names = [item.name for item in light.graph.initializer]
    assert len(names) == len({*names})
    onnx.checker.check_model(light)


def test_it_is_described_as_codes_by_value_of_a_fixed_budget(
    reducing: tuple[Checkpoint, onnx.ModelProto],
) -> None:
    checkpoint, graph = reducing
    config = checkpoint.config
    assert f"{PREFIX}{noted_reducer(graph)}" == config.quantizer.kind
    assert adaptive_error_of(graph) is None
    record = quantizer_record(graph, config, {})
    assert (record.kind, record.iterations, record.codebook) == ("kmeans", 0, None)
    assert record.adaptive_error is None
    encoder = encoder_record(graph, config, "encoder.onnx")
    assert tuple(item.name for item in encoder.outputs) == outputs_of(config)


@pytest.mark.parametrize("budget", [1, 9, 64])
def test_the_runtime_reads_it_like_any_other(
    reducing: tuple[Checkpoint, onnx.ModelProto], tmp_path: Path, budget: int
) -> None:
    checkpoint, graph = reducing
    save_model(graph, tmp_path / "encoder.onnx")
    save_model(bridge_of(graph), tmp_path / "bridge.onnx")
    frames = frames_from_scene(scene_from_seed(7, 2), 2)
    codes = OrtEncoder(tmp_path / "encoder.onnx", 1).encode(frames, budget)
    found = OrtBridge(tmp_path / "bridge.onnx").tokens(codes)
    with torch.inference_mode():
        wanted = checkpoint.encoder()(torch.from_numpy(frames), torch.tensor(budget))
    assert found.count == int(wanted.mask.sum()) <= budget
    assert np.array_equal(codes.index_map, wanted.index_map.numpy())
    assert np.abs(found.rows - wanted.tokens[wanted.mask].numpy()).max() < 1e-2


def test_no_matrix_of_all_pairs_is_stored(reducing: tuple[Checkpoint, onnx.ModelProto]) -> None:
    _, graph = reducing
    assert max(node.ByteSize() for node in graph.graph.node) < 200_000
    ort.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])


def test_blocks_that_were_trained_take_the_place_of_the_backbones(
    vit_source: Path, tmp_path: Path
) -> None:
    frozen = config_of("kmeans")
    encoder = frozen.encoder.model_copy(update={"block": 2, "trained_blocks": 1})
    config = frozen.model_copy(update={"encoder": encoder})
    checkpoint = random_checkpoint(tmp_path, config)
    graph = whole_graph(checkpoint, vit_source)
    save_model(graph, tmp_path / "encoder.onnx")
    parity = encoder_parity(checkpoint, tmp_path / "encoder.onnx", 2).encoder
    assert (parity.ids_differ, parity.safe_ids_differ) == (0.0, 0.0)
    assert parity.token_cosine > 0.99999
    trained = checkpoint_arrays(tmp_path / "model.safetensors")
    inside = {item.name: numpy_helper.to_array(item) for item in graph.graph.initializer}
    name = f"quantizer.vit.blocks.{config.encoder.block - 1}.mlp.fc1.weight"
    assert np.array_equal(inside[name], trained[name].astype(np.float32))


# ---- tokens that follow the question


@pytest.fixture(scope="module")
def asking(
    vit_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Checkpoint, onnx.ModelProto, Path]:
    """A checkpoint of windows that are asked, its whole graph, and a folder with its files."""
    folder = tmp_path_factory.mktemp("asking")
    checkpoint = random_checkpoint(folder, config_of(ASKING), std=1.0)
    graph = whole_graph(checkpoint, vit_source)
    save_model(graph, folder / "encoder.onnx")
    save_model(bridge_of(graph), folder / "bridge.onnx")
    return checkpoint, graph, folder


def question(seed: int, width: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0.0, 0.1, width).astype(np.float32)


def test_the_graph_reads_a_question_and_gives_what_pytorch_gives(
    asking: tuple[Checkpoint, onnx.ModelProto, Path],
) -> None:
    checkpoint, graph, folder = asking
    config = checkpoint.config
    parity = encoder_parity(checkpoint, folder / "encoder.onnx", 4).encoder
    assert (parity.clips, parity.ids_differ, parity.safe_ids_differ) == (4, 0.0, 0.0)
    assert parity.token_cosine > 0.9999
    record = encoder_record(graph, config, "encoder.onnx")
    assert [item.name for item in record.inputs] == ["frames", "budget", "text"]
    asked = record.inputs[2]
    assert (asked.dtype, asked.shape) == ("float32", (config.llm.width,))
    told = quantizer_record(graph, config, {})
    assert told.per_question and not quantizer_record(graph, config_of("kmeans"), {}).per_question


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_backend_gives_a_clip_other_tokens_for_another_question(
    asking: tuple[Checkpoint, onnx.ModelProto, Path],
    backend: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint, _, folder = asking
    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path))
    made: Any = OrtEncoder
    if backend == "openvino":
        pytest.importorskip("openvino")
        from vqedge_runtime.encoders.openvino import OpenVinoEncoder as made
    encoder, bridge = made(folder / "encoder.onnx", 1), OrtBridge(folder / "bridge.onnx")
    frames, width = frames_from_scene(scene_from_seed(7, 2), 2), checkpoint.config.llm.width
    texts = [question(seed, width) for seed in (1, 2, 1)]
    first, second, again = (bridge.tokens(encoder.encode(frames, 32, text)) for text in texts)
    assert np.array_equal(first.rows, again.rows) and first.key() != second.key()
    with torch.inference_mode():
        parts = torch.from_numpy(frames), torch.tensor(32), torch.from_numpy(texts[1])
        wanted = checkpoint.encoder()(*parts)
    assert second.count == int(wanted.mask.sum()) == 32
    assert np.array_equal(second.index_map, wanted.index_map.numpy())
    cosines = _cosines(second.rows, wanted.tokens[wanted.mask].numpy())
    assert cosines.min() > (0.9999 if backend == "onnxruntime" else 0.9)
    error = np.abs(second.rows - wanted.tokens[wanted.mask].numpy()).max()
    turned = np.abs(first.rows - second.rows).max()
    print(f"max {error:.1e}, of another question {turned:.1e}")
    assert turned > (5 * error if backend == "onnxruntime" else 1e-3)


def _cosines(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.floating]:
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    found: npt.NDArray[np.floating] = (a * b).sum(axis=1) / lengths
    return found


def test_its_vit_is_made_int8_and_its_windows_are_not(
    asking: tuple[Checkpoint, onnx.ModelProto, Path], tmp_path: Path
) -> None:
    checkpoint, graph, folder = asking
    light = int8_encoder(graph)
    stored = {item.name for item in light.graph.initializer}
    assert {item for item in stored if ".reducer." in item} == {
        item.name for item in graph.graph.initializer if ".reducer." in item.name
    }
    save_model(light, tmp_path / "light.onnx")
    clip = frames_from_scene(scene_from_seed(7, 2), 2)
    bridge, text = OrtBridge(folder / "bridge.onnx"), question(1, checkpoint.config.llm.width)
    full, other = (
        bridge.tokens(OrtEncoder(path, 1).encode(clip, 32, text)).rows
        for path in (folder / "encoder.onnx", tmp_path / "light.onnx")
    )
    cosines = _cosines(full, other)
    print(f"cosines {cosines.min():.4f}, mean {cosines.mean():.4f}")
    assert cosines.mean() > 0.95 and not np.array_equal(full, other)
