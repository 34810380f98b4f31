"""How alike two clips are, code by code; one measure for codes by value and by ids.

Two codes of a clip's own k-means are as alike as the cosine of their centroids. Two codes of a
learned codebook are as alike as the share of levels, from the first on, whose ids are the same:
the first level says most. A code counts with the square root of the patches it has: by patches
alone, backgrounds would decide.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqedge_runtime.tokens import Codes, Values
from vqedge_runtime.vqt import Header

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Features:
    """What of a clip is compared.

    Attributes:
        values: float32 `[k, width]` of length 1 (of length 0 where a code is all zeros), or int32
            ids `[k, levels]`.
        weights: float32 `[k]`, sum 1.
    """

    values: npt.NDArray[np.float32] | npt.NDArray[np.int32]
    weights: Floats


def features_from_codes(codes: Codes) -> Features:
    """The features of a clip."""
    return Features(comparable(codes.values), weights_from_patches(codes.patch_counts))


def weights_from_patches(patches: npt.NDArray[np.int64]) -> Floats:
    """Square roots of the numbers of patches, sum 1."""
    roots = np.sqrt(patches.astype(np.float32))
    weights: Floats = roots / roots.sum()
    return weights


def comparable(values: Values) -> npt.NDArray[np.float32] | npt.NDArray[np.int32]:
    """Centroids brought to length 1; ids as they are."""
    if values.dtype.kind == "i":
        return values.astype(np.int32)
    wide = values.astype(np.float32)
    wide /= np.maximum(np.abs(wide).max(1, keepdims=True), np.finfo(np.float32).tiny)
    wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.float32(1e-12))
    return wide


def matches(
    a: npt.NDArray[np.float32] | npt.NDArray[np.int32],
    b: npt.NDArray[np.float32] | npt.NDArray[np.int32],
) -> Floats:
    """How alike each code of `a` and each of `b` are, `[ka, kb]`, at most 1."""
    found: Floats
    if a.dtype.kind == "f":
        found = a.astype(np.float32) @ b.astype(np.float32).T
        return found
    same = np.ones((len(a), len(b)), np.bool_)
    levels = np.zeros((len(a), len(b)), np.float32)
    for level in range(a.shape[1]):
        same &= a[:, level, None] == b[None, :, level]
        levels += same
    found = levels / np.float32(a.shape[1])
    return found


def similarity(a: Features, b: Features) -> float:
    """Each code's best match in the other clip, averaged by weight, both ways; 1 for the same."""
    found = matches(a.values, b.values)
    there, back = a.weights @ found.max(1), b.weights @ found.max(0)
    return float(there + back) / 2


def alignment(a: Codes, b: Codes) -> float:
    """How alike the codes at the same place of the same frame are, averaged over all patches.

    Unlike `similarity` it tells a clip from the same things moving another way.
    """
    found = matches(comparable(a.values), comparable(b.values))
    return float(found[a.index_map.ravel(), b.index_map.ravel()].mean(dtype=np.float64))


def space_of(header: Header) -> str:
    """Names what makes clips comparable: one model, one codebook, one size of maps."""
    learned = header.kind == "codebook"
    model = header.codebook_sha256 if learned else header.bridge_sha256
    facts = (header.kind, model, header.levels, header.width, header.map_shape)
    return hashlib.sha256(repr(facts).encode()).hexdigest()
