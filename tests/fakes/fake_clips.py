"""Clips that are no files, and a reader of files that must not be read."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class Gray:
    """A clip of one gray."""

    def frames(self, count: int, size: int) -> npt.NDArray[np.uint8]:
        return np.full((count, size, size, 3), 90, np.uint8)


def read_nothing(*_: object) -> npt.NDArray[np.uint8]:
    raise AssertionError("no video needs to be read for this")
