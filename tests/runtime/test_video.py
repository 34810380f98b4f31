"""The frames of a clip are those on screen at evenly spaced instants, whatever the file."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from unittest.mock import Mock, patch

import av
import numpy as np
import numpy.typing as npt
import pytest
from video_maker import (
    image_bytes,
    jpeg_with_orientation,
    numbered,
    numbers_in,
    write_video,
)

from vqedge.errors import VideoError
from vqedge_runtime.video import Clip, canvas, clip_from_path, cursor, source

T, SIZE = 8, 32
EVEN_MS = range(0, 5000, 100)
B_FRAMES = {"g": "12", "bf": "3", "crf": "10", "sc_threshold": "0", "preset": "veryfast"}
SHARED = Path(__file__).parents[3] / "shared" / "data"


def expected(times_ms: Sequence[int], end_ms: float, start_ms: float = 0.0) -> list[int]:
    """The slow twin: for every instant, the last frame at or before it, else the first."""
    chosen = []
    for i in range(T):
        instant = start_ms + (i + 0.5) / T * (end_ms - start_ms)
        chosen.append(max((n for n, t in enumerate(times_ms) if t <= instant + 0.001), default=0))
    return chosen


def check(clip: Clip, numbers: list[int], times_ms: Sequence[int]) -> None:
    """The clip shows these numbers, and says so."""
    assert numbers_in(clip.frames_thwc) == numbers
    assert clip.times_s == pytest.approx([times_ms[n] / 1000 for n in numbers], abs=0.002)
    assert clip.frames_thwc.shape == (T, SIZE, SIZE, 3)
    assert clip.frames_thwc.dtype == np.uint8
    assert (clip.width, clip.height) == (64, 48)
    assert clip.decode_ms > 0 < clip.preprocess_ms


CODECS = [
    ("a.mp4", "libx264", B_FRAMES),
    ("a.mkv", "libx264", B_FRAMES),
    ("a.ts", "libx264", B_FRAMES),
    ("a.flv", "libx264", B_FRAMES),
    ("a.avi", "mpeg4", {"g": "12", "qscale": "2"}),
    ("a.webm", "libvpx", {"g": "12", "crf": "4", "b": "2M", "deadline": "realtime"}),
    ("a.mov", "mjpeg", {"qscale": "2"}),
]


@pytest.mark.parametrize(("name", "codec", "options"), CODECS, ids=[c[0] for c in CODECS])
def test_even_frame_rate(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    """Every container and codec gives the frames of the slow twin."""
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(tmp_path / name, EVEN_MS, codec, pixel_format, options)
    clip = clip_from_path(path, T, SIZE)
    assert clip.duration_s == pytest.approx(5.0, abs=0.25)
    check(clip, expected(EVEN_MS, clip.duration_s * 1000), EVEN_MS)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_variable_frame_rate(tmp_path: Path, name: str) -> None:
    """Frames count by time on screen, not by number."""
    times = [0, 40, 80, 120, 160, 1000, 1040, 1080, 3000, 3040, 3900]
    clip = clip_from_path(write_video(tmp_path / name, times), T, SIZE)
    check(clip, expected(times, clip.duration_s * 1000), times)
    assert len(set(clip.times_s)) < T


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4"])
def test_times_count_from_the_start_of_the_stream(tmp_path: Path, name: str) -> None:
    """A first time stamp other than zero changes nothing."""
    path = write_video(tmp_path / name, range(7000, 12000, 100), options=B_FRAMES)
    clip = clip_from_path(path, T, SIZE)
    assert numbers_in(clip.frames_thwc) == expected(EVEN_MS, 5000)
    assert clip.times_s[0] == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("name", "muxer"), [("a.webm", {"live": "1"}), ("a.h264", {}), ("a.mkv", {"live": "1"})]
)
def test_without_duration(tmp_path: Path, name: str, muxer: dict[str, str]) -> None:
    """No duration in the header, or not even time stamps: the packets tell."""
    codec = "libvpx" if name == "a.webm" else "libx264"
    path = write_video(tmp_path / name, EVEN_MS, codec, options={"g": "12"}, muxer=muxer)
    clip = clip_from_path(path, T, SIZE)
    times = range(0, 2000, 40) if name == "a.h264" and clip.duration_s < 3 else EVEN_MS
    check(clip, expected(times, clip.duration_s * 1000), times)
    assert len(set(clip.times_s)) == T


def long_video(folder: Path, name: str) -> Path:
    """19 s with key frames 0.9 s to 2.3 s apart and B-frames."""
    codec, options = "libx264", {**B_FRAMES, "g": "23", "keyint_min": "9"}
    if name in ("a.avi", "b.avi", "a.asf"):
        codec, options = "mpeg4", {"g": "23", "qscale": "2", "bf": "2" if name == "b.avi" else "0"}
    if name.endswith("webm"):
        codec, options = (
            "libvpx-vp9",
            {"g": "23", "crf": "10", "cpu-used": "8", "deadline": "realtime"},
        )
    if name.startswith("open"):
        options["x264-params"] = "open-gop=1"
    return write_video(folder / name, range(0, 19000, 100), codec, options=options)


@pytest.mark.parametrize(
    "name",
    [
        "a.mp4",
        "a.mkv",
        "open.mp4",
        "open.mkv",
        "open.ts",
        "a.ts",
        "a.avi",
        "b.avi",
        "open.avi",
        "a.webm",
        "a.flv",
        "a.asf",
        "a.nut",
    ],
)
def test_seeking_finds_the_frames_of_full_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The fast path equals its slow twin, in pixels too, for whole videos and spans."""
    path = long_video(tmp_path, name)
    seek = source.Source.seek
    with patch.object(source.Source, "seek", autospec=True, side_effect=seek) as spy:
        for span in ((None, None), (7.03, 18.2), (11.0, 11.9)):
            gains = ((0.0, 0.0), (0.5, 2.0), (1e9, 1e9))
            clips = [_clip_with(monkeypatch, path, span, *gain) for gain in gains]
            for clip in clips:
                np.testing.assert_array_equal(clip.frames_thwc, clips[-1].frames_thwc)
                assert clip.times_s == clips[-1].times_s
    assert spy.call_count > 3
    assert clips[-1].times_s[0] == pytest.approx(11.0, abs=0.11)


