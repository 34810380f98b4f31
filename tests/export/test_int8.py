"""The lighter encoder: integers where the ViT multiplies, and hardly another id."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from tiny_export import BothArrays

from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge.errors import ExportError, UsageError
from vqedge_export.assemble import check_precision
from vqedge_export.flips import OnnxReader, Reading, encoders_compared
from vqedge_export.graph import copied, filled
from vqedge_export.int8 import int8_encoder
from vqedge_export.layers import VIT, column_scales, linear_layers, quantised_columns
from vqedge_export.report import VariantParity
from vqedge_runtime.encoders.ort import OrtEncoder

LAYERS = 6  # of the one block: query, key, value, output, fc1, fc2


@pytest.fixture(scope="module")
def both(
    graph: onnx.ModelProto, arrays: BothArrays, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with the encoder in both precisions."""
    folder = tmp_path_factory.mktemp("both")
    model = filled(graph, *arrays)
    (folder / "fp32.onnx").write_bytes(model.SerializeToString(deterministic=True))
    (folder / "int8.onnx").write_bytes(int8_encoder(model).SerializeToString(deterministic=True))
    return folder


def test_every_layer_of_the_vit_multiplies_integers_and_nothing_else_does(both: Path) -> None:
    model = onnx.load(both / "int8.onnx")
    onnx.checker.check_model(model)
    products = [n for n in model.graph.node if n.op_type == "MatMulInteger"]
    assert len(products) == LAYERS
    assert all(n.name.startswith("/quantizer/vit/blocks.0/") for n in products)
    quantisers = [n for n in model.graph.node if n.op_type == "DynamicQuantizeLinear"]
    assert len(quantisers) == LAYERS - 2  # query, key and value read one tensor
    kinds = {item.data_type for item in model.graph.initializer if "/int8" in item.name}
    assert kinds == {onnx.TensorProto.INT8}
    assert not any(
        item.name.endswith("fc1.weight") for item in model.graph.initializer if "vit" in item.name
    )


def test_equal_graphs_give_equal_bytes(
    both: Path, graph: onnx.ModelProto, arrays: BothArrays
) -> None:
    again = int8_encoder(filled(graph, *arrays)).SerializeToString(deterministic=True)
    assert again == (both / "int8.onnx").read_bytes()
    assert len(again) < (both / "fp32.onnx").stat().st_size - 3 * 384 * 384 * 12 * 0.99


def test_a_reader_gives_a_question_to_an_encoder_that_reads_one() -> None:
    values = [
        onnx.helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, [1, 2, 2, 3]),
        onnx.helper.make_tensor_value_info("budget", onnx.TensorProto.INT64, []),
        onnx.helper.make_tensor_value_info("text", onnx.TensorProto.FLOAT, [4]),
    ]
    told = onnx.helper.make_tensor_value_info("index_map", onnx.TensorProto.INT32, [])
    nodes = [
        onnx.helper.make_node("Identity", ["text"], ["features"]),
        onnx.helper.make_node("Cast", ["budget"], ["index_map"], to=onnx.TensorProto.INT32),
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "asked", values, [told]),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    text, clip = np.arange(4, dtype=np.float32), np.zeros((1, 2, 2, 3), np.uint8)
    assert OnnxReader(model, text)(clip, 1).features.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not OnnxReader(model)(clip, 1).features.any()


def test_it_computes_almost_the_same(both: Path) -> None:
    clips = [frames_from_scene(scene_from_seed(11, index), 2) for index in range(4)]
    others = {"int8": OnnxReader(both / "int8.onnx")}
    figures = encoders_compared(OnnxReader(both / "fp32.onnx"), others, clips, 32)["int8"]
    assert figures.safe_nearest_differ <= 0.01
    assert 0.99 < figures.feature_cosine < 0.999999  # that it is another encoder at all
    codes = OrtEncoder(both / "int8.onnx", 1).encode(clips[0], 32)
    assert codes.count == 32 and np.isfinite(codes.values).all()


