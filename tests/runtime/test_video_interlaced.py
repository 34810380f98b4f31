"""Two fields in one picture are shrunk together, as FFmpeg's own filter does."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from video_maker import write_video

from vqedge_runtime.video import canvas, clip_from_path
from vqedge_runtime.video.cursor import Shot

SIZE = 32
CODECS = {
    "a.mp4": ("libx264", {"x264-params": "interlaced=1:tff=1", "crf": "1"}),
    "a.mkv": ("mpeg2video", {"flags": "+ildct+ilme", "qscale": "1"}),
}


def moving(count: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """A bright block that moves between the fields of a picture."""
    pictures = []
    for number in range(count):
        picture = np.full((128, 128, 3), 30, np.uint8)
        picture[0::2, 4 * number : 4 * number + 30] = 220
        picture[1::2, 4 * number + 12 : 4 * number + 42] = 220
        pictures.append(picture)
    return pictures


def film(path: Path, **more: dict[str, float]) -> Path:
    codec, options = CODECS[path.name]
    times_ms = range(0, 400, 40)
    return write_video(path, times_ms, codec, options=options, pictures=moving(10), rate=25, **more)


def drawn(frame: av.VideoFrame) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    drawing = canvas.Canvas(1, SIZE)
    drawing.add(Shot(frame, 0.0, 0.0))
    return drawing.frames_thwc[0]


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("colorspace", [1, 5])
def test_the_mark_of_fields_changes_no_pixel(tmp_path: Path, name: str, colorspace: int) -> None:
    with av.open(str(film(tmp_path / name))) as container:
        frames = list(container.decode(video=0))
    assert all(frame.interlaced_frame for frame in frames)
    for frame in frames[::3]:
        plain = av.VideoFrame.from_ndarray(frame.to_ndarray(), format="yuv420p")
        assert not plain.interlaced_frame
        for each in (frame, plain):
            each.colorspace, each.color_range = colorspace, 1
        np.testing.assert_array_equal(drawn(frame), drawn(plain))


def test_fields_do_not_comb_and_are_turned(tmp_path: Path) -> None:
    clip = clip_from_path(film(tmp_path / "a.mp4", rotation={"degrees": 90}), 4, SIZE)
    assert (clip.width, clip.height) == (128, 128)
    steps = np.abs(np.diff(clip.frames_thwc.astype(int), axis=2))  # rows lie in columns now
    assert steps.mean() < 5