def test_h264_in_avi_whose_time_stamps_are_in_decoding_order(tmp_path: Path) -> None:
    """AVI cannot stamp B-frames: the error stays within the reordering of neighbours."""
    clip = clip_from_path(write_video(tmp_path / "a.avi", EVEN_MS, options=B_FRAMES), T, SIZE)
    wanted = expected(EVEN_MS, 5000)
    assert numbers_in(clip.frames_thwc) == pytest.approx(wanted, abs=3)
    assert len(set(clip.times_s)) == T


def test_a_clock_that_starts_again_goes_on(tmp_path: Path) -> None:
    """Joined recordings: the second half is reached, at the usual rate."""
    first = write_video(tmp_path / "a.ts", EVEN_MS)
    joined = tmp_path / "joined.ts"
    joined.write_bytes(first.read_bytes() * 2)
    with source.opened(joined) as opened:
        shots = list(cursor.shots_from(opened, opened.frames(), strict=False))
    times = [shot.time_s for shot in shots]
    assert len(times) == pytest.approx(100, abs=2)
    assert all(a < b for a, b in pairwise(times))
    assert times[-1] == pytest.approx(9.9, abs=0.5)


def test_no_seeking_without_a_time_stamp_on_every_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MPEG program streams stamp some frames only, and FFmpeg's guesses change after a seek."""
    path = write_video(tmp_path / "a.mpg", range(0, 7600, 40), "mpeg2video", options={"g": "9"})
    monkeypatch.setattr(source.Source, "seek", lambda self, t: pytest.fail("it did seek"))
    assert len(set(clip_from_path(path, 2, SIZE).times_s)) == 2


def _clip_with(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    span: tuple[float | None, float | None],
    indexed_gain_s: float,
    blind_gap_s: float,
) -> Clip:
    monkeypatch.setattr(cursor, "INDEXED_GAIN_S", indexed_gain_s)
    monkeypatch.setattr(cursor, "BLIND_GAP_S", blind_gap_s)
    return clip_from_path(path, T, SIZE, *span)


def test_only_sampled_frames_are_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversion and memory follow T, not the length of the video."""
    spy = Mock(wraps=canvas._scaled)
    monkeypatch.setattr(canvas, "_scaled", spy)
    clip_from_path(write_video(tmp_path / "a.mp4", EVEN_MS), T, SIZE)
    assert spy.call_count == T


def test_spans(tmp_path: Path) -> None:
    """A span is divided like a video; its end may lie a rounding behind the video's."""
    path = write_video(tmp_path / "a.mp4", EVEN_MS, options=B_FRAMES)
    clip = clip_from_path(path, T, SIZE, 1.0, 3.0)
    check(clip, expected(EVEN_MS, 3000, 1000), EVEN_MS)
    assert clip.duration_s == pytest.approx(2.0)
    assert clip_from_path(path, T, SIZE, start_s=4.0).duration_s == pytest.approx(1.0)
    assert clip_from_path(path, T, SIZE, end_s=5.3).duration_s == pytest.approx(5.0)


