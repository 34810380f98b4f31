"""Frames as LLaVA-OneVision takes them: by number from first to last, by a bicubic filter."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from av.video.reformatter import Interpolation
from PIL import Image
from tiny_bundle import asking_facts, write_bundle
from video_maker import image_bytes, numbered, numbers_in, write_video

from vqedge.sampling import FrameRule
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.encoding import EncodingSession
from vqedge_runtime.video import clip_from_frames, clip_from_path, clips_from_path
from vqedge_runtime.video.canvas import _FILTERS
from vqedge_runtime.video.clip import _instants_s, _Request
from vqedge_runtime.video.source import never

PAGE = Path(__file__).parents[2] / "docs/bundle-format.md"
ENDS, BICUBIC = FrameRule(sampling="ends"), FrameRule(resize="stretch-bicubic")
B_FRAMES = {"g": "12", "bf": "3", "crf": "10", "sc_threshold": "0", "preset": "veryfast"}
RATES = {
    "a.mp4": Fraction(10),
    "b.mp4": Fraction(24000, 1001),
    "a.mkv": Fraction(30000, 1001),
    "a.avi": Fraction(25),
    "a.webm": Fraction(60),
}
SIZE, FRAMES = 32, 101


def by_number(count: int, frames: int) -> list[int]:
    """As the published code reads them: `np.linspace` over the numbers of all frames."""
    found: list[int] = np.linspace(0, count - 1, frames, dtype=int).tolist()
    return found


@pytest.mark.parametrize("frames", [1, 2, 8, 16, FRAMES, 120])
@pytest.mark.parametrize("name", RATES)
def test_frames_by_their_numbers(tmp_path: Path, name: str, frames: int) -> None:
    times = [round(1000 * n / RATES[name]) for n in range(FRAMES)]
    codecs = {
        "a.avi": ("mpeg4", {"qscale": "2"}),
        "a.webm": ("libvpx", {"crf": "4", "b": "2M", "deadline": "realtime"}),
    }
    codec, options = codecs.get(name, ("libx264", B_FRAMES))
    path = write_video(tmp_path / name, times, codec, options=options, rate=RATES[name])
    clip = clip_from_path(path, frames, SIZE, rule=ENDS)
    assert numbers_in(clip.frames_thwc) == by_number(FRAMES, frames)


@pytest.mark.parametrize(("frames", "count"), [(1, 9), (8, 1), (8, 31), (64, 154), (64, 274)])
def test_numbers_are_those_of_the_page(frames: int, count: int) -> None:
    """docs/bundle-format.md: a floor in float64, which is not the exact one where T is 64."""
    numbers = [0]
    if frames > 1:
        step = (count - 1) / (frames - 1)
        numbers = [math.floor(i * step) for i in range(frames - 1)] + [count - 1]
    request = _Request(Path(), frames, SIZE, [], ENDS, never)
    start_s, length_s = 2.0, count / 30
    times = [start_s + (j + 0.5) / count * length_s for j in numbers]
    assert _instants_s(request, (start_s, start_s + length_s), 1 / 30) == pytest.approx(times)


def test_the_page_names_the_flags_of_the_filters() -> None:
    text = PAGE.read_text(encoding="utf-8")
    told = text[text.index("`resize` says how") : text.index("## The bridge")]
    both = 1 << 13 | 1 << 18 | 1 << 19  # of swscale.h
    names = {"SWS_FULL_CHR_H_INT", "SWS_ACCURATE_RND", "SWS_BITEXACT", "SWS_AREA", "SWS_BICUBIC"}
    assert set(re.findall(r"SWS_\w+", told)) == names
    filters = dict(re.findall(r"`(stretch[a-z-]*)` with `SWS_(\w+)`", told))
    assert {name: Interpolation[flag] | both for name, flag in filters.items()} == _FILTERS


def test_spans_have_ends_of_their_own(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", range(0, 5000, 100), options=B_FRAMES)
    clips = clips_from_path(path, 5, SIZE, [(0.0, 1.0), (2.0, 4.0)], ENDS)
    assert [numbers_in(clip.frames_thwc) for clip in clips] == [
        [0, 2, 4, 6, 9],
        [20, 24, 29, 34, 39],
    ]


def test_a_folder_and_an_image(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(image_bytes(numbered(number)))
    clip = clip_from_path(tmp_path, 5, SIZE, rule=ENDS)
    assert numbers_in(clip.frames_thwc) == by_number(12, 5)
    still = clip_from_path(tmp_path / "7.png", 5, SIZE, rule=ENDS)
    assert numbers_in(still.frames_thwc) == [7] * 5


def test_a_session_reads_frames_by_the_rule_of_its_bundle(tmp_path: Path) -> None:
    rule, facts = FrameRule("ends", "stretch-bicubic"), asking_facts()  # frames are kept to ask
    encoder = facts.encoder.model_copy(update=rule._asdict())
    facts = facts.model_copy(update={"encoder": encoder})
    manifest = write_bundle(tmp_path / "a.vqedge", facts=facts).manifest
    path = write_video(tmp_path / "a.mp4", range(0, 2000, 100), options=B_FRAMES)
    pixels, times_s = [numbered(number) for number in range(20)], range(20)
    with EncodingSession(FakeEncoder(), FakeBridge(), manifest) as session:
        videos = session.encode(path), session.encode_frames(pixels, times_s=times_s)
    for video, sampled in zip(
        videos,
        (
            partial(clip_from_path, path, 8, 224),
            partial(clip_from_frames, pixels, times_s, 8, 224),
        ),
        strict=True,
    ):
        wanted = sampled(rule=rule)
        assert video.times_s == wanted.times_s != sampled().times_s
        assert video.frames_thwc is not None
        assert np.array_equal(video.frames_thwc, wanted.frames_thwc)


def scene(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Smooth colours, hard edges and a little noise."""
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    pixels = pixels.astype(float)
    for _ in range(30):
        top, left = rng.integers(0, height), rng.integers(0, width)
        pixels[top : top + height // 8, left : left + width // 6] = rng.integers(0, 256, 3)
    return np.clip(pixels + rng.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(240, 320), (480, 854), (1080, 1920), (1920, 1080)])
def test_the_bicubic_filter_is_nearly_that_of_pillow(
    tmp_path: Path, height: int, width: int
) -> None:
    """Levels of 255: the mean below 0.6, 99 of 100 within 4. Area averaging is further off."""
    pixels, path = scene(height, width), tmp_path / "a.png"
    path.write_bytes(image_bytes(pixels))
    wanted = np.asarray(Image.fromarray(pixels).resize((384, 384), Image.Resampling.BICUBIC))
    off = {}
    for rule in (BICUBIC, FrameRule()):
        found = clip_from_path(path, 1, 384, rule=rule).frames_thwc[0]
        off[rule.resize] = np.abs(found.astype(int) - wanted)
    for name, levels in off.items():
        shares = (levels.mean(), np.quantile(levels, 0.99), levels.max())
        print(f"{height}x{width} {name}: mean {shares[0]:.2f}, 99 % {shares[1]}, max {shares[2]}")
    assert off["stretch-bicubic"].mean() < 0.6
    assert np.quantile(off["stretch-bicubic"], 0.99) <= 4
    assert off["stretch"].mean() > 1.2 * off["stretch-bicubic"].mean()