def test_evening_out_channels_changes_the_integers_not_the_product(
    both: Path, graph: onnx.ModelProto, arrays: BothArrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vqedge_export.int8 as module

    model = filled(graph, *arrays)
    with monkeypatch.context() as patched:
        patched.setattr(module, "channel_factors", lambda width, _: np.ones_like(width))
        plain = module.int8_encoder(model)
    (both / "plain.onnx").write_bytes(plain.SerializeToString())
    copy = copied(model)
    weights = {item.name: item for item in copy.graph.initializer}
    layers = linear_layers(copy.graph)
    module._even_out_channels(copy.graph, layers, weights)
    (both / "even.onnx").write_bytes(copy.SerializeToString())
    clip = frames_from_scene(scene_from_seed(11, 0), 2)
    names = ("fp32", "even", "int8", "plain")
    exact, even, int8, plain8 = (OnnxReader(both / f"{n}.onnx")(clip, 32).features for n in names)
    np.testing.assert_allclose(even, exact, atol=2e-3)
    assert not np.array_equal(int8, plain8)


@pytest.mark.parametrize("shared", ["norms", "matrices"])
def test_what_two_read_is_not_evened_out(shared: str) -> None:
    """Its channels would be divided, or its rows multiplied, twice."""
    rng = np.random.default_rng(0)
    names = [f"w{place}" for place in ((0, 0) if shared == "matrices" else (0, 1))]
    weights = {name: rng.normal(size=(64, 64)).astype(np.float32) / 10 for name in names}
    weights["w0"][:8] *= 20  # rows that call for uneven factors
    nodes, source = [], "x"
    for place, matrix in enumerate(names):
        vectors = [f"{name}{0 if shared == 'norms' else place}" for name in ("scale", "shift")]
        weights |= {vectors[0]: np.ones(64, np.float32), vectors[1]: np.zeros(64, np.float32)}
        normed, product, name = f"n{place}", f"y{place}", f"{VIT}{place}"
        norm = [source, *vectors]
        nodes += [
            onnx.helper.make_node("LayerNormalization", norm, [normed], name=f"{name}/norm"),
            onnx.helper.make_node("MatMul", [normed, matrix], [product], name=f"{name}/fc"),
        ]
        source = product
    ends = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [16, 64])]
        for name in ("x", source)
    )
    stored = [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, shared, *ends, stored),
        opset_imports=[onnx.helper.make_opsetid("", 18)],
        ir_version=9,
    )
    x = rng.normal(size=(16, 64)).astype(np.float32)
    (exact,), (int8,) = (
        ort.InferenceSession(item.SerializeToString()).run(None, {"x": x})
        for item in (model, int8_encoder(model))
    )
    error = float(np.abs(int8 - exact).max() / np.abs(exact).max())
    print(f"{error:.1%} of the largest value")
    assert 0 < error < 0.06


def test_a_graph_of_another_exporter_is_refused() -> None:
    with pytest.raises(ExportError, match="no linear layer"):
        int8_encoder(onnx.ModelProto())


@pytest.mark.parametrize("precision", ["int4", "fp16"])
def test_a_precision_that_no_onnx_encoder_has_is_refused(precision: str) -> None:
    with pytest.raises(UsageError, match=f"--precision {precision}: choose one of fp32, int8"):
        check_precision(precision)


@given(
    arrays_of.arrays(
        np.float32,
        st.tuples(st.integers(1, 9), st.integers(1, 5)),
        elements=st.floats(-9, 9, width=16),
    )
)
def test_integers_are_half_a_step_off_at_most(weight: np.ndarray) -> None:
    scale = column_scales(weight)
    values = quantised_columns(weight, scale)
    assert np.abs(values * scale - weight).max() <= scale.max() * 0.501
    assert values.dtype == np.int8 and np.abs(values.astype(int)).max(initial=0) <= 127


# ---- what is said about a lighter encoder


def reading(features: np.ndarray, ids: list[int]) -> Reading:
    return Reading(features.astype(np.float32), np.array(ids, np.int32))


def figures_of(wanted: Reading, found: Reading) -> VariantParity:
    """Of two encoders that make this of a clip."""
    clip = np.zeros((1, 2, 2, 3), np.uint8)
    return encoders_compared(lambda *_: wanted, {"other": lambda *_: found}, [clip], 4)["other"]


def test_the_same_encoder_differs_in_nothing() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 8))
    one = reading(rows, [i % 5 for i in range(60)])
    figures = figures_of(one, one)
    assert (figures.nearest_differ, figures.maps_differ) == (0.0, 0.0)
    assert figures.feature_cosine == pytest.approx(1.0)


def test_moved_features_are_counted_and_renamed_ids_are_not() -> None:
    corners = np.eye(4)
    ids = [i % 4 for i in range(40)]
    wanted = reading(corners[ids], ids)
    renamed = reading(corners[ids], [3 - i for i in ids])
    assert figures_of(wanted, renamed).maps_differ == 0.0
    moved = corners[ids].copy()
    moved[:10] = np.roll(moved[:10], 1, axis=1)
    elsewhere = np.argmax(moved, axis=1)
    figures = figures_of(wanted, reading(moved, elsewhere.tolist()))
    assert figures.nearest_differ == figures.worst_clip_nearest_differ == 0.25
    assert figures.patches == 40


def test_ids_that_go_by_place_differ_in_nothing_whatever_moves() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 8))
    cells = [i // 15 for i in range(60)]
    figures = figures_of(reading(rows, cells), reading(np.roll(rows, 1, axis=0), cells))
    assert figures.nearest_differ == figures.safe_nearest_differ == figures.maps_differ == 0.0
    assert figures.feature_cosine < 0.9
