"""The blobs of an index as arrays, each checked: its folder may be one that others write."""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt

from vqedge.clip_limits import MAX_PATCHES
from vqedge_runtime.search.bounds import DIRECTIONS, SLACK
from vqedge_runtime.search.measure import Floats
from vqedge_runtime.tokens import Codes, Values

# Of numbers in half precision as bits, since NumPy is slow with them as numbers.
_SIZE = np.uint16(0x7FFF)
_NOT_FINITE = np.float16(np.inf).view(np.uint16)
_LONGEST = (np.float16(1) + np.float16(SLACK)).view(np.uint16)
_ORTHONORMAL = 1e-4  # what float32 may leave of a product that should be zero or one


def codes_from_blobs(numbers: bytes, packed_map: bytes, kind: str, count: int) -> Codes:
    """A clip's codes as they were, the map flat.

    Raises:
        ValueError: the map has more patches than a `.vqt` may, or the numbers are cut short.
        zlib.error: the map is damaged.
    """
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(packed_map, 2 * MAX_PATCHES)
    if not unpacker.eof:
        raise ValueError(f"a map of more than {MAX_PATCHES} patches")
    flat = np.frombuffer(data, "<u2").astype(np.int32)
    return Codes(flat, numbers_from_blob(numbers, kind, count))


def numbers_from_blob(numbers: bytes, kind: str, count: int) -> Values:
    """Centroids or ids, `[count, width or levels]`.

    Raises:
        ValueError: cut short, or centroids that are not finite.
    """
    bits = np.frombuffer(numbers, "<u2").reshape(count, -1)
    if kind != "kmeans":
        return bits.astype(np.int32)
    if ((bits & _SIZE) >= _NOT_FINITE).any():
        raise ValueError("centroids that are not finite")
    return bits.view("<f2").astype(np.float16)


def weights_from_blob(weights: bytes) -> npt.NDArray[np.float32]:
    """What the codes of one or more clips weigh, each 0 to 1.

    Raises:
        ValueError: cut short, or none that a code can have.
    """
    array = np.frombuffer(weights, "<f4")
    if not ((array >= 0) & (array <= 1)).all():
        raise ValueError("weights that are none")
    return array


def basis_from_blob(blob: bytes, width: int) -> Floats:
    """A basis as it was stored, `[width, d]`.

    Raises:
        ValueError: cut short, another number of directions than `basis_from_values` gives, or not
            orthonormal: nothing would be a bound then.
    """
    basis: Floats = np.frombuffer(blob, "<f4").reshape(width, -1)
    if basis.shape[1] != min(DIRECTIONS, width):
        raise ValueError(f"{basis.shape[1]} directions of {width} numbers")
    if not (np.abs(basis) <= 1 + _ORTHONORMAL).all():
        raise ValueError("directions longer than 1")
    if not np.allclose(basis.T @ basis, np.eye(basis.shape[1]), rtol=0, atol=_ORTHONORMAL):
        raise ValueError("directions that are not orthonormal")
    return basis


def sketches_from_blob(blob: bytes, width: int) -> npt.NDArray[np.float16]:
    """What `split` gave, rounded, as it was stored: `[n, width]`.

    Raises:
        ValueError: cut short, or of codes that are longer than 1.
    """
    sketches = np.frombuffer(blob, "<f2").reshape(-1, width)
    sizes = sketches.view("<u2") & _SIZE
    if sizes.size and sizes.max() > _LONGEST:
        raise ValueError("sketches longer than 1")
    return sketches
