"""Numbers of a few bits each as bytes: the lowest bit of each first, from the lowest bit up."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.integer]


def packed(numbers: Numbers, bits: int) -> bytes:
    """Numbers below 2^bits as a stream of bits; the last byte is filled with zeros."""
    each = numbers.reshape(-1, 1).astype(np.int64) >> np.arange(bits) & 1
    return np.packbits(each.astype(np.uint8), bitorder="little").tobytes()


def unpacked(data: bytes | memoryview, shape: tuple[int, int], bits: int) -> npt.NDArray[np.int32]:
    """What `packed` packed, int32 of a shape.

    Raises:
        ValueError: the length does not fit, or bits after the last number are set.
    """
    used = shape[0] * shape[1] * bits
    stream = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
    if len(data) != -(-used // 8) or stream[used:].any():
        raise ValueError(f"{len(data)} bytes do not hold {shape} levels of {bits} bits")
    each = stream[:used].reshape(-1, bits)
    numbers = np.zeros(len(each), np.int32)
    for bit in range(bits):  # all at once would take four times the memory
        numbers |= each[:, bit].astype(np.int32) << bit
    return numbers.reshape(shape)
