"""One span of a video: its times, the index map packed by LZMA, and the codes or their ids.

Codes are float16, or, to save space, levels of some bits in every dimension; then mean and spread
of each dimension over the segment's codes come first.
"""

from __future__ import annotations

import lzma
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqedge.errors import VqtError
from vqedge_runtime.tokens import Codes, Values
from vqedge_runtime.vqt.bits import packed, unpacked
from vqedge_runtime.vqt.gaussian import GaussianCodec, fitted
from vqedge_runtime.vqt.header import Header

_SPAN = struct.Struct("<QQ")
_COUNTS = struct.Struct("<HI")
_LARGEST = float(np.finfo(np.float16).max)
_DAMAGED = "encode the video again"
_PAST_TIME_US = 1 << 63  # the times of frames, which are signed, end before it
_AT_ONCE = 1 << 18  # numbers whose levels are looked up together: 20 bytes each on the way
# Raw LZMA2: no container around it, and so small a dictionary that no stream can ask for memory.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 17, "lc": 0, "lp": 0, "pb": 0}]


@dataclass(frozen=True)
class Segment:
    """The codes of one span.

    Attributes:
        start_us: start of the span, microseconds from the start of the video.
        duration_us: its length, 0 for an image.
        times_us: of each of the T frames, from the start of the video.
        codes: what the frames show.
    """

    start_us: int
    duration_us: int
    times_us: tuple[int, ...]
    codes: Codes

    @property
    def end_us(self) -> int:
        """End of the span."""
        return self.start_us + self.duration_us


def segment_bytes(segment: Segment, header: Header) -> bytes:
    """A segment's body.

    Raises:
        VqtError: the segment is not one of this header, or a time is beyond 64 bits.
    """
    codes = segment.codes
    _check_codes(codes, header)
    packed = _packed_map(codes.index_map, header)
    return b"".join(
        (
            _packed_times(segment, header),
            _COUNTS.pack(codes.count, len(packed)),
            packed,
            _packed_values(codes.values, header),
        )
    )


def most_bytes(header: Header) -> int:
    """The longest that a segment's body can be: nothing of its map can be packed."""
    map_bytes = int(np.prod(header.map_shape)) * _symbol(header).itemsize
    framed_bytes = map_bytes + map_bytes // 1024 + 64
    values_bytes = _size_of(header.budget or header.codes, header)
    return _SPAN.size + 8 * header.frames + _COUNTS.size + framed_bytes + values_bytes


def segment_from_bytes(body: memoryview, header: Header) -> Segment:
    """Read a segment's body.

    Raises:
        VqtError: a length, a number or an order that cannot be.
    """
    start_us, duration_us = span_of(body)
    times = struct.Struct(f"<{header.frames}q")
    at = _SPAN.size + times.size
    if len(body) < at + _COUNTS.size:
        raise VqtError(f"a segment ends within its times; {_DAMAGED}")
    count, map_bytes = _COUNTS.unpack_from(body, at)
    at += _COUNTS.size
    if not 1 <= count <= header.codes or len(body) != at + map_bytes + _size_of(count, header):
        raise VqtError(f"a segment of {len(body)} bytes cannot hold {count} codes; {_DAMAGED}")
    index_map = _unpacked_map(bytes(body[at : at + map_bytes]), header)
    codes = Codes(index_map, _unpacked_values(body[at + map_bytes :], count, header))
    _check_codes(codes, header)
    return Segment(start_us, duration_us, times.unpack_from(body, _SPAN.size), codes)


def span_of(body: memoryview) -> tuple[int, int]:
    """Start and length of a segment in microseconds, without reading its codes.

    Raises:
        VqtError: it is too short for one, or the span ends too late to be one.
    """
    if len(body) < _SPAN.size:
        raise VqtError(f"a segment ends within its times; {_DAMAGED}")
    start_us, duration_us = _SPAN.unpack_from(body)
    if start_us + duration_us >= _PAST_TIME_US:
        raise VqtError(f"a segment ends after {_PAST_TIME_US} microseconds; {_DAMAGED}")
    return start_us, duration_us


def _check_codes(codes: Codes, header: Header) -> None:
    """Codes 0 to k - 1 all occur, numbered by first occurrence, and their values are possible."""
    shape = (header.levels if header.kind == "codebook" else header.width,)
    if codes.index_map.shape != header.map_shape or codes.values.shape[1:] != shape:
        raise VqtError(f"the codes do not have the sizes that the header says; {_DAMAGED}")
    labels, first = np.unique(codes.index_map, return_index=True)
    if not np.array_equal(labels, np.arange(codes.count)) or (np.diff(first) < 0).any():
        raise VqtError(f"the index map is not one of {codes.count} codes in order; {_DAMAGED}")
    values = codes.values
    entries = header.width if values.dtype.kind == "i" else None
    if entries is not None and not ((values >= 0) & (values < entries)).all():
        raise VqtError(f"an id is not within 0 and {entries - 1}; {_DAMAGED}")
    if entries is None and not np.isfinite(values).all():
        raise VqtError(f"a code is NaN or infinite; {_DAMAGED}")


