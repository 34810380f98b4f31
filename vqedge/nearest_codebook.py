"""NearestCodebook: the contract of the one custom op, and its reference implementation in NumPy.

Domain `vqedge`, version 1. Inputs `x [N, D]` and `codebook [K, D]` of one float type; attribute
`metric`. Outputs `indices [N] int32` and `margin [N] float32`, the best minus the second-best
score: how safe each choice is. Scores accumulate in float32, ties go to the lowest index, a row
holding a NaN gives index 0 and margin 0, K >= 1, N >= 0. With K = 1 there is no second best and the
margin is +inf. A graph may leave `margin` out. Infinite scores are outside of the contract: their
margin may be a NaN.

What ties are scores. Those of codes that are equal bit for bit are equal here, but a matrix product
may round them differently, depending on the column they are in. PyTorch's on a CPU does for some K:
it may choose any of such codes then, with a margin of that rounding.

Every other implementation (PyTorch, ONNX function, CUDA) is tested against `nearest_codebook` here.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Metric = Literal["l2", "dot", "cosine"]
DOMAIN = "vqedge"
OP_NAME = "NearestCodebook"
OP_VERSION = 1
COSINE_EPS = 1e-12

_Floats = npt.NDArray[np.floating]


def scores(x: _Floats, codebook: _Floats, metric: Metric = "l2") -> npt.NDArray[np.float32]:
    """Similarity of every row to every code, higher is nearer.

    Args:
        x: `[N, D]`, any float type.
        codebook: `[K, D]`, K >= 1.
        metric: `l2` is `-|x - c|^2` up to a constant per row, `dot` is `x.c`, `cosine` their
            angle's cosine.

    Returns:
        float32 `[N, K]`.

    Raises:
        ValueError: shapes do not fit or the metric is unknown.
    """
    if x.ndim != 2 or codebook.ndim != 2 or x.shape[1] != codebook.shape[1] or not len(codebook):
        raise ValueError(f"want x [N, D] and codebook [K >= 1, D], got {x.shape}, {codebook.shape}")
    if metric not in get_args(Metric):
        raise ValueError(f"metric must be one of {get_args(Metric)}, got {metric!r}")
    rows, codes = x.astype(np.float32), codebook.astype(np.float32)
    if metric == "cosine":
        rows, codes = _unit(rows), _unit(codes)
    # not `@`: BLAS may round equal codes differently, depending on the column they are in
    table: npt.NDArray[np.float32] = np.einsum("nd,kd->nk", rows, codes)
    if metric == "l2":
        table = 2.0 * table - (codes * codes).sum(axis=1)
    return table


def nearest_codebook(
    x: _Floats, codebook: _Floats, metric: Metric = "l2"
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Assign every row to its nearest code.

    Args:
        x: `[N, D]`.
        codebook: `[K, D]`.
        metric: see `scores`.

    Returns:
        indices int32 `[N]` and margin float32 `[N]`.

    Raises:
        ValueError: see `scores`.
    """
    table = scores(x, codebook, metric)
    broken: npt.NDArray[np.bool_] = np.any(np.isnan(table), axis=1, keepdims=True)[:, 0]
    table = np.where(broken[:, None], np.float32(0), table)
    indices = table.argmax(axis=1).astype(np.int32) if len(table) else np.zeros(0, np.int32)
    if table.shape[1] == 1:
        margin = np.full(len(table), np.inf, np.float32)
    else:
        top = np.partition(table, -2, axis=1)[:, -2:]
        margin = top[:, 1] - top[:, 0]
    return indices, np.where(broken, np.float32(0), margin)


def _unit(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows scaled to length one; all-zero rows stay zero."""
    norm = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    unit: npt.NDArray[np.float32] = rows / np.maximum(norm, np.float32(COSINE_EPS))
    return unit
