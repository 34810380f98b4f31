"""NearestCodebook: NumPy, PyTorch and the ONNX function against a float64 brute force."""

from __future__ import annotations

import functools
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

import vqedge.model.nearest_codebook  # noqa: F401 - registers torch.ops.vqedge.nearest_codebook
from vqedge.errors import ExportError
from vqedge.nearest_codebook import DOMAIN, OP_NAME, Metric, nearest_codebook
from vqedge_export.op_function import OPSET, attach_function, nearest_codebook_function

Array = np.ndarray[Any, Any]
Choice = tuple[Array, Array]
METRICS = get_args(Metric)
ONNX_TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
_ROUNDING = 1e-6  # of one float32 score of up to 64 products, relative to the vectors' lengths

# ---- the implementations, each NumPy in and NumPy out; `dtype` is what the op itself is given


def by_numpy(x: Array, codebook: Array, metric: str) -> Choice:
    return nearest_codebook(x, codebook, metric)  # type: ignore[arg-type]


def by_torch(x: Array, codebook: Array, metric: str, dtype: torch.dtype | None = None) -> Choice:
    rows, codes = torch.from_numpy(x), torch.from_numpy(codebook)
    if dtype is not None:
        rows, codes = rows.to(dtype), codes.to(dtype)
    indices, margin = torch.ops.vqedge.nearest_codebook(rows, codes, metric)
    return indices.numpy(), margin.numpy()


def by_onnx(x: Array, codebook: Array, metric: str) -> Choice:
    session = _session(metric, x.dtype.name)
    indices, margin = session.run(None, {"x": x, "codebook": codebook})
    return indices, margin


