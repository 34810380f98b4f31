"""The graph as TensorRT takes it: the same values, and float16 only where it may be."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tiny_bundle import tiny_quantizer
from tiny_engine import tiny_encoder

from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge.errors import ExportError
from vqedge.nearest_codebook import OP_NAME
from vqedge_export.graph import copied
from vqedge_export.layers import VIT
from vqedge_export.tensorrt import build
from vqedge_export.tensorrt.build import Source
from vqedge_export.tensorrt.calibration import require_half_range
from vqedge_export.tensorrt.options import BuildOptions
from vqedge_export.tensorrt.prepare import prepare, settle_op
from vqedge_export.tensorrt.region import vit_region

Outputs = dict[str, np.ndarray]


def opened(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def frames_of(index: int) -> np.ndarray:
    return frames_from_scene(scene_from_seed(7, index), 2)


def run(session: ort.InferenceSession, index: int, budget: int) -> Outputs:
    frames = frames_of(index)
    names = [item.name for item in session.get_outputs()]
    feeds = {"frames": frames, "budget": np.array(budget, np.int64)}
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.fixture(scope="module")
def whole(model: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(model)


@pytest.fixture(scope="module")
def full(whole: onnx.ModelProto) -> onnx.ModelProto:
    return prepare(copied(whole), "fp32")


@pytest.fixture(scope="module")
def half(whole: onnx.ModelProto) -> onnx.ModelProto:
    return prepare(copied(whole), "fp16")


def test_the_prepared_graph_gives_the_same_bits(
    session: ort.InferenceSession, full: onnx.ModelProto
) -> None:
    prepared_session = opened(full)
    for budget in (0, 8, 64):
        wanted, found = run(session, 0, budget), run(prepared_session, 0, budget)
        assert found.keys() == wanted.keys() - {"tokens"}
        for name, value in found.items():
            assert np.array_equal(value, wanted[name]), name


def test_the_original_is_left_alone(whole: onnx.ModelProto, model: bytes) -> None:
    prepare(copied(whole), "fp16")
    assert whole.SerializeToString(deterministic=True) == model


def test_pixels_are_cast_before_anything_else(full: onnx.ModelProto) -> None:
    readers = [node.op_type for node in full.graph.node if "frames" in node.input]
    assert readers == ["Cast"]


def test_searches_see_two_dimensions(full: onnx.ModelProto) -> None:
    made_by = {name: node.op_type for node in full.graph.node for name in node.output}
    searches = [node for node in full.graph.node if node.op_type in ("ArgMax", "ArgMin", "TopK")]
    assert len(searches) > 60
    assert {made_by[node.input[0]] for node in searches} == {"Unsqueeze"}


def test_a_plugin_gets_plain_nodes_and_the_rest_a_body(
    whole: onnx.ModelProto, session: ort.InferenceSession
) -> None:
    plain = prepare(copied(whole), "fp32")
    settle_op(plain, plugin=True)
    assert not plain.functions
    count = [node.op_type for node in whole.graph.node].count(OP_NAME)
    assert [node.op_type for node in plain.graph.node].count(OP_NAME) == count > 1
    again = copied(plain)
    settle_op(again, plugin=False)
    assert [item.name for item in again.functions] == [OP_NAME]
    name = session.get_outputs()[-1].name  # codes, or ids of a codebook
    assert np.array_equal(run(opened(again), 0, 16)[name], run(session, 0, 16)[name])


def test_float16_turns_few_ids(session: ort.InferenceSession, half: onnx.ModelProto) -> None:
    half_session = opened(half)
    rates = []
    for index in range(3):
        wanted, found = run(session, index, 16), run(half_session, index, 16)
        differs = wanted["index_map"] != found["index_map"]
        there = wanted["margin"][differs].max(initial=0.0)
        print(f"{differs.mean():.4%} of ids differ, largest margin there {there:.2e}")
        rates.append(differs.mean())
        assert len(np.unique(wanted["index_map"])) > 4, "nothing to compare"
        assert not np.array_equal(wanted["margin"], found["margin"]), "float16 changes something"
    assert np.median(rates) < 0.02


def test_what_the_quantizer_reads_is_float32(full: onnx.ModelProto, half: onnx.ModelProto) -> None:
    leaving = vit_region(full).exit
    (maker,) = [node for node in half.graph.node if leaving in node.output]
    assert maker.op_type == "Cast" and maker.attribute[0].i == TensorProto.FLOAT
    kinds = {item.name: item.data_type for item in half.graph.initializer}
    for node in half.graph.node:
        halves = [name for name in node.input if kinds.get(name) == TensorProto.FLOAT16]
        assert not halves or node.name.startswith(VIT), node.name


def test_weights_take_half_the_room(full: onnx.ModelProto, half: onnx.ModelProto) -> None:
    assert half.ByteSize() < 0.6 * full.ByteSize()


def test_every_matrix_product_of_the_vit_is_float16(half: onnx.ModelProto) -> None:
    kinds = {item.name: item.data_type for item in half.graph.initializer}
    weights = [
        kinds[node.input[1]]
        for node in half.graph.node
        if node.op_type in ("MatMul", "Conv")
        and node.name.startswith(VIT)
        and node.input[1] in kinds
    ]
    assert len(weights) >= 7 and set(weights) == {TensorProto.FLOAT16}


def test_weak_typing_leaves_the_types_to_tensorrt(
    whole: onnx.ModelProto, full: onnx.ModelProto
) -> None:
    weak = prepare(copied(whole), "fp16", weak=True)
    assert weak.SerializeToString(deterministic=True) == full.SerializeToString(deterministic=True)


def test_a_strange_graph_is_refused_with_a_way_out() -> None:
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, [1])
    node = helper.make_node("Cast", ["frames"], ["x"], name="cast", to=TensorProto.FLOAT)
    model = helper.make_model(helper.make_graph([node], "strange", [frames], []))
    with pytest.raises(ExportError, match="use --precision fp32"):
        vit_region(model)


def with_bias(model: onnx.ModelProto, name: str, value: float) -> onnx.ModelProto:
    """A copy in which the bias of this name is the value everywhere."""
    copy = copied(model)
    tensor = next(i for i in copy.graph.initializer if i.name.endswith(name))
    values = np.full(tuple(tensor.dims), value, np.float32)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return copy


def test_a_weight_too_large_for_float16_is_named(whole: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match=r"patch\.bias: a value is too large for float16"):
        prepare(with_bias(whole, "patch.bias", 1e5), "fp16")


def test_values_too_large_for_float16_are_refused_where_they_first_are(
    whole: onnx.ModelProto, tmp_path: Path
) -> None:
    """No weight is; the GELU doubles what the layer before it gives."""
    wrong = with_bias(whole, "blocks.0.mlp.fc1.bias", 40_000)
    prepare(copied(wrong), "fp16")
    onnx.save(wrong, str(tmp_path / "encoder.onnx"))
    encoder = tiny_encoder(frames=2, size=frames_of(0).shape[1])
    source = Source(tmp_path / "encoder.onnx", encoder, tiny_quantizer())
    path = tmp_path / "prepared.onnx"
    for typing in ("strong", "weak"):
        half = BuildOptions(precision="fp16", typing=typing)
        with pytest.raises(ExportError, match=r"blocks\.0/mlp/Mul: .* holds 65,504 .* fp32"):
            build._write_graph(path, source, half, (), plugin=False)
    assert not path.exists()
    build._write_graph(path, source, BuildOptions(precision="fp32"), (), plugin=False)


@pytest.mark.parametrize(("bias", "level"), [(0, "INFO"), (40_000, "WARNING")])
def test_the_largest_value_is_told_and_a_warning_where_little_room_is_left(
    whole: onnx.ModelProto, caplog: pytest.LogCaptureFixture, bias: float, level: str
) -> None:
    caplog.set_level(logging.INFO)
    require_half_range(with_bias(whole, "blocks.0.mlp.fc2.bias", bias), [frames_of(0)])
    (record,) = caplog.records
    assert record.levelname == level
    assert ("mlp/fc2/Add" in record.message) == bool(bias)
