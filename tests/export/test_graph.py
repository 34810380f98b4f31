"""The weight-stripped graph: what it holds, and that it computes what PyTorch does once filled."""

from __future__ import annotations

import hashlib
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto
from safetensors import safe_open
from safetensors.numpy import save_file
from tiny_export import LEVELS, Array, BothArrays

from vqedge.budget import ADAPTIVE
from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge.errors import CheckpointError, ConfigError, ExportError
from vqedge.model.checkpoint import Checkpoint, load_tensors
from vqedge.model.encoder import VideoEncoder
from vqedge.nearest_codebook import DOMAIN, OP_NAME
from vqedge_export.assemble import assemble_bundle, graph_of
from vqedge_export.graph import (
    adaptive_error_of,
    bridge_of,
    checkpoint_arrays,
    copied,
    filled,
    save_model,
)
from vqedge_export.onnx_export import INPUTS, outputs_of, stripped_graph
from vqedge_export.pipeline import export_bundle
from vqedge_export.records import encoder_record, quantizer_record
from vqedge_runtime.bridge.ort import OrtBridge
from vqedge_runtime.encoders.ort import OrtEncoder

ROOT = Path(__file__).parents[2]


def assert_one_rounding_apart(found: Array, wanted: Array) -> None:
    """Sums of float32 differ by a hundred-thousandth of the largest; then each is rounded."""
    assert found.dtype == wanted.dtype == np.float16
    apart = np.abs(found.astype(np.float32) - wanted.astype(np.float32))
    largest = np.maximum(np.abs(found), np.abs(wanted))
    assert (apart <= np.spacing(largest) + 1e-5 * largest.max()).all()
    assert (apart > 0).mean() < 0.01


@pytest.mark.parametrize("budget", [ADAPTIVE, 5, 8, 16, 32, 64])
@pytest.mark.parametrize("index", [0, 2])
def test_the_filled_graph_computes_what_pytorch_computes(
    session: ort.InferenceSession, encoder: VideoEncoder, budget: int, index: int
) -> None:
    config = encoder.bridge.config
    frames = frames_from_scene(scene_from_seed(7, index), config.encoder.frames)
    feeds = {"frames": frames, "budget": np.array(budget, np.int64)}
    names = outputs_of(config)
    found = dict(zip(names, session.run(names, feeds), strict=True))
    stored = found[names[-1]]
    with torch.inference_mode():
        wanted = encoder(torch.from_numpy(frames), torch.tensor(budget))
        tokens, *_ = encoder.bridge.rows(torch.from_numpy(stored), wanted.index_map)
    ids, mask, margin = found["index_map"], found["mask"], found["margin"]
    difference = np.abs(found["tokens"] - tokens.numpy())
    print(
        f"max {difference.max():.2e}, mean {difference.mean():.2e}, least margin {margin.min():.2e}"
    )
    assert ids.shape == (2, 16, 16) and ids.dtype == np.int32
    assert np.array_equal(ids, wanted.index_map.numpy())
    assert np.array_equal(mask, wanted.mask.numpy())
    assert int(mask.sum()) == len(np.unique(ids)) <= (budget or 63), "an adaptive one saves codes"
    assert len(np.unique(ids)) > 1, "nothing to compare"
    assert difference.max() < 1e-5
    assert np.abs(wanted.tokens.numpy()).max() > 0.1, "nothing to compare"
    if wanted.codes is not None:
        assert_one_rounding_apart(stored, wanted.codes.numpy())
    assert np.abs(margin - wanted.margin.numpy()).max() < 1e-4
    if wanted.ids is not None:
        assert found["ids"].shape == (64, LEVELS) and found["ids"].dtype == np.int32
        assert np.array_equal(found["ids"], wanted.ids.numpy())
        assert (found["ids"][~mask] == -1).all() and len(np.unique(found["ids"][mask])) > 5