def test_one_frame(tmp_path: Path) -> None:
    """A video of one frame gives that frame T times."""
    clip = clip_from_path(write_video(tmp_path / "a.mp4", [0]), T, SIZE)
    assert set(clip.times_s) == {0.0}


def test_gif(tmp_path: Path) -> None:
    """An animation is a video: rgb8 cannot show every grey, so only the times are read."""
    path = write_video(tmp_path / "a.gif", EVEN_MS, "gif", "rgb8")
    clip = clip_from_path(path, T, SIZE)
    assert clip.times_s == pytest.approx([n / 10 for n in expected(EVEN_MS, 5000)], abs=0.02)


@pytest.mark.parametrize("codec", ["png", "mjpeg"])
def test_still_image(tmp_path: Path, codec: str) -> None:
    """An image has no duration and no times."""
    path = tmp_path / "holiday"
    path.write_bytes(image_bytes(numbered(100), codec))
    clip = clip_from_path(path, T, SIZE)
    check(clip, [100] * T, [0] * 101)
    assert clip.duration_s == 0.0
    with pytest.raises(VideoError, match="still image"):
        clip_from_path(path, T, SIZE, end_s=1.0)


def test_folder_of_images(tmp_path: Path) -> None:
    """Images follow one another by the numbers in their names, one a second; no other files."""
    for number in range(12):
        (tmp_path / f"frame{number}.PNG").write_bytes(image_bytes(numbered(number)))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._frame3.png").write_bytes(b"left by a Mac")
    (tmp_path / "sub.png").mkdir()
    times = range(0, 12000, 1000)
    clip = clip_from_path(tmp_path, T, SIZE)
    check(clip, expected(times, 12000), times)
    assert clip.duration_s == 12.0
    check(clip_from_path(tmp_path, T, SIZE, 3, 7), expected(times, 7000, 3000), times)
    (tmp_path / "frame5.PNG").write_bytes(b"broken")
    with pytest.raises(VideoError, match=r"frame5\.PNG"):
        clip_from_path(tmp_path, T, SIZE)


def corners(clip: Clip) -> str:
    """Where the white quarter is: two letters of top/bottom and left/right."""
    bright = clip.frames_thwc[0].astype(float).mean(axis=-1)
    half = bright.shape[0] // 2
    quarters = {
        "TL": bright[:half, :half],
        "TR": bright[:half, half:],
        "BL": bright[half:, :half],
        "BR": bright[half:, half:],
    }
    return max(quarters, key=lambda k: quarters[k].mean())


def white_corner() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """uint8 [48, 64, 3], white at the top left, else black."""
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24, :32] = 255
    return pixels


@pytest.mark.parametrize(
    ("rotation", "corner", "size"),
    [
        ({"degrees": 0}, "TL", (64, 48)),
        ({"degrees": 90}, "BL", (48, 64)),
        ({"degrees": 180}, "BR", (64, 48)),
        ({"degrees": -90}, "TR", (48, 64)),
        ({"degrees": 0, "hflip": True}, "TR", (64, 48)),
        ({"degrees": 0, "vflip": True}, "BL", (64, 48)),
        ({"degrees": 90, "hflip": True}, "BR", (48, 64)),
        ({"degrees": 31}, "TL", (64, 48)),
    ],
)
def test_rotation_of_a_video(
    tmp_path: Path, rotation: dict[str, float], corner: str, size: tuple[int, int]
) -> None:
    """Display matrices are applied, mirrored ones too, unless they are not multiples of 90."""
    pictures = [white_corner()] * 3
    path = write_video(tmp_path / "a.mp4", [0, 100, 200], rotation=rotation, pictures=pictures)
    clip = clip_from_path(path, 1, SIZE)
    assert (corners(clip), (clip.width, clip.height)) == (corner, size)


@pytest.mark.parametrize(("orientation", "corner"), [(1, "TL"), (3, "BR"), (6, "TR"), (8, "BL")])
def test_rotation_of_a_photo(tmp_path: Path, orientation: int, corner: str) -> None:
    """EXIF says how the camera was held."""
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg_with_orientation(white_corner(), orientation))
    assert corners(clip_from_path(path, 1, SIZE)) == corner