@functools.cache
def _session(metric: str, dtype: str) -> ort.InferenceSession:
    model = _model(dtype, metric=metric)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def _model(dtype: str, margin: bool = True, **attributes: str) -> onnx.ModelProto:
    """One NearestCodebook node with its function, nothing else."""
    outputs = ["indices", "margin"] if margin else ["indices"]
    node = helper.make_node(OP_NAME, ["x", "codebook"], outputs, domain=DOMAIN, **attributes)
    kind = ONNX_TYPES[dtype]
    graph = helper.make_graph(
        [node],
        "nearest",
        [
            helper.make_tensor_value_info("x", kind, ["N", "D"]),
            helper.make_tensor_value_info("codebook", kind, ["K", "D"]),
        ],
        [
            helper.make_tensor_value_info("indices", TensorProto.INT32, ["N"]),
            helper.make_tensor_value_info("margin", TensorProto.FLOAT, ["N"]),
        ][: len(outputs)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    attach_function(model)
    onnx.checker.check_model(model)
    return model


IMPLEMENTATIONS = {"numpy": by_numpy, "torch": by_torch, "onnx": by_onnx}
every_implementation = pytest.mark.parametrize("name", IMPLEMENTATIONS)

# ---- the brute force, in float64


def similarities(x: Array, codebook: Array, metric: str) -> Array:
    """[N, K], one cell at a time and by another formula than the op's."""
    rows, codes = x.astype(np.float64), codebook.astype(np.float64)
    table = np.empty((len(rows), len(codes)))
    for n, row in enumerate(rows):
        for k, code in enumerate(codes):
            table[n, k] = _similarity(row, code, metric)
    return table


def _similarity(row: Array, code: Array, metric: str) -> float:
    if metric == "l2":
        return -float(((row - code) ** 2).sum())
    dot = float((row * code).sum())
    if metric == "dot":
        return dot
    lengths = float(np.sqrt((row**2).sum()) * np.sqrt((code**2).sum()))
    return dot / lengths if lengths else 0.0


def best_and_margin(table: Array) -> Choice:
    """Lowest best index and its lead, with the contract's word on NaN and on K = 1."""
    indices, margin = np.zeros(len(table), np.int64), np.zeros(len(table))
    for n, row in enumerate(table):
        if np.isnan(row).any():
            continue
        best = max(range(len(row)), key=lambda k: (row[k], -k))
        others = np.delete(row, best)
        indices[n] = best
        margin[n] = row[best] - others.max() if len(others) else np.inf
    return indices, margin


def rounding_bound(x: Array, codebook: Array, metric: str) -> Array:
    """[N], how far float32 scores may be off."""
    if metric == "cosine":
        return np.full(len(x), _ROUNDING)
    rows, codes = x.astype(np.float64), codebook.astype(np.float64)
    longest = np.sqrt((codes**2).sum(axis=1)).max()
    lengths = np.sqrt((rows**2).sum(axis=1))
    return _ROUNDING * np.nan_to_num(2 * lengths * longest + longest**2)


# ---- random cases


@st.composite
def floats_case(draw: st.DrawFn) -> tuple[Array, Array]:
    """Real numbers of any scale, with repeated codes, rows that are codes, and rows with a NaN."""
    rows, codes, width = (draw(st.integers(low, high)) for low, high in ((0, 9), (1, 12), (1, 33)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = 10.0 ** draw(st.integers(-2, 2))
    x = rng.standard_normal((rows, width)) * scale
    codebook = rng.standard_normal((codes, width)) * scale
    if draw(st.booleans()):
        codebook[rng.integers(codes)] = codebook[rng.integers(codes)]
    if draw(st.booleans()) and rows:
        x[rng.integers(rows)] = codebook[rng.integers(codes)]
    if draw(st.booleans()) and rows:
        x[rng.integers(rows), rng.integers(width)] = np.nan
    dtype = draw(st.sampled_from(list(ONNX_TYPES)))
    return x.astype(dtype), codebook.astype(dtype)


@st.composite
def integers_case(draw: st.DrawFn) -> tuple[Array, Array]:
    """Small whole numbers: every sum is exact in float32 in any order, so ties are real ties."""
    rows, codes, width = (draw(st.integers(low, high)) for low, high in ((0, 9), (1, 12), (1, 64)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    largest = draw(st.sampled_from([1, 2, 8]))
    x = rng.integers(-largest, largest + 1, (rows, width)).astype(np.float64)
    codebook = rng.integers(-largest, largest + 1, (codes, width)).astype(np.float64)
    if draw(st.booleans()) and rows:
        x[rng.integers(rows), rng.integers(width)] = np.nan
    dtype = draw(st.sampled_from(list(ONNX_TYPES)))
    return x.astype(dtype), codebook.astype(dtype)


every_metric = pytest.mark.parametrize("metric", METRICS)


@every_implementation
@every_metric
@given(case=floats_case())
@settings(max_examples=120)
def test_the_nearest_code_is_chosen_wherever_it_is_clear(
    name: str, metric: str, case: tuple[Array, Array]
) -> None:
    x, codebook = case
    indices, margin = IMPLEMENTATIONS[name](x, codebook, metric)
    assert (indices.dtype, margin.dtype) == (np.int32, np.float32)
    assert indices.shape == margin.shape == (len(x),)
    wanted, lead = best_and_margin(similarities(x, codebook, metric))
    bound = rounding_bound(x, codebook, metric)
    clear = lead > 2 * bound
    assert (indices[clear] == wanted[clear]).all()
    with np.errstate(invalid="ignore"):  # inf - inf, where there is one code
        assert ((margin == lead) | (np.abs(margin - lead) <= 2 * bound)).all()
    broken = np.isnan(x).any(axis=1)
    assert (indices[broken] == 0).all() and (margin[broken] == 0).all()


@every_implementation
@pytest.mark.parametrize("metric", ["l2", "dot"])
@given(case=integers_case())
@settings(max_examples=120)
def test_ties_go_to_the_lowest_index_and_margins_are_exact(
    name: str, metric: str, case: tuple[Array, Array]
) -> None:
    x, codebook = case
    indices, margin = IMPLEMENTATIONS[name](x, codebook, metric)
    wanted, lead = best_and_margin(similarities(x, codebook, metric))
    assert indices.tolist() == wanted.tolist()
    assert margin.tolist() == lead.tolist()


@every_metric
@given(case=integers_case())
@settings(max_examples=60)
def test_bfloat16_rows_are_scored_in_float32(metric: str, case: tuple[Array, Array]) -> None:
    x, codebook = (part.astype(np.float32) for part in case)  # whole numbers: exact in bfloat16
    indices, margin = by_torch(x, codebook, metric, torch.bfloat16)
    wanted, lead = by_torch(x, codebook, metric)
    assert indices.tolist() == wanted.tolist()
    assert margin.tolist() == lead.tolist()


@every_implementation
@every_metric
def test_a_repeated_code_never_wins_over_its_first_copy(name: str, metric: str) -> None:
    rng = np.random.default_rng(5)
    once = rng.standard_normal((6, 16)).astype(np.float32)
    x = rng.standard_normal((200, 16)).astype(np.float32)
    indices, _ = IMPLEMENTATIONS[name](x, once, metric)
    twice, margin = IMPLEMENTATIONS[name](x, np.concatenate([once, once]), metric)
    assert twice.tolist() == indices.tolist()
    assert not margin.any()


@every_implementation
@every_metric
def test_zero_rows_and_zero_codes_are_defined(name: str, metric: str) -> None:
    x, codebook = np.zeros((2, 3), np.float32), np.zeros((4, 3), np.float32)
    indices, margin = IMPLEMENTATIONS[name](x, codebook, metric)
    assert indices.tolist() == [0, 0] and margin.tolist() == [0, 0]


@every_implementation
@every_metric
def test_a_nan_in_a_code_leaves_every_row_at_index_0(name: str, metric: str) -> None:
    codebook = np.eye(3, dtype=np.float32)
    codebook[1, 0] = np.nan
    indices, margin = IMPLEMENTATIONS[name](np.eye(3, dtype=np.float32), codebook, metric)
    assert indices.tolist() == [0, 0, 0] and margin.tolist() == [0, 0, 0]


@every_implementation
@every_metric
def test_float16_sums_do_not_overflow(name: str, metric: str) -> None:
    codebook = np.full((2, 32), 200, np.float16)  # a sum of squares is 1.28 million
    codebook[0] = -200
    indices, margin = IMPLEMENTATIONS[name](codebook[::-1].copy(), codebook, metric)
    assert indices.tolist() == [1, 0]
    assert np.isfinite(margin).all() and (margin > 0).all()


# ---- what is refused, and the forms of the op


@pytest.mark.parametrize(
    ("x", "codebook"), [((3,), (2, 3)), ((2, 3), (2, 4)), ((2, 3), (0, 3)), ((2, 3), (3,))]
)
def test_shapes_that_do_not_fit(x: tuple[int, ...], codebook: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="want x"):
        nearest_codebook(np.zeros(x, np.float32), np.zeros(codebook, np.float32))


def test_an_unknown_metric_is_refused_everywhere() -> None:
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="manhattan"):
        by_numpy(x, x, "manhattan")
    with pytest.raises(ValueError, match="manhattan"):
        by_torch(x, x, "manhattan")
    with pytest.raises(ExportError, match="manhattan"):
        nearest_codebook_function("manhattan")


def test_the_torch_op_has_a_fitting_fake() -> None:
    arguments = (torch.randn(5, 4), torch.randn(3, 4), "l2")
    torch.library.opcheck(
        torch.ops.vqedge.nearest_codebook.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )


@every_metric
@pytest.mark.parametrize("places", [(0, 0), (1, None), (None, 2)])
def test_the_torch_op_takes_several_at_once(
    metric: str, places: tuple[int | None, int | None]
) -> None:
    generator = torch.Generator().manual_seed(2)
    parts = [torch.randn(3, n, 4, generator=generator) for n in (9, 5)]
    op = functools.partial(torch.ops.vqedge.nearest_codebook, metric=metric)
    given = [
        part[0] if place is None else part.movedim(0, place)
        for part, place in zip(parts, places, strict=True)
    ]
    indices, margin = torch.vmap(op, in_dims=places)(*given)
    for number in range(3):
        x, codebook = (
            part[0 if place is None else number] for part, place in zip(parts, places, strict=True)
        )
        wanted, lead = op(x, codebook)
        assert torch.equal(indices[number], wanted) and indices.dtype == torch.int32
        torch.testing.assert_close(margin[number], lead)


def test_l2_is_the_default_of_every_form() -> None:
    rng = np.random.default_rng(1)
    x, codebook = rng.standard_normal((50, 4)), 3 * rng.standard_normal((8, 4))
    x, codebook = x.astype(np.float32), codebook.astype(np.float32)
    wanted = best_and_margin(similarities(x, codebook, "l2"))[0].tolist()
    assert wanted != best_and_margin(similarities(x, codebook, "dot"))[0].tolist()
    assert nearest_codebook(x, codebook)[0].tolist() == wanted
    found, _ = torch.ops.vqedge.nearest_codebook(torch.from_numpy(x), torch.from_numpy(codebook))
    assert found.tolist() == wanted
    session = ort.InferenceSession(_model("float32").SerializeToString())
    assert session.run(["indices"], {"x": x, "codebook": codebook})[0].tolist() == wanted


def test_a_graph_may_leave_the_margin_out() -> None:
    rng = np.random.default_rng(1)
    x, codebook = rng.standard_normal((2, 50, 4)).astype(np.float32)
    session = ort.InferenceSession(_model("float32", margin=False).SerializeToString())
    (found,) = session.run(None, {"x": x, "codebook": codebook})
    assert found.tolist() == nearest_codebook(x, codebook)[0].tolist()


def test_a_model_holds_one_metric() -> None:
    model = _model("float32", metric="dot")
    model.graph.node.append(
        helper.make_node(OP_NAME, ["x", "codebook"], ["i", "m"], domain=DOMAIN, metric="cosine")
    )
    with pytest.raises(ExportError, match="cosine"):
        attach_function(model)


def test_the_body_is_a_matrix_product_and_no_distance_op() -> None:
    ops = {node.op_type for metric in METRICS for node in nearest_codebook_function(metric).node}
    assert {"MatMul", "ArgMax"} <= ops
    assert not {op for op in ops if "dist" in op.lower() or op == OP_NAME}
