"""What the language model reads in one go: ids or rows, each at a position of a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vqedge_runtime.llm.protocol import Rows

BRANCHES = 15  # sequences beside the main one, read side by side

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Cells:
    """n inputs, all ids or all rows.

    Attributes:
        inputs: token ids int32 `[n]`, or embedding rows float32 `[n, width]`.
        positions: int32 `[n]`, in the sequence.
        sequences: int32 `[n]`, 0 for the prompt, 1.. for its branches.
        wanted: bool `[n]`, where logits are to be computed.
    """

    inputs: Ids | Rows
    positions: Ids
    sequences: Ids
    wanted: npt.NDArray[np.bool_]

    @classmethod
    def at(
        cls,
        start: int,
        inputs: Sequence[int] | Ids | Rows,
        logits: Literal["none", "last", "all"] = "none",
        sequence: int = 0,
    ) -> Cells:
        """Inputs one after the other in a sequence, from position `start` on."""
        array = np.asarray(inputs)
        array = array.astype(np.float32 if array.ndim == 2 else np.int32, copy=False)
        count = len(array)
        wanted = np.full(count, logits == "all")
        wanted[-1:] |= logits == "last"
        positions = np.arange(start, start + count, dtype=np.int32)
        return cls(array, positions, np.full(count, sequence, np.int32), wanted)

    @classmethod
    def joined(cls, parts: Sequence[Cells]) -> Cells:
        """At least one run of cells after the other, all of ids or all of rows."""
        return cls(
            np.concatenate([part.inputs for part in parts]),
            np.concatenate([part.positions for part in parts]),
            np.concatenate([part.sequences for part in parts]),
            np.concatenate([part.wanted for part in parts]),
        )

    @classmethod
    def branching(cls, start: int, branches: Sequence[Sequence[int]]) -> Cells:
        """Ids for each of sequences 1, 2, ..., all from position `start` on, logits everywhere."""
        return cls.joined([cls.at(start, ids, "all", n) for n, ids in enumerate(branches, 1)])

    @property
    def is_rows(self) -> bool:
        """Whether the inputs are embedding rows."""
        return self.inputs.ndim == 2

    def __len__(self) -> int:
        """How many."""
        return len(self.inputs)

    def parts(self, size: int, outputs: int) -> Iterator[Cells]:
        """Cut into the fewest runs of at most `size` cells, and at most `outputs` wanted ones."""
        first = 0
        while first < len(self):
            last = min(first + size, len(self))
            wanted = np.flatnonzero(self.wanted[first:last])
            if len(wanted) > outputs:
                last = first + int(wanted[outputs])
            part = slice(first, last)
            yield Cells(
                self.inputs[part], self.positions[part], self.sequences[part], self.wanted[part]
            )
            first = last