def _packed_times(segment: Segment, header: Header) -> bytes:
    """The span and the time of each frame."""
    try:
        span = _SPAN.pack(segment.start_us, segment.duration_us)
        struct.pack("<q", segment.end_us)  # not written, but as small as the times that are
        return span + struct.pack(f"<{header.frames}q", *segment.times_us)
    except struct.error as error:
        raise VqtError(
            f"a time is none that a file can hold ({error}); convert the video, its time stamps "
            "are damaged"
        ) from error


def _packed_map(index_map: npt.NDArray[np.int32], header: Header) -> bytes:
    data = index_map.astype(_symbol(header)).tobytes()
    return lzma.compress(data, format=lzma.FORMAT_RAW, filters=_FILTERS)


def _unpacked_map(packed: bytes, header: Header) -> npt.NDArray[np.int32]:
    symbol = _symbol(header)
    wanted = int(np.prod(header.map_shape)) * symbol.itemsize
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        data = unpacker.decompress(packed, max_length=wanted + 1)
    except (lzma.LZMAError, EOFError) as error:
        raise VqtError(f"the index map cannot be unpacked ({error}); {_DAMAGED}") from error
    if len(data) != wanted or not unpacker.eof or unpacker.unused_data:
        raise VqtError(f"the index map unpacks to another size; {_DAMAGED}")
    return np.frombuffer(data, symbol).reshape(header.map_shape).astype(np.int32)


def _symbol(header: Header) -> np.dtype[np.unsignedinteger]:
    """One byte a patch, two where there may be more than 256 codes."""
    return np.dtype("u1" if header.codes <= 256 else "<u2")


def _size_of(count: int, header: Header) -> int:
    """Bytes of a segment's codes or ids."""
    if header.bits:
        return 2 * 2 * header.width + -(-count * header.width * header.bits // 8)
    if header.kind == "kmeans":
        return count * header.width * 2
    return -(-count * header.levels * _bits(header) // 8)


def _bits(header: Header) -> int:
    return (header.width - 1).bit_length()


def _packed_values(values: Values, header: Header) -> bytes:
    if header.bits:
        return _packed_levels(values.astype(np.float32), header.bits)
    if header.kind == "kmeans":
        return values.astype("<f2").tobytes()
    return packed(values.astype(np.int32), _bits(header))


def _unpacked_values(data: memoryview, count: int, header: Header) -> Values:
    if header.bits:
        return _unpacked_levels(data, count, header)
    if header.kind == "kmeans":
        codes = np.frombuffer(data, "<f2").astype(np.float16)
        return codes.reshape(count, header.width)
    try:
        return unpacked(data, (count, header.levels), _bits(header))
    except ValueError:
        raise VqtError(f"the bits after the last id are not zero; {_DAMAGED}") from None


def _packed_levels(codes: npt.NDArray[np.float32], bits: int) -> bytes:
    """Mean and spread of each dimension, then the levels of all codes."""
    codec = fitted(codes, bits)
    mean, spread = codec.mean.astype("<f2"), codec.spread.astype("<f2")
    stored = GaussianCodec(bits, mean.astype(np.float32), spread.astype(np.float32))
    return mean.tobytes() + spread.tobytes() + packed(stored.encode(codes), bits)


def _unpacked_levels(data: memoryview, count: int, header: Header) -> Values:
    statistics_bytes = np.dtype("<f2").itemsize * 2 * header.width
    statistics, levels = data[:statistics_bytes], data[statistics_bytes:]
    mean, spread = np.frombuffer(statistics, "<f2").astype(np.float32).reshape(2, -1)
    if not (np.isfinite(mean).all() and np.isfinite(spread).all() and (spread > 0).all()):
        raise VqtError(f"mean or spread of a dimension cannot be; {_DAMAGED}")
    codec = GaussianCodec(header.bits, mean, spread)
    rows = 8 * max(1, _AT_ONCE // (8 * header.width))  # eight end with a byte
    block_bytes = rows // 8 * header.width * header.bits
    codes = np.empty((count, header.width), np.float16)
    try:
        for first in range(0, count, rows):
            block, levels = levels[:block_bytes], levels[block_bytes:]
            wanted = min(rows, count - first), header.width
            found = codec.decode(unpacked(block, wanted, header.bits))
            codes[first : first + rows] = np.clip(found, -_LARGEST, _LARGEST)
    except ValueError as error:
        raise VqtError(f"{error}; {_DAMAGED}") from error
    return codes
