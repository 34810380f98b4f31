"""The weight-stripped graph: what it holds, and that it computes what PyTorch does once filled."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from peft import LoraConfig, get_peft_model

from vqedge.config import AttentionConfig, EncoderConfig, LlmConfig, ModelConfig, QuantizerConfig
from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge.errors import CheckpointError
from vqedge.model.checkpoint import Checkpoint, clip_quantizer, save_checkpoint
from vqedge.model.encoder import Bridge, VideoEncoder
from vqedge.nearest_codebook import DOMAIN, OP_NAME
from vqedge_export.assemble import graph_of
from vqedge_export.graph import base_arrays, checkpoint_arrays, filled, save_model
from vqedge_export.onnx_export import INPUTS, OUTPUTS, stripped_graph, write_graph

Array = np.ndarray[Any, Any]
BothArrays = tuple[dict[str, Array], dict[str, Array]]
ROOT = Path(__file__).parents[2]
CONFIG = ModelConfig(
    encoder=EncoderConfig(block=1, frames=2),
    quantizer=QuantizerConfig(codes=32, iterations=2),
    attention=AttentionConfig(width=48, heads=2, depth=1),
    llm=LlmConfig(width=64),
)


@pytest.fixture(scope="module")
def checkpoint(vit_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Random bridge behind the real backbone's first block."""
    torch.manual_seed(2)
    bridge = Bridge(CONFIG)
    for parameter in bridge.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    llm = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules="0"))
    position = clip_quantizer(CONFIG).vit.position
    folder = tmp_path_factory.mktemp("checkpoint")
    return save_checkpoint(folder, CONFIG, position, bridge, llm, {})


@pytest.fixture(scope="module")
def arrays(checkpoint: Checkpoint, vit_source: Path) -> BothArrays:
    """Tensors of the checkpoint and of the backbone."""
    return checkpoint_arrays(checkpoint.path / "model.safetensors"), base_arrays(vit_source)


@pytest.fixture(scope="module")
def graph(checkpoint: Checkpoint, vit_source: Path) -> onnx.ModelProto:
    write_graph(checkpoint, vit_source)
    return graph_of(checkpoint.path)


@pytest.fixture(scope="module")
def model(graph: onnx.ModelProto, arrays: BothArrays) -> bytes:
    return filled(graph, *arrays).SerializeToString(deterministic=True)


@pytest.fixture(scope="module")
def session(model: bytes) -> ort.InferenceSession:
    onnx.checker.check_model(onnx.load_from_string(model))
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def encoder(checkpoint: Checkpoint) -> VideoEncoder:
    return checkpoint.encoder()


@pytest.mark.parametrize("budget", [32, 5])
@pytest.mark.parametrize("index", [0, 1])
def test_the_filled_graph_computes_what_pytorch_computes(
    session: ort.InferenceSession, encoder: VideoEncoder, budget: int, index: int
) -> None:
    frames = frames_from_scene(scene_from_seed(7, index), CONFIG.encoder.frames)
    feeds = {"frames": frames, "budget": np.array(budget, np.int64)}
    tokens, ids, mask, margin = session.run(list(OUTPUTS), feeds)
    with torch.inference_mode():
        wanted = encoder(torch.from_numpy(frames), torch.tensor(budget))
    difference = np.abs(tokens - wanted.tokens.numpy())
    print(
        f"max {difference.max():.2e}, mean {difference.mean():.2e}, least margin {margin.min():.2e}"
    )
    assert ids.shape == (2, 16, 16) and ids.dtype == np.int32
    assert np.array_equal(ids, wanted.index_map.numpy())
    assert np.array_equal(mask, wanted.mask.numpy())
    assert int(mask.sum()) == len(np.unique(ids)) <= budget
    assert len(np.unique(ids)) > 1, "nothing to compare"
    assert difference.max() < 1e-5
    assert np.abs(wanted.tokens.numpy()).max() > 0.1, "nothing to compare"
    assert np.abs(margin - wanted.margin.numpy()).max() < 1e-4


def test_inputs_and_outputs_are_the_contracted_ones(session: ort.InferenceSession) -> None:
    inputs = {item.name: (item.type, item.shape) for item in session.get_inputs()}
    assert inputs == {
        "frames": ("tensor(uint8)", [2, 224, 224, 3]),
        "budget": ("tensor(int64)", []),
    }
    assert tuple(inputs) == INPUTS
    outputs = {item.name: item.type for item in session.get_outputs()}
    assert tuple(outputs) == OUTPUTS
    kinds = ["tensor(float)", "tensor(int32)", "tensor(bool)", "tensor(float)"]
    assert list(outputs.values()) == kinds


# ---- what the stripped graph holds


