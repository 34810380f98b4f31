"""int8 engines: what the graph says of its layers, what they are calibrated on, what is refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import tiny_quantizer
from tiny_engine import ENGINE_OUTPUTS, tiny_encoder, write_tiny_onnx

from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge.errors import ExportError, ParityError
from vqedge_export.flips import OnnxReader, encoders_compared, feeds_for
from vqedge_export.graph import copied
from vqedge_export.layers import LEVELS, VIT
from vqedge_export.light import light_copy
from vqedge_export.tensorrt import build, qdq
from vqedge_export.tensorrt.build import Source, engine_from_onnx
from vqedge_export.tensorrt.calibration import digest_of, measured_channels, require_nearest_kept
from vqedge_export.tensorrt.job import Job, Outcome
from vqedge_export.tensorrt.options import BuildOptions, Offer
from vqedge_export.tensorrt.prepare import prepare, settle_op
from vqedge_export.tensorrt.qdq import Channels, quantised

LAYERS, INPUTS = 6, 4  # of the one block; query, key and value read one tensor
Clips = list[np.ndarray]


def clips(seed: int, count: int = 2) -> Clips:
    return [frames_from_scene(scene_from_seed(seed, index), 2) for index in range(count)]


@pytest.fixture(scope="module")
def whole(model: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(model)


@pytest.fixture(scope="module")
def channels(whole: onnx.ModelProto) -> dict[str, Channels]:
    return measured_channels(whole, clips(5))


@pytest.fixture(scope="module")
def lowered(whole: onnx.ModelProto, channels: dict[str, Channels]) -> onnx.ModelProto:
    return prepare(copied(whole), "int8", channels=channels)


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}


def test_every_layer_multiplies_what_was_told_in_int8(lowered: onnx.ModelProto) -> None:
    onnx.checker.check_model(lowered)
    maker = {name: node for node in lowered.graph.node for name in node.output}
    values = stored(lowered)
    layers = [
        node
        for node in lowered.graph.node
        if node.op_type == "MatMul"
        and all(name in maker and maker[name].op_type == "DequantizeLinear" for name in node.input)
    ]
    assert len(layers) == LAYERS and all(node.name.startswith(VIT) for node in layers)
    quantisers = [node for node in lowered.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantisers) == INPUTS
    for layer in layers:
        source, weight = (maker[name] for name in layer.input)
        assert values[source.input[1]].shape == (), "one scale for the input"
        columns = values[weight.input[0]].shape[1]
        assert values[weight.input[1]].shape == (columns,), "a scale for every column"
        assert values[weight.input[0]].dtype == np.int8
        assert not any(values[node.input[2]].any() for node in (source, weight)), "symmetric"


def test_scales_are_float16_and_large_enough_for_it(lowered: onnx.ModelProto) -> None:
    values = stored(lowered)
    steps = [
        values[node.input[1]]
        for node in lowered.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert {step.dtype for step in steps} == {np.dtype(np.float16)}
    assert min(step.min() for step in steps) >= 2.0**-14
    opsets = [lowered.opset_import, *(function.opset_import for function in lowered.functions)]
    assert all(item.version >= 19 for found in opsets for item in found if not item.domain)


def test_channels_are_those_of_the_tensors_themselves(
    whole: onnx.ModelProto, channels: dict[str, Channels]
) -> None:
    shown = copied(whole)
    for name in channels:
        shown.graph.output.add(name=name)
    with light_copy(shown) as copy:
        session = copy.session()
    passes = [session.run([*channels], feeds_for(session, clip, 1)) for clip in clips(5)]
    for found, seen in zip(channels.values(), zip(*passes, strict=True), strict=True):
        rows = np.concatenate(seen).reshape(-1, seen[0].shape[-1])
        assert found.largest.dtype == np.float32 and found.power.dtype == np.float64
        np.testing.assert_allclose(found.largest, np.abs(rows).max(axis=0), rtol=1e-4)
        np.testing.assert_allclose(found.power, np.square(rows).mean(axis=0), rtol=1e-4)


def test_it_keeps_the_ids_of_clips_it_was_not_calibrated_on(
    whole: onnx.ModelProto, lowered: onnx.ModelProto
) -> None:
    figures = require_nearest_kept(whole, lowered, clips(11, 3), 16)
    print(figures)
    assert 0.99 < figures.feature_cosine < 0.999999, "that it is another encoder at all"


def test_one_scale_without_evening_turns_more_ids(
    whole: onnx.ModelProto,
    lowered: onnx.ModelProto,
    channels: dict[str, Channels],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(qdq, "channel_factors", lambda width, _: np.ones_like(width))
    monkeypatch.setattr(qdq, "_LEAST_SIGNAL_DB", 0.0)
    uneven = prepare(copied(whole), "int8", channels=channels)
    others = {"uneven": OnnxReader(uneven), "even": OnnxReader(lowered)}
    figures = encoders_compared(OnnxReader(whole), others, clips(11, 3), 16)
    assert figures["uneven"].feature_cosine < figures["even"].feature_cosine


def test_ids_that_turn_are_refused(whole: onnx.ModelProto, channels: dict[str, Channels]) -> None:
    wrong = {name: Channels(item.largest / 9, item.power / 81) for name, item in channels.items()}
    clipped = prepare(copied(whole), "int8", channels=wrong)
    with pytest.raises(ParityError, match=r"int8 brings .*% of safe patches.*--calibrate FOLDER"):
        require_nearest_kept(whole, clipped, clips(11, 3), 16)


# ---- on a graph of one layer


def one_layer(weight: np.ndarray) -> onnx.ModelProto:
    width = weight.shape[0]
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name=f"{VIT}fc/MatMul")
    graph = helper.make_graph(
        [node],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def seen(rows: np.ndarray) -> dict[str, Channels]:
    power = np.square(rows, dtype=np.float64).mean(axis=0)
    return {"x": Channels(np.abs(rows).max(axis=0), power)}


def products(model: onnx.ModelProto, rows: np.ndarray) -> np.ndarray:
    with light_copy(model) as copy:
        (found,) = copy.session().run(["y"], {"x": rows})
    return np.asarray(found)


def test_uneven_channels_cost_little() -> None:
    random = np.random.default_rng(0)
    spread = np.geomspace(0.02, 20, 64).astype(np.float32)
    rows = (random.uniform(-1, 1, (200, 64)) * spread).astype(np.float32)
    weight = (random.normal(size=(64, 32)) / spread[:, None]).astype(np.float32)
    found = products(quantised(one_layer(weight), seen(rows)), rows)
    exact = rows @ weight
    step = np.abs(rows).max() / LEVELS
    told_plainly = np.rint(rows / step).clip(-LEVELS, LEVELS) * step @ weight
    assert np.abs(found - exact).mean() < 0.1 * np.abs(told_plainly - exact).mean()


def test_an_input_too_coarse_for_int8_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    rows = np.full((2000, 2), 0.01, np.float32)
    rows[0] = 50  # one value in a thousand makes the step forty times the others
    model = one_layer(np.eye(2, dtype=np.float32))
    lonely = seen(np.vstack([rows, np.full_like(rows, 0.01)] * 40))
    with pytest.raises(ExportError, match="can be told in int8; use --precision fp16"):
        quantised(model, lonely)
    both = one_layer(np.eye(2, dtype=np.float32))
    second = helper.make_node("MatMul", ["y", "w"], ["z"], name=f"{VIT}fc2/MatMul")
    both.graph.node.append(second)
    even = seen(np.random.default_rng(0).uniform(-1, 1, (99, 2)).astype(np.float32))["x"]
    with caplog.at_level(logging.WARNING):
        quantised(both, {"x": lonely["x"], "y": even})
    assert "1 of 2 inputs of layers stay in floating point" in caplog.text
    kept = [node.name for node in both.graph.node if list(node.input) == ["x", "w"]]
    assert kept == [f"{VIT}fc/MatMul"]


def test_a_column_of_nothing_and_a_channel_of_nothing_are_no_fault() -> None:
    rows = np.random.default_rng(1).uniform(-1, 1, (50, 3)).astype(np.float32)
    rows[:, 1] = 0
    weight = np.array([[1, 0], [2, 0], [-1, 0]], np.float32)
    found = products(quantised(one_layer(weight), seen(rows)), rows)
    assert np.isfinite(found).all() and not found[:, 1].any()
    assert np.abs(found - rows @ weight).max() < 0.03


def test_a_graph_without_layers_is_refused() -> None:
    with pytest.raises(ExportError, match="has no linear layer below"):
        measured_channels(onnx.ModelProto(), clips(5, 1))


# ---- building


def test_a_graph_of_plain_nodes_is_calibrated_too(
    whole: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    plain = copied(whole)
    settle_op(plain, plugin=True)
    assert len(plain.functions) < len(whole.functions), "ONNX Runtime cannot run it as it is"
    onnx.save(plain, str(tmp_path / "encoder.onnx"))
    monkeypatch.setattr(build, "CHECK_CLIPS", 1)
    frames, size = clips(5, 1)[0].shape[:2]
    source = Source(
        tmp_path / "encoder.onnx", tiny_encoder(frames=frames, size=size), tiny_quantizer()
    )
    int8, path = BuildOptions(precision="int8"), tmp_path / "prepared.onnx"
    build._write_graph(path, source, int8, clips(5), plugin=True)
    found = onnx.load(str(path))
    assert any(node.op_type == "QuantizeLinear" for node in found.graph.node)
    assert not found.functions, "a plugin takes plain nodes"
    assert "on 2 generated clips only; --calibrate FOLDER adds" in caplog.text


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> list[Sequence[np.ndarray]]:
    """Which clips a graph was calibrated on, once for every engine that is built."""
    asked: list[Sequence[np.ndarray]] = []
    offer = Offer("tensorrt-rtx", "1.7.1.116", None, ("8.6",), weak_typing=False)

    def run(job: Job) -> Outcome:
        if job.engine is not None:
            job.engine.write_bytes(b"plan")
        tensors = tiny_encoder().inputs, ENGINE_OUTPUTS
        return Outcome(offer=offer, inputs=tensors[0], outputs=tensors[1])

    def write(_path: Path, _source: Any, _options: Any, clips: Any, _plugin: bool) -> None:
        asked.append(clips)

    monkeypatch.setattr(build, "run_job", run)
    monkeypatch.setattr(build, "_write_graph", write)
    return asked


def test_the_clips_are_part_of_the_key(tmp_path: Path, built: list[Sequence[np.ndarray]]) -> None:
    path = write_tiny_onnx(tmp_path / "encoder.onnx")
    source = Source(path, tiny_encoder(size=32), tiny_quantizer())
    own = replace(source, calibration=tuple(clips(3, 1)))
    int8 = BuildOptions(precision="int8", capabilities=("8.6",))
    keys = [engine_from_onnx(item, "tensorrt-rtx", int8)[1].key for item in (source, own, own)]
    assert keys[0] != keys[1] == keys[2]
    assert [len(item) for item in built] == [8, 9], "the third came from the cache"
    engine_from_onnx(own, "tensorrt-rtx", replace(int8, precision="fp16"))
    assert not built[-1], "fp16 is not calibrated"


def test_a_digest_tells_pixels_and_shapes_apart() -> None:
    clip = np.zeros((2, 4, 4, 3), np.uint8)
    changed = clip.copy()
    changed[1, 2, 3, 0] = 1
    digests = [digest_of([c]) for c in (clip, changed, clip.reshape(4, 2, 4, 3))]
    assert len({*digests, digest_of([clip, clip])}) == 4