def test_inputs_and_outputs_are_the_contracted_ones(
    session: ort.InferenceSession, checkpoint: Checkpoint
) -> None:
    inputs = {item.name: (item.type, item.shape) for item in session.get_inputs()}
    assert inputs == {
        "frames": ("tensor(uint8)", [2, 224, 224, 3]),
        "budget": ("tensor(int64)", []),
    }
    assert tuple(inputs) == INPUTS
    outputs = {item.name: (item.type, item.shape) for item in session.get_outputs()}
    wanted: dict[str, tuple[str, list[int]]] = {
        "tokens": ("tensor(float)", [64, 64]),
        "index_map": ("tensor(int32)", [2, 16, 16]),
        "mask": ("tensor(bool)", [64]),
        "margin": ("tensor(float)", [2, 16, 16]),
    }
    if checkpoint.config.quantizer.kind == "codebook":
        wanted["ids"] = ("tensor(int32)", [64, LEVELS])
    else:
        wanted["codes"] = ("tensor(float16)", [64, 384])
    assert outputs == wanted
    assert tuple(outputs) == outputs_of(checkpoint.config)


def test_the_manifest_says_what_the_graph_can(
    graph: onnx.ModelProto, checkpoint: Checkpoint, arrays: BothArrays
) -> None:
    config = checkpoint.config
    record = quantizer_record(graph, config, arrays[0])
    learned = config.quantizer.kind == "codebook"
    assert (record.kind, record.codes, record.default_budget) == (config.quantizer.kind, 64, 32)
    assert (record.codebook is not None) == learned
    if record.codebook:
        tables = arrays[0]["bridge.codebook.tables"].astype(np.float32)
        assert (record.codebook.levels, record.codebook.entries) == (LEVELS, 40)
        assert record.codebook.sha256 == hashlib.sha256(tables.tobytes()).hexdigest()
    assert record.adaptive_error == 0.2
    encoder = encoder_record(graph, config, "encoder.onnx")
    assert encoder.variants == ()
    assert tuple(item.name for item in encoder.outputs) == outputs_of(config)
    fixed = copied(graph)
    del fixed.metadata_props[:]
    assert adaptive_error_of(fixed) is None
    assert quantizer_record(fixed, config, arrays[0]).adaptive_error is None


def test_the_runtime_gives_the_codes_and_rows_in_use(
    model: bytes, encoder: VideoEncoder, tmp_path: Path
) -> None:
    (tmp_path / "encoder.onnx").write_bytes(model)
    save_model(bridge_of(onnx.load_from_string(model)), tmp_path / "bridge.onnx")
    frames = frames_from_scene(scene_from_seed(7, 2), 2)
    codes = OrtEncoder(tmp_path / "encoder.onnx", 1).encode(frames, ADAPTIVE)
    found = OrtBridge(tmp_path / "bridge.onnx").tokens(codes)
    with torch.inference_mode():
        wanted = encoder(torch.from_numpy(frames), torch.tensor(ADAPTIVE))
        stored = torch.from_numpy(codes.values)
        tokens, *_ = encoder.bridge.rows(stored, torch.from_numpy(codes.index_map))
    assert 1 < found.count < 64
    assert np.abs(found.rows - tokens.numpy()).max() < 1e-5
    if wanted.ids is None:
        assert wanted.codes is not None and found.ids is None
        assert_one_rounding_apart(codes.values, wanted.codes[wanted.mask].numpy())
    else:
        assert found.ids is not None
        assert np.array_equal(found.ids, wanted.ids[wanted.mask].numpy())


# ---- the bridge


@pytest.mark.parametrize("index", range(8))
def test_the_bridge_gives_the_encoders_tokens_bit_for_bit(
    model: bytes, session: ort.InferenceSession, checkpoint: Checkpoint, index: int
) -> None:
    bridge = ort.InferenceSession(bridge_of(onnx.load_from_string(model)).SerializeToString())
    names = outputs_of(checkpoint.config)
    frames = frames_from_scene(scene_from_seed(11, index), 2)
    feeds = {"frames": frames, "budget": np.array([ADAPTIVE, 8, 32, 64][index % 4], np.int64)}
    found = dict(zip(names, session.run(names, feeds), strict=True))
    stored = {name: found[name] for name in (names[-1], "index_map")}
    assert np.array_equal(bridge.run(None, stored)[0], found["tokens"])
    assert np.abs(found["tokens"]).max() > 0.1, "nothing to compare"


