"""Two backends against each other, in ids and margins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.compare import compared
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.encoders.protocol import Frames, Text
from vqedge_runtime.tokens import Codes, TokenSet, Values

CLIP = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


class Turned(FakeEncoder):
    """Gives the first patches of every clip another id, at a margin of its own choice."""

    def __init__(self, patches: int) -> None:
        super().__init__()
        self.patches = patches

    def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
        right = super().encode(frames_thwc, budget)
        index_map = right.index_map.copy()
        index_map.flat[: self.patches] += 1
        return Codes(index_map, right.values * np.float16(2.0), right.margin)


class Unsure(FakeEncoder):
    """All its choices are close calls but for the first patch."""

    def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
        sure = super().encode(frames_thwc, budget)
        margin = np.full(sure.index_map.shape, 1e-4, np.float32)
        margin.flat[0] = 0.25
        return Codes(sure.index_map, sure.values, margin)


def test_equal_backends_have_nothing_to_report() -> None:
    figures = compared(FakeEncoder(), FakeEncoder(), FakeBridge(), [(CLIP, 4), (CLIP, 2)])
    assert (figures.clips, figures.clips_same) == (2, 2)
    assert figures.ids_differ == figures.safe_ids_differ == figures.margin_where_ids_differ == 0.0
    assert figures.token_cosine == pytest.approx(1.0)
    assert figures.token_cosine_mean == pytest.approx(1.0)
    assert figures.token_cosine_patches == pytest.approx(1.0)
    assert figures.backend == figures.reference == "fake encoder"


def test_turned_ids_are_counted_with_the_margins_they_had_in_the_reference() -> None:
    figures = compared(Unsure(), Turned(8), FakeBridge(), [(CLIP, 4)])
    assert figures.clips_same == 0 and figures.token_cosine is None
    assert figures.ids_differ == 8 / 512
    assert figures.safe_ids_differ == 1 / 512, "only the first of them was a safe choice"
    assert figures.margin_where_ids_differ == 0.25
    assert figures.token_cosine_mean == pytest.approx(1.0), "a length is not a direction"


def test_tokens_are_compared_patch_by_patch_where_codes_have_another_order() -> None:
    class Backwards(FakeEncoder):
        def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
            right = super().encode(frames_thwc, budget)
            return Codes(3 - right.index_map, signed(right.values)[::-1], right.margin)

    class Signed(FakeEncoder):
        def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
            right = super().encode(frames_thwc, budget)
            return Codes(right.index_map, signed(right.values), right.margin)

    def signed(values: Values) -> npt.NDArray[np.float16]:
        return (values * np.array([[1], [-1], [-1], [-1]])).astype(np.float16)

    figures = compared(Signed(), Backwards(), FakeBridge(), [(CLIP, 4)])
    assert figures.token_cosine_mean == pytest.approx(0.0), "row by row, of other codes"
    assert figures.token_cosine_patches == pytest.approx(1.0)
    assert (figures.ids_differ, figures.maps_differ) == (1.0, 0.0)


def test_patches_have_no_tokens_where_no_row_is_one_codes() -> None:
    class Official(FakeBridge):
        def tokens(self, codes: Codes) -> TokenSet:
            found = super().tokens(codes)
            return TokenSet(np.concatenate([found.rows, found.rows[:1]]), codes)

    figures = compared(FakeEncoder(), FakeEncoder(), Official(), [(CLIP, 4)])
    assert figures.token_cosine_patches is None and figures.token_cosine_mean > 0.99
