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


def write_sound(path: Path) -> Path:
    """Half a second of silence, without pictures."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), "s16", "mono")
        frame.rate, frame.pts = 8000, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path
