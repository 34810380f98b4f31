"""What two computations of one encoder are compared by."""

from __future__ import annotations

import numpy as np
import pytest

from vqedge.agreement import (
    chance_of_loss,
    log_softmax,
    matched_share,
    patch_cosine,
    row_cosines,
)


def test_log_likelihoods_are_of_the_last_axis_whatever_its_size() -> None:
    logits = np.array([[1e4, 1e4 + 1, 1e4 - 1], [0, 0, 0]], np.float32)
    found = log_softmax(logits)
    assert found[0].tolist() == pytest.approx([-1.4076059, -0.4076059, -2.4076059])
    assert found[1].tolist() == pytest.approx([-np.log(3)] * 3)
    assert (found == np.stack([log_softmax(row) for row in logits])).all()


def test_cosines_are_of_rows_in_pairs_and_none_is_nan() -> None:
    a = np.array([[1, 0], [1, 1], [3, 4], [0, 0]], np.float32)
    b = np.array([[2, 0], [1, -1], [-3, -4], [1, 0]], np.float32)
    assert row_cosines(a, b).round(12).tolist() == [1.0, 0.0, -1.0, 0.0]


def test_the_cosine_of_patches_does_not_mind_the_order_of_rows() -> None:
    rows = np.eye(3, 4, dtype=np.float32)
    where = np.array([[0, 1], [2, 1]], np.int32)
    turned = np.array([[2, 1], [0, 1]], np.int32)
    assert patch_cosine(rows, where, 2 * rows[::-1], turned) == 1.0
    assert patch_cosine(rows, where, rows, turned) == 0.5
    assert patch_cosine(rows, where, rows[:1], np.zeros_like(where)) == 0.25


def test_matching_takes_the_largest_overlaps_first() -> None:
    a, b = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 0, 0, 0, 0])
    assert matched_share(a, b) == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("ours", "theirs", "chance"),
    [
        ([1, 1, 1], [2, 2, 2], 1 / 8),
        ([2, 2, 2], [1, 1, 1], 1.0),
        ([3, 1, 0], [3, 1, 0], 1.0),
        ([0, 5], [3, 4], 1 / 2),  # behind by 3 and -1: as far as 2 are 3 - 1 and 3 + 1
        ([0] * 7, [1] * 7, 1 / 128),
        ([0] * 7 + [1], [1] * 7 + [0], 9 / 256),  # one of eight back, or none
    ],
)
def test_the_chance_of_a_loss_is_that_of_flipped_signs(
    ours: list[int], theirs: list[int], chance: float
) -> None:
    assert chance_of_loss(ours, theirs) == pytest.approx(chance)


def test_a_loss_is_told_on_the_same_clips_only() -> None:
    with pytest.raises(ValueError, match="is longer than"):
        chance_of_loss([1], [1, 1])
