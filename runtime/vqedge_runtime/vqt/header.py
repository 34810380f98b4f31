"""The first 170 bytes of a `.vqt`: what it was made from, with what, and the sizes of its parts."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, Literal

from vqedge.clip_limits import MAX_PATCHES
from vqedge.errors import VqtError
from vqedge_runtime.vqt.gaussian import MAX_BITS, MIN_BITS

MAGIC: Final = b"\x89VQT\r\n\x1a\n"  # damaged by whatever takes the file for text
VERSION: Final = 1
LEVELS_VERSION: Final = 2  # of files whose codes are in levels of some bits, and of no others
PART_US: Final = (
    1 << 64
) - 1  # for the length of a segment: a part of a video, chosen by its times
MAX_CODES = 4096
MAX_WIDTH = 1 << 16
MAX_LEVELS = 64

_KINDS: tuple[Literal["kmeans", "codebook"], ...] = ("kmeans", "codebook")
_LAYOUT = struct.Struct("<8sHBBHHHHIHQQ32s32s32s32s")
_LEAD = struct.Struct("<8sH")
HEADER_BYTES: Final = _LAYOUT.size
NO_SHA256: Final = "00" * 32  # of no file, and of no codebook


@dataclass(frozen=True)
class Origin:
    """The video a file was made from; all zero where frames were given in memory.

    Attributes:
        size_bytes: of the file, or of all images of a folder together.
        sha256: of the file, 64 hex digits.
    """

    size_bytes: int = 0
    sha256: str = NO_SHA256


@dataclass(frozen=True)
class Header:
    """What all segments of a file have in common.

    Attributes:
        kind: how the quantizer names codes: by value, or by ids of a learned codebook.
        levels: ids a code; 0 for `kmeans`.
        bits: of each number of a code, 2 to 8; 0 for float16 and for ids.
        width: numbers in a code; entries of a level for `codebook`.
        frames, grid_height, grid_width: of a segment's index map.
        codes: most codes of a segment.
        budget: asked for when it was encoded, 0 for the adaptive one.
        window_us: length of a segment that was asked for, 0 for the whole video, `PART_US` for a
            part of it.
        origin: the video.
        encoder_sha256: of the `encoder.onnx` that found the codes, for information.
        bridge_sha256: of the `bridge.onnx` that they are for.
        codebook_sha256: of the tables that ids refer to; zeros for `kmeans`.
    """

    kind: Literal["kmeans", "codebook"]
    levels: int
    width: int
    frames: int
    grid_height: int
    grid_width: int
    codes: int
    encoder_sha256: str
    bridge_sha256: str
    codebook_sha256: str = NO_SHA256
    budget: int = 0
    window_us: int = 0
    origin: Origin = field(default_factory=Origin)
    bits: int = 0

    @property
    def version(self) -> int:
        """The format's version, as it stands in the file."""
        return LEVELS_VERSION if self.bits else VERSION

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Shape of a segment's index map."""
        return self.frames, self.grid_height, self.grid_width

    def to_bytes(self) -> bytes:
        """The header as it stands in a file.

        Raises:
            VqtError: a number is out of its range.
        """
        _check(self)
        sizes = (self.frames, self.grid_height, self.grid_width, self.codes, self.width)
        hashes = (
            self.origin.sha256,
            self.encoder_sha256,
            self.bridge_sha256,
            self.codebook_sha256,
        )
        return _LAYOUT.pack(
            MAGIC,
            self.version,
            _KINDS.index(self.kind),
            self.bits or self.levels,
            *sizes,
            self.budget,
            self.window_us,
            self.origin.size_bytes,
            *map(bytes.fromhex, hashes),
        )


def header_from_bytes(data: bytes) -> Header:
    """Read a header; `data` may go on after it.

    Raises:
        VqtError: not a `.vqt`, another version, too short, or a value that cannot be.
    """
    check_lead(data)
    if len(data) < HEADER_BYTES:
        raise VqtError("ends within its header; copy it again")
    _magic, version, kind, levels, t, h, w, codes, width, budget, window, size, *hashes = (
        _LAYOUT.unpack_from(data)
    )
    if kind >= len(_KINDS):
        raise VqtError(f"quantizer kind {kind} is unknown; encode the video again")
    source, encoder, bridge, codebook = (part.hex() for part in hashes)
    in_levels = version == LEVELS_VERSION
    if in_levels and not (_KINDS[kind] == "kmeans" and levels):
        raise VqtError(f"version {version} is for codes in levels only; encode the video again")
    header = Header(
        kind=_KINDS[kind],
        levels=0 if in_levels else levels,
        bits=levels if in_levels else 0,
        width=width,
        frames=t,
        grid_height=h,
        grid_width=w,
        codes=codes,
        encoder_sha256=encoder,
        bridge_sha256=bridge,
        codebook_sha256=codebook,
        budget=budget,
        window_us=window,
        origin=Origin(size, source),
    )
    _check(header)
    return header


def check_lead(data: bytes) -> None:
    """Refuse what is no `.vqt` at all, or one of another version.

    Raises:
        VqtError: so.
    """
    if not data.startswith(MAGIC):
        raise VqtError("not a .vqt file, or damaged by a copy as text; encode the video again")
    if len(data) < _LEAD.size:
        raise VqtError("ends within its header; copy it again")
    _magic, version = _LEAD.unpack_from(data)
    if version not in (VERSION, LEVELS_VERSION):
        raise VqtError(
            f"version {version}; this vqedge reads versions {VERSION} and {LEVELS_VERSION}: "
            "upgrade vqedge, or encode the video again"
        )


def _check(header: Header) -> None:
    """Every number within the limits of docs/vqt-format.md."""
    learned = header.kind == "codebook"
    patches = header.frames * header.grid_height * header.grid_width
    limits = {
        "frames x grid": (patches, 1, MAX_PATCHES),
        "codes": (header.codes, 1, MAX_CODES),
        "levels": (header.levels, *((1, MAX_LEVELS) if learned else (0, 0))),
        "bits": (header.bits, *((0, 0) if learned or not header.bits else (MIN_BITS, MAX_BITS))),
        "width": (header.width, 2 if learned else 1, MAX_WIDTH),
        "budget": (header.budget, 0, header.codes),
        "segments' length in microseconds": (header.window_us, 0, PART_US),
    }
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise VqtError(f"{name} {value} is not within {low} and {high}; encode the video again")
    if learned == (header.codebook_sha256 == NO_SHA256):
        raise VqtError(
            f"kind {header.kind} does not go with codebook "
            f"{header.codebook_sha256[:8]}; encode the video again"
        )
