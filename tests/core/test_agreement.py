"""What two computations of one encoder are compared by."""

from __future__ import annotations

import numpy as np

from vqedge.agreement import row_cosines


def test_cosines_are_of_rows_in_pairs_and_none_is_nan() -> None:
    a = np.array([[1, 0], [1, 1], [3, 4], [0, 0]], np.float32)
    b = np.array([[2, 0], [1, -1], [-3, -4], [1, 0]], np.float32)
    assert row_cosines(a, b).round(12).tolist() == [1.0, 0.0, -1.0, 0.0]
