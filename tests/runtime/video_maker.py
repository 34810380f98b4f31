"""Makes small videos whose every frame shows its own number, for a test to read."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

WIDTH, HEIGHT = 64, 48
_BASE, _STEP = 14, 17  # the left half shows number % 14, the right half number // 14, in grey


def numbered(number: int) -> npt.NDArray[np.uint8]:
    """One frame, uint8 [48, 64, 3], that shows a number below 196."""
    pixels = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    pixels[:, : WIDTH // 2] = 10 + _STEP * (number % _BASE)
    pixels[:, WIDTH // 2 :] = 10 + _STEP * (number // _BASE)
    return pixels


def numbers_in(frames_thwc: npt.NDArray[np.uint8]) -> list[int]:
    """The numbers that frames of any size show."""
    quarter = frames_thwc.shape[2] // 4
    middle = frames_thwc[:, frames_thwc.shape[1] // 2].astype(float).mean(axis=-1)
    low = np.rint((middle[:, quarter] - 10) / _STEP)
    high = np.rint((middle[:, -quarter] - 10) / _STEP)
    return [int(a + _BASE * b) for a, b in zip(low, high, strict=True)]


def write_video(
    path: Path,
    times_ms: Sequence[int],
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    options: dict[str, str] | None = None,
    rotation: dict[str, Any] | None = None,
    pictures: Sequence[npt.NDArray[np.uint8]] | None = None,
    muxer: dict[str, str] | None = None,
    rate: int | Fraction = 10,
) -> Path:
    """Writes frame i, which shows the number i, at `times_ms[i]`; MPEG-2 wants steps of 40 ms."""
    with av.open(str(path.absolute()), "w", options=muxer or {}) as output:
        stream = cast(VideoStream, output.add_stream(codec, rate=rate, options=options or {}))
        first = numbered(0) if pictures is None else pictures[0]
        stream.width, stream.height, stream.pix_fmt = first.shape[1], first.shape[0], pixel_format
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, 25 if codec == "mpeg2video" else 1000)
        if rotation:
            stream.set_display_rotation(**rotation)
        for number, pts in enumerate(times_ms):
            pixels = numbered(number) if pictures is None else pictures[number]
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def image_bytes(pixels: npt.NDArray[np.uint8], codec: str = "png") -> bytes:
    """A PNG or (`mjpeg`) JPEG file from uint8 [H, W, 3]."""
    pixel_format = "rgb24" if codec == "png" else "yuvj444p"
    context = cast(VideoCodecContext, av.CodecContext.create(codec, "w"))
    context.width, context.height, context.pix_fmt = pixels.shape[1], pixels.shape[0], pixel_format
    context.time_base = Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
    frame.pts = 0
    return b"".join(bytes(p) for p in [*context.encode(frame), *context.encode(None)])


def jpeg_with_orientation(pixels: npt.NDArray[np.uint8], orientation: int) -> bytes:
    """A JPEG file whose EXIF says how the camera was held."""
    jpeg = image_bytes(pixels, "mjpeg")
    tiff = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def write_tiled_avif(path: Path, thumbnail: bool = False) -> Path:
    """Four AV1 pictures as the tiles of one of 128 x 128, as cameras write HEIC."""
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)] + [(9, 99, 200)] * thumbnail
    coded = [_av1_picture(path.with_suffix(".part.avif"), color) for color in colors]
    header_bytes = len(_tiled_header(coded, 0, thumbnail))
    header = _tiled_header(coded, header_bytes + 8, thumbnail)
    path.write_bytes(header + _box(b"mdat", *(data for _, data in coded)))
    return path


def _av1_picture(path: Path, color: tuple[int, int, int]) -> tuple[bytes, bytes]:
    """Decoder configuration and data of one picture of a colour."""
    codec = "libsvtav1" if "libsvtav1" in av.codecs_available else "libaom-av1"
    pictures = [np.full((64, 64, 3), color, np.uint8)]
    file = write_video(path, [0], codec, pictures=pictures).read_bytes()
    found = []
    for name in (b"av1C", b"mdat"):
        start = file.index(name) - 4
        found.append(file[start : start + struct.unpack_from(">I", file, start)[0]])
    return found[0], found[1][8:]


def _tiled_header(
    coded: Sequence[tuple[bytes, bytes]], offset_bytes: int, thumbnail: bool
) -> bytes:
    """Item 1 is the whole, 2 to 5 are its tiles, 6 the thumbnail; their data is at an offset."""
    numbers = range(2, 2 + len(coded))
    count = 1 + len(coded)
    items = [_full_box(b"infe", 2, struct.pack(">HH", 1, 0) + b"grid\0")]
    items += [_full_box(b"infe", 2, struct.pack(">HH", n, 0) + b"av01\0", 1) for n in numbers]
    places = struct.pack(">BBH", 0x44, 0, count) + struct.pack(">HHHHII", 1, 1, 0, 1, 0, 8)
    for number, (_, data) in zip(numbers, coded, strict=True):
        places += struct.pack(">HHHHII", number, 0, 0, 1, offset_bytes, len(data))
        offset_bytes += len(data)
    sizes = (_full_box(b"ispe", 0, struct.pack(">II", side, side)) for side in (128, 64))
    properties = _box(b"ipco", *sizes, coded[0][0])
    of_items = struct.pack(">IHBB", count, 1, 1, 1)
    of_items += b"".join(struct.pack(">HBBB", number, 2, 2, 0x83) for number in numbers)
    parts = _box(b"dimg", struct.pack(">HH4H", 1, 4, 2, 3, 4, 5))
    small = _box(b"thmb", struct.pack(">HHH", 6, 1, 1)) if thumbnail else b""
    meta = _full_box(
        b"meta",
        0,
        _full_box(b"hdlr", 0, bytes(4) + b"pict" + bytes(13))
        + _full_box(b"pitm", 0, struct.pack(">H", 1))
        + _full_box(b"iloc", 1, places)
        + _full_box(b"iinf", 0, struct.pack(">H", count) + b"".join(items))
        + _full_box(b"iref", 0, parts + small)
        + _box(b"iprp", properties, _full_box(b"ipma", 0, of_items))
        + _box(b"idat", struct.pack(">BBBBHH", 0, 0, 1, 1, 128, 128)),
    )
    return _box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf") + meta


def _box(name: bytes, *content: bytes) -> bytes:
    whole = b"".join(content)
    return struct.pack(">I", 8 + len(whole)) + name + whole


def _full_box(name: bytes, version: int, content: bytes, flags: int = 0) -> bytes:
    return _box(name, struct.pack(">I", version << 24 | flags), content)


def write_sound(path: Path) -> Path:
    """Half a second of silence, without pictures."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), "s16", "mono")
        frame.rate, frame.pts = 8000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
