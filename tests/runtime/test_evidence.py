"""Evidence: what leaving a code out costs the answer, and when it is to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vqedge.errors import PromptError
from vqedge_runtime.answers import Timings, Video
from vqedge_runtime.evidence import (
    _quarters,
    evidence_from_drops,
    find_evidence,
    frame_edges_s,
    mass_of,
)
from vqedge_runtime.llm import ChoiceScores, FakeLanguageModel, VideoRows
from vqedge_runtime.tokens import Codes, TokenSet

# Four frames of 2 x 2 patches: code 0 everywhere, 1 in frames 0 and 1, 2 in frame 3 alone.
MAP = np.array([[[0, 1], [0, 1]], [[0, 0], [0, 1]], [[0, 0], [0, 0]], [[2, 2], [2, 0]]], np.int32)


def video(index_map: np.ndarray = MAP, width: int = 4, start_s: float = 2.0) -> Video:
    count = int(index_map.max()) + 1
    values = np.arange(1, count + 1, dtype=np.float16)[:, None] * np.ones(width, np.float16)
    tokens = TokenSet(values.astype(np.float32), Codes(index_map, values))
    return Video(tokens, 8.0, len(index_map), (3.0, 5.0, 7.0, 9.0), Timings(), start_s)


class Additive(FakeLanguageModel):
    """An answer is as likely as the first numbers of all rows add up to."""

    def score_choices(
        self, video: VideoRows, question: str, choices: Sequence[str]
    ) -> ChoiceScores:
        super().score_choices(video, question, choices)
        return ChoiceScores(tuple(choices), (float(video.rows[:, 0].sum()),))


def test_a_drop_is_what_the_answer_loses_without_the_code() -> None:
    done: list[int] = []
    llm = Additive(width=4)
    found = find_evidence(llm, video(), "What?", "red", done.append)
    assert (found.answer, found.log_likelihood) == ("red", 6.0)
    assert [(item.code, item.drop_nats) for item in found.codes] == [(2, 3.0), (1, 2.0), (0, 1.0)]
    assert [item.share for item in found.codes] == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert [(item.start_s, item.end_s) for item in found.codes] == [(8, 10), (2, 6), (2, 10)]
    assert done == [0, 1, 2]
    assert len({key for key, _ in llm.calls}) == 4, "one prompt with all codes, one without each"


class Either(FakeLanguageModel):
    """The answer is sure as soon as one of codes 3 and 12 is read: their first numbers are high."""

    def score_choices(
        self, video: VideoRows, question: str, choices: Sequence[str]
    ) -> ChoiceScores:
        super().score_choices(video, question, choices)
        seen = set(video.rows[:, 0].astype(int)) & {4, 13}
        return ChoiceScores(tuple(choices), (-0.001 if seen else -9.0,))


def test_codes_that_show_the_same_thing_both_have_evidence() -> None:
    done: list[int] = []
    llm = Either(width=4)
    told = video(np.arange(20, dtype=np.int32).reshape(5, 2, 2))
    found = find_evidence(llm, told, "What?", "red", done.append)
    assert {item.code for item in found.codes[:2]} == {3, 12}, "leaving out either costs nothing"
    assert set(found.strongest) <= {3, 12} and found.codes[1].drop_nats > 2
    assert done == list(range(20)) and len(llm.calls) == 1 + 48
    again = find_evidence(Either(width=4), told, "What?", "red")
    assert again == found, "the same codes are left out every time"


def test_quarters_are_dealt_out_whole() -> None:
    read = _quarters(18)
    assert read.shape == (48, 18)
    for parts in read.reshape(12, 4, 18):
        assert (parts.sum(0) == 1).all(), "a code is in one part of a round"
        assert sorted(parts.sum(1)) == [4, 4, 5, 5]


def test_a_code_told_in_words_is_left_out_with_all_of_them() -> None:
    plain = video()
    rows = np.repeat(plain.tokens.rows, 3, axis=0) / 3
    words = np.arange(len(rows), dtype=np.int32)
    told = replace(plain, tokens=TokenSet(rows, plain.tokens.codes, words))
    assert told.tokens.rows_per_code == 3
    found = find_evidence(Additive(width=4), told, "What?", "red")
    assert [item.code for item in found.codes] == [2, 1, 0]
    assert [item.drop_nats for item in found.codes] == pytest.approx([3.0, 2.0, 1.0])


def test_the_strongest_hold_half_of_the_evidence() -> None:
    drops = {2: [0.0, 1.0, 1.5], 1: [1.0, 1.0, 1.5], 0: [-1.0, 0.0, -0.1]}
    assert evidence_from_drops(video(), "a", 0.0, np.array(drops[2])).strongest == (2,)
    assert evidence_from_drops(video(), "a", 0.0, np.array(drops[1])).strongest == (2, 0)
    assert evidence_from_drops(video(), "a", 0.0, np.array(drops[0])).strongest == ()


@pytest.mark.parametrize(
    ("drops", "span"),
    [
        ([0.0, 1.0, 0.0], (2, 6)),  # two patches, then one: just half
        ([0.0, 0.0, 1.0], (8, 10)),
        ([1.0, 0.0, 0.0], (2, 8)),  # the last frame has a quarter of it
        ([-1.0, 0.0, -2.0], (2, 10)),  # none at all
    ],
)
def test_the_span_is_where_the_evidence_is_seen(
    drops: list[float], span: tuple[float, float]
) -> None:
    found = evidence_from_drops(video(), "a", 0.0, np.array(drops))
    assert (found.start_s, found.end_s) == span


def test_a_clip_of_one_code_has_nothing_to_leave_out() -> None:
    llm = Additive(width=4)
    found = find_evidence(llm, video(np.zeros((4, 2, 2), np.int32)), "What?", "red")
    assert (found.codes, found.strongest) == ((), ())
    assert (found.start_s, found.end_s) == (2, 10)
    assert len(llm.calls) == 1


def test_an_empty_question_or_answer() -> None:
    with pytest.raises(PromptError):
        find_evidence(Additive(width=4), video(), " ", "red")
    with pytest.raises(PromptError, match="every answer needs a word, as 'red'"):
        find_evidence(Additive(width=4), video(), "What?", " ")


@given(st.lists(st.floats(-5, 5, allow_subnormal=False), min_size=3, max_size=3))
def test_whatever_the_drops_shares_and_spans_make_sense(drops: list[float]) -> None:
    found = evidence_from_drops(video(), "a", -1.0, np.array(drops))
    shares = [item.share for item in found.codes]
    assert sum(shares) == pytest.approx(1.0 if max(drops) > 0 else 0.0)
    assert all((item.share > 0) == (item.drop_nats > 0) for item in found.codes)
    assert [item.drop_nats for item in found.codes] == sorted(drops, reverse=True)
    assert 2 <= found.start_s < found.end_s <= 10


def test_mass_and_edges() -> None:
    mass = mass_of(Codes(MAP, np.zeros((3, 1), np.float16)))
    assert mass.tolist() == [[0.5, 0.5, 0], [0.75, 0.25, 0], [1, 0, 0], [0.25, 0, 0.75]]
    assert frame_edges_s(2.0, 10.0, 4) == (2, 4, 6, 8, 10)