def test_it_is_small_and_holds_no_weight(
    graph: onnx.ModelProto,
    arrays: BothArrays,
    checkpoint: Checkpoint,
) -> None:
    written = (checkpoint.path / "encoder.graph.onnx").read_bytes()
    inside = [item for item in graph.graph.initializer if item.data_location == TensorProto.DEFAULT]
    print(f"{len(written)} bytes, {len(inside)} small tensors inside")
    assert len(written) < 400_000  # the weights it refers to are 30 times that
    assert sum(item.ByteSize() for item in inside) < 5_000
    looked_for = 0
    for name, array in [*arrays[0].items(), *arrays[1].items()]:
        for kind in (np.float16, np.float32):
            start = array.reshape(-1)[:16].astype(kind)
            if len(np.unique(start)) == 16:  # not a row of zeros or ones
                assert start.tobytes() not in written, name
                looked_for += 1
    assert looked_for > 100


def test_it_refers_to_the_file_that_holds_each_weight(
    graph: onnx.ModelProto, arrays: BothArrays
) -> None:
    named = {
        item.name: {entry.key: entry.value for entry in item.external_data}["location"]
        for item in graph.graph.initializer
        if item.data_location == TensorProto.EXTERNAL
    }
    checkpoint, base = arrays
    wanted = dict.fromkeys(checkpoint, "model.safetensors")
    used = ("quantizer.vit.patch.", "quantizer.vit.cls_token", "quantizer.vit.norm.")
    block = "quantizer.vit.blocks.0."
    wanted |= {name: "base" for name in base if name.startswith((*used, block))}
    assert named == wanted


def test_it_names_no_place_and_no_tool_of_this_machine(checkpoint: Checkpoint) -> None:
    written = (checkpoint.path / "encoder.graph.onnx").read_bytes()
    places = (ROOT, Path.home(), Path(sys.prefix), checkpoint.path, Path(torch.__file__).parent)
    for place in places:
        assert str(place).encode() not in written
    for word in (b".py", b"site-packages", b"torch", b"/tmp"):
        assert word not in written


def test_a_plugin_node_is_the_same_graph_without_the_function(
    checkpoint: Checkpoint, vit_source: Path, graph: onnx.ModelProto
) -> None:
    bare = stripped_graph(checkpoint, vit_source, custom_node=True)
    assert [item.name for item in graph.functions] == [OP_NAME] and not bare.functions
    assert bare.graph.SerializeToString(deterministic=True) == graph.graph.SerializeToString(
        deterministic=True
    )
    nodes = [node for node in bare.graph.node if node.domain == DOMAIN]
    assert {node.op_type for node in nodes} == {OP_NAME}
    assert len(nodes) == CONFIG.quantizer.iterations + 1
    assert {item.domain for item in bare.opset_import} == {"", DOMAIN}


# ---- filling


def test_filling_twice_gives_the_same_bytes(
    graph: onnx.ModelProto,
    arrays: BothArrays,
    model: bytes,
    tmp_path: Path,
) -> None:
    before = graph.SerializeToString(deterministic=True)
    save_model(filled(graph, *arrays), tmp_path / "encoder.onnx")
    assert (tmp_path / "encoder.onnx").read_bytes() == model
    assert graph.SerializeToString(deterministic=True) == before, "the graph itself was filled"


def test_weights_of_a_filled_graph_are_those_of_the_files(arrays: BothArrays, model: bytes) -> None:
    known = {**arrays[0], **arrays[1]}
    found = {item.name: item for item in onnx.load_from_string(model).graph.initializer}
    compared = 0
    for name, item in found.items():
        assert item.data_location == TensorProto.DEFAULT
        if name in known:
            stored = onnx.numpy_helper.to_array(item)
            assert stored.dtype == np.float32
            assert np.array_equal(stored, known[name].astype(np.float32)), name
            compared += 1
    assert compared > 30


@pytest.mark.parametrize(
    "name", ["bridge.attention.code.bias", "quantizer.vit.blocks.0.norm1.bias"]
)
@pytest.mark.parametrize("missing", [True, False])
def test_a_weight_that_is_missing_or_has_another_shape(
    graph: onnx.ModelProto,
    arrays: BothArrays,
    name: str,
    missing: bool,
) -> None:
    sources = [dict(source) for source in arrays]
    (source,) = [source for source in sources if name in source]
    wrong = source.pop(name)[:-1]
    if not missing:
        source[name] = wrong
    with pytest.raises(CheckpointError, match=rf"wants '{name}' .*do not belong together"):
        filled(graph, *sources)


def test_a_checkpoint_without_its_graph(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"no encoder\.graph\.onnx; .*`vqedge export .* --record`"
    ):
        graph_of(tmp_path)
