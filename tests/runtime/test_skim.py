"""Frames that nobody looks at are not decoded, and those that are looked at stay the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from video_maker import numbers_in, write_video

from vqedge_runtime.video import clip_from_path, source
from vqedge_runtime.video.skim import skimmed

B_FRAMES = {"g": "250", "bf": "3", "b-pyramid": "1", "b-adapt": "0", "sc_threshold": "0"}
UNEVEN_MS = np.cumsum(np.random.default_rng(1).integers(10, 200, 60)).tolist()


@dataclass(frozen=True)
class Stamped:
    """A packet, as far as skimming looks."""

    pts: int | None
    dts: int | None


def wanted_in(packets: Sequence[Stamped | None], instants: Sequence[int]) -> list[bool]:
    return [wanted for _, wanted in skimmed(cast(Any, packets), instants, round)]


@given(
    steps=st.lists(st.integers(1, 9), min_size=2, max_size=80),
    depth=st.integers(0, 4),
    instants=st.lists(st.integers(0, 400), min_size=1, max_size=5).map(sorted),
    seed=st.integers(0, 99),
)
def test_every_frame_on_screen_and_its_successor_are_wanted(
    steps: list[int], depth: int, instants: list[int], seed: int
) -> None:
    shown = np.cumsum([10 * step for step in steps]).tolist()
    jitter = np.random.default_rng(seed).uniform(0, depth + 0.5, len(shown))
    order = np.argsort(np.arange(len(shown)) + jitter, kind="stable")  # of decoding
    late = max(int(order[i]) - i for i in range(len(shown)))
    early = max(0, max(i - int(order[i]) for i in range(len(shown))), late)
    dts = [shown[i] - 100 * early for i in range(len(shown))]
    packets = [Stamped(shown[place], stamp) for place, stamp in zip(order, dts, strict=True)]
    found = dict(zip([p.pts for p in packets], wanted_in([*packets, None], instants), strict=False))
    for instant in instants:
        here = max((t for t in shown if t <= instant), default=shown[0])
        after = min((t for t in shown if t > instant), default=shown[-1])
        assert found[here] and found[after]


def test_a_packet_without_time_stamp_ends_all_skipping() -> None:
    packets = [Stamped(i, i) for i in range(50)]
    packets[20] = Stamped(None, 20)
    found = wanted_in(packets, [45])
    assert not any(found[2:15]) and all(found[20:])


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("times_ms", [range(0, 6000, 100), UNEVEN_MS], ids=["even", "uneven"])
def test_skipping_shows_the_frames_of_full_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, times_ms: Sequence[int]
) -> None:
    path = write_video(tmp_path / name, times_ms, options=B_FRAMES)
    skipping, decoded = clip_from_path(path, 4, 32), _count_decoded(monkeypatch)
    again = clip_from_path(path, 4, 32)
    fewer = len(decoded)
    monkeypatch.setattr(source, "skimmed", lambda packets, *_: ((p, True) for p in packets))
    whole = clip_from_path(path, 4, 32)
    assert numbers_in(skipping.frames_thwc) == numbers_in(whole.frames_thwc)
    np.testing.assert_array_equal(skipping.frames_thwc, whole.frames_thwc)
    np.testing.assert_array_equal(again.frames_thwc, whole.frames_thwc)
    assert skipping.times_s == whole.times_s
    assert fewer < 0.75 * (len(decoded) - fewer)


def _count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    decoded: list[object] = []
    original = source.Source._decoded

    def counting(self: source.Source, packet: Any) -> Any:
        frames = original(self, packet)
        decoded.extend(frames)
        return frames

    monkeypatch.setattr(source.Source, "_decoded", counting)
    return decoded
