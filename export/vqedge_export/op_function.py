"""NearestCodebook as an ONNX model-local function of standard ops.

Runtimes without a kernel of their own inline it; those with a plugin of this name use the plugin.
One matrix product and reductions, never a pairwise-distance op. Contract:
`vqedge.nearest_codebook`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import onnx
from onnx import TensorProto, helper

from vqedge.errors import ExportError
from vqedge.nearest_codebook import COSINE_EPS, DOMAIN, OP_NAME, OP_VERSION, Metric

OPSET = 18


def nearest_codebook_function(metric: str) -> onnx.FunctionProto:
    """The op's body for one metric: `x [N, D]`, `codebook [K, D]` to `indices`, `margin`.

    Raises:
        ExportError: the metric is unknown.
    """
    if metric not in get_args(Metric):
        raise ExportError(f"metric {metric!r} is unknown, want one of {get_args(Metric)}")
    nodes = [*_score_nodes(metric), *_choice_nodes()]
    return helper.make_function(
        DOMAIN,
        OP_NAME,
        ["x", "codebook"],
        ["indices", "margin"],
        nodes,
        [helper.make_opsetid("", OPSET)],
        attributes=["metric"],
    )


def attach_function(model: onnx.ModelProto) -> None:
    """Give the model the body of its NearestCodebook nodes, if it has any.

    Raises:
        ExportError: the nodes ask for different metrics; a model holds one body.
    """
    nodes = [node for node in model.graph.node if node.op_type == OP_NAME]
    metrics = {_metric_of(node) for node in nodes}
    if not metrics:
        return
    if len(metrics) > 1:
        raise ExportError(
            f"the graph's NearestCodebook nodes use the metrics {sorted(metrics)}, want one"
        )
    for node in nodes:
        node.output.extend([""] * (2 - len(node.output)))  # a function's outputs are all there
    model.functions.append(nearest_codebook_function(metrics.pop()))
    if not any(item.domain == DOMAIN for item in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, OP_VERSION))


def ensure_function(model: onnx.ModelProto) -> None:
    """Make a model one that ONNX Runtime can run, also if it was exported without the body."""
    if not any(function.name == OP_NAME for function in model.functions):
        attach_function(model)


def _metric_of(node: onnx.NodeProto) -> str:
    values = [item.s.decode() for item in node.attribute if item.name == "metric"]
    return values[0] if values else "l2"


def _node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


def _constant(name: str, values: Iterable[float], kind: int) -> onnx.NodeProto:
    flat = list(values)
    dims = [len(flat)] if len(flat) > 1 or kind == TensorProto.INT64 else []
    return _node("Constant", "", name, value=helper.make_tensor(name, kind, dims, flat))


def _score_nodes(metric: str) -> list[onnx.NodeProto]:
    """`scores [N, K]` in float32, higher is nearer."""
    casts = [
        _node("Cast", "x", "rows_raw", to=TensorProto.FLOAT),
        _node("Cast", "codebook", "codes_raw", to=TensorProto.FLOAT),
        _constant("columns", [1], TensorProto.INT64),
    ]
    if metric == "cosine":
        casts += [*_unit_nodes("rows_raw", "rows"), *_unit_nodes("codes_raw", "codes")]
    else:
        casts += [_node("Identity", "rows_raw", "rows"), _node("Identity", "codes_raw", "codes")]
    product = [
        _node("Transpose", "codes", "codes_by_column", perm=[1, 0]),
        _node("MatMul", "rows codes_by_column", "product"),
    ]
    if metric != "l2":
        return [*casts, *product, _node("Identity", "product", "scores")]
    return [
        *casts,
        *product,
        _constant("two", [2.0], TensorProto.FLOAT),
        _node("Mul", "product two", "doubled"),
        _node("Mul", "codes codes", "squares"),
        _node("ReduceSum", "squares columns", "norms", keepdims=0),
        _node("Sub", "doubled norms", "scores"),
    ]


def _unit_nodes(source: str, target: str) -> list[onnx.NodeProto]:
    """Rows of `source` scaled to length one."""
    return [
        _constant(f"{target}_eps", [COSINE_EPS], TensorProto.FLOAT),
        _node("ReduceL2", f"{source} columns", f"{target}_norm", keepdims=1),
        _node("Max", f"{target}_norm {target}_eps", f"{target}_safe"),
        _node("Div", f"{source} {target}_safe", target),
    ]


def _choice_nodes() -> list[onnx.NodeProto]:
    """Lowest best index, NaN rows to index 0 with margin 0, margin to the best other code."""
    return [
        _node("IsNaN", "scores", "nan_cells"),
        _node("Cast", "nan_cells", "nan_flags", to=TensorProto.FLOAT),
        _node("ReduceMax", "nan_flags columns", "nan_rows", keepdims=1),
        _node("Cast", "nan_rows", "broken", to=TensorProto.BOOL),
        _constant("zero", [0.0], TensorProto.FLOAT),
        _node("Where", "broken zero scores", "clean"),
        _node("ArgMax", "clean", "best", axis=1, keepdims=1, select_last_index=0),
        _node("Squeeze", "best columns", "best_flat"),
        _node("Cast", "best_flat", "indices", to=TensorProto.INT32),
        _node("Shape", "codes", "codes_shape"),
        _constant("first", [0], TensorProto.INT64),
        _node("Gather", "codes_shape first", "code_count"),
        _constant("one", [1], TensorProto.INT64),
        _node("Squeeze", "code_count first", "stop"),
        _node("Squeeze", "first first", "start"),
        _node("Squeeze", "one first", "stride"),
        _node("Range", "start stop stride", "slot"),
        _node("Equal", "slot best", "is_best"),
        _constant("lowest", [float("-inf")], TensorProto.FLOAT),
        _node("Where", "is_best lowest clean", "others"),
        _node("ReduceMax", "others columns", "second", keepdims=0),
        _node("ReduceMax", "clean columns", "top", keepdims=0),
        _node("Sub", "top second", "raw_margin"),
        _node("Squeeze", "broken columns", "broken_flat"),
        _node("Where", "broken_flat zero raw_margin", "margin"),
    ]