def frames_alive() -> list[av.VideoFrame]:
    """By type: isinstance asks objects of other libraries for their class, and some warn."""
    return [o for o in gc.get_objects() if type(o) is av.VideoFrame]


@pytest.mark.parametrize("rotation", [None, {"degrees": 90}])
def test_frames_are_freed_with_the_clip(tmp_path: Path, rotation: dict[str, float] | None) -> None:
    """No picture waits for the garbage collector, which may be hours of video away."""
    path = write_video(tmp_path / "a.mp4", EVEN_MS, rotation=rotation)
    gc.collect()
    gc.disable()
    try:
        before = frames_alive()
        clip_from_path(path, T, SIZE)
        held = [frame for frame in frames_alive() if all(frame is not other for other in before)]
        assert all(frame.width <= 16 for frame in held)
        assert len(held) <= 1
    finally:
        gc.enable()


def test_absurd_matrix_is_ignored() -> None:
    """Zeros and the smallest integer turn nothing."""
    lowest = -(2.0**31)
    for matrix in ((0.0, 0.0, 0.0, 0.0), (lowest, lowest, lowest, lowest), (lowest, 0.0, 0.0, 0.0)):
        assert canvas._orientation_from_matrix(*matrix) == (False, False, False)


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv444p", "gray", "yuv422p10le"])
def test_pixel_formats(tmp_path: Path, pixel_format: str) -> None:
    """Ten bits, other chroma and grey all become 8-bit RGB."""
    path = write_video(tmp_path / "a.mkv", EVEN_MS, "ffv1", pixel_format)
    clip = clip_from_path(path, T, SIZE)
    check(clip, expected(EVEN_MS, clip.duration_s * 1000), EVEN_MS)


@pytest.mark.parametrize("transfer", [1, 2, 3, 16])
@pytest.mark.parametrize("primaries", [0, 2, 9])
def test_transfer_and_primaries_change_no_pixel(transfer: int, primaries: int) -> None:
    """0 and 3 are reserved: VP9 has such frames, and PyAV 17 refuses to scale them."""

    def drawn(color_trc: int, color_primaries: int) -> npt.NDArray[np.uint8]:
        frame = av.VideoFrame.from_ndarray(numbered(7), format="rgb24").reformat(format="yuv420p")
        frame.color_trc, frame.color_primaries = color_trc, color_primaries
        drawing = canvas.Canvas(1, SIZE)
        drawing.add(cursor.Shot(frame, 0.0, 0.0))
        return drawing.frames_thwc

    np.testing.assert_array_equal(drawn(transfer, primaries), drawn(2, 2))


@pytest.mark.parametrize(
    ("width", "height", "colorspace"), [(65534, 2, 2), (2, 65534, 2), (64, 48, 3)]
)
def test_shapes_and_colours_that_swscale_refuses(width: int, height: int, colorspace: int) -> None:
    """The nearest pixel and the usual colours, rather than no answer."""
    frame = av.VideoFrame(width, height, "yuv420p")
    for plane in frame.planes:
        plane.update(bytes([128]) * plane.buffer_size)
    frame.colorspace = colorspace
    drawing = canvas.Canvas(1, SIZE)
    drawing.add(cursor.Shot(frame, 0.0, 0.0))
    assert drawing.frames_thwc.min() > 90
    assert drawing.frames_thwc.max() < 140


@pytest.mark.parametrize("name", ["cockatoo.mp4", "flipping_pancake.mkv", "sea_turtle.flv"])
def test_real_videos(name: str) -> None:
    """Real clips: eight different frames, the shape and length of the index."""
    path = SHARED / "videos" / name
    if not path.exists():
        pytest.skip(f"{path} is not there")
    facts = {f["file"]: f for f in json.loads((SHARED / "videos/index.json").read_text())}[name]
    clip = clip_from_path(path, T, SIZE)
    assert (clip.width, clip.height) == (facts["width"], facts["height"])
    assert clip.duration_s == pytest.approx(facts["duration_s"], abs=0.1)
    assert len(set(clip.times_s)) == T
    assert clip.frames_thwc.std() > 10


def test_sampling_needs_a_frame_and_a_pixel(tmp_path: Path) -> None:
    """Nonsense from a caller is a ValueError, not a fault of the video."""
    for frames, size in ((0, 8), (8, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            clip_from_path(tmp_path, frames, size)