def test_a_bridge_is_made_of_codes_and_map_alone(
    graph: onnx.ModelProto, model: bytes, checkpoint: Checkpoint
) -> None:
    bridge = bridge_of(onnx.load_from_string(model))
    onnx.checker.check_model(bridge)
    values = outputs_of(checkpoint.config)[-1]
    assert [item.name for item in bridge.graph.input] == [values, "index_map"]
    assert [item.name for item in bridge.graph.output] == ["tokens"]
    assert not bridge.functions and not any(node.domain for node in bridge.graph.node)
    names = {item.name for item in bridge.graph.initializer}
    assert all(name.startswith("bridge.") for name in names if "." in name)
    cut = copied(graph)
    del cut.graph.output[1]  # the map
    with pytest.raises(ExportError, match=r"makes its tokens of .*, too; export .* again"):
        bridge_of(cut)


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


@pytest.mark.usefixtures("graph")
def test_it_names_no_place_and_no_tool_of_this_machine(checkpoint: Checkpoint) -> None:
    written = (checkpoint.path / "encoder.graph.onnx").read_bytes()
    places = (ROOT, Path.home(), Path(sys.prefix), checkpoint.path, Path(torch.__file__).parent)
    for place in places:
        assert str(place).encode() not in written
    for word in (b".py", b"site-packages", b"torch", b"/tmp"):
        assert word not in written


@pytest.mark.parametrize("checkpoint", ["kmeans"], indirect=True)
def test_only_other_frames_than_usual_change_the_graph(
    checkpoint: Checkpoint, vit_source: Path, graph: onnx.ModelProto
) -> None:
    """Files name the encoder by its sha256, and so what frames they were made of."""
    assert [item.key for item in graph.metadata_props] == ["vqedge.adaptive_error"]
    frames = checkpoint.config.encoder.model_copy(update={"sampling": "ends"})
    other = replace(checkpoint, config=checkpoint.config.model_copy(update={"encoder": frames}))
    traced = stripped_graph(other, vit_source)
    noted = traced.metadata_props.pop()
    assert (noted.key, noted.value) == ("vqedge.frame_rule", "ends stretch")
    assert traced.SerializeToString(deterministic=True) == graph.SerializeToString(
        deterministic=True
    )


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
    levels = LEVELS if checkpoint.config.quantizer.kind == "codebook" else 0
    assert len(nodes) == checkpoint.config.quantizer.iterations + 1 + levels
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


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_checkpoint_whose_files_are_damaged(tmp_path: Path, content: bytes) -> None:
    for name in ("encoder.graph.onnx", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"encoder\.graph\.onnx: not an ONNX graph; copy"):
        graph_of(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: not a readable safetensors"):
        checkpoint_arrays(tmp_path / "model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "lora.safetensors"])
@pytest.mark.parametrize(
    ("kind", "value"),
    [(np.float16, np.nan), (np.float32, -np.inf), (ml_dtypes.bfloat16, np.nan)],
)
def test_a_number_that_is_not_finite_is_named_before_anything_is_made(
    checkpoint: Checkpoint, graph: onnx.ModelProto, tmp_path: Path, name: str, kind: Any, value: Any
) -> None:
    damaged = shutil.copytree(checkpoint.path, tmp_path / "damaged")
    tensors = checkpoint_arrays(damaged / name)
    last = max(tensors)
    tensors[last] = tensors[last].astype(kind)
    tensors[last].reshape(-1)[-1] = value
    save_file(tensors, damaged / name, safe_open(damaged / name, framework="np").metadata())
    told = rf"damaged/{name}: {re.escape(last)} holds NaN or infinity; train or copy it again"
    with pytest.raises(CheckpointError, match=told):
        assemble_bundle(damaged, tmp_path / "out.vqedge")
    with pytest.raises(CheckpointError, match=told):
        load_tensors(damaged / name)
    assert [item.name for item in tmp_path.iterdir()] == ["damaged"]


# ---- what is refused


def _never(_path: Path) -> Any:
    raise AssertionError("a language model was opened")


@pytest.mark.parametrize(
    ("flag", "options"),
    [("--no-check", {"check": False}), ("--plugin-node", {"plugin_node": True})],
)
def test_what_was_not_measured_is_not_recorded(
    flag: str, options: dict[str, bool], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^--record .*; leave out {flag}$"):
        export_bundle(tmp_path, tmp_path / "out.vqedge", _never, record=True, **options)
    assert not list(tmp_path.iterdir())
