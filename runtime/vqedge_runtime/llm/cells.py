"""What the language model reads in one go: ids or rows, each at a position of a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from vqedge_runtime.llm.protocol import Rows

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
    ) -> Cells:
        """Inputs one after the other in sequence 0, from position `start` on."""
        array = np.asarray(inputs)
        array = array.astype(np.float32 if array.ndim == 2 else np.int32, copy=False)
        count = len(array)
        wanted = np.full(count, logits == "all")
        wanted[-1:] |= logits == "last"
        positions = np.arange(start, start + count, dtype=np.int32)
        return cls(array, positions, np.zeros(count, np.int32), wanted)

    @classmethod
    def branching(cls, start: int, branches: Sequence[Sequence[int]]) -> Cells:
        """Ids for each of sequences 1, 2, ..., all from position `start` on, logits everywhere."""
        ids = [token for branch in branches for token in branch]
        positions = [start + i for branch in branches for i in range(len(branch))]
        sequences = [number for number, branch in enumerate(branches, 1) for _ in branch]
        return cls(
            np.array(ids, np.int32),
            np.array(positions, np.int32),
            np.array(sequences, np.int32),
            np.ones(len(ids), np.bool_),
        )

    @property
    def is_rows(self) -> bool:
        """Whether the inputs are embedding rows."""
        return self.inputs.ndim == 2

    def __len__(self) -> int:
        """How many."""
        return len(self.inputs)

    def parts(self, size: int, outputs: int) -> Iterator[Cells]:
        """Cut into runs of at most `size` cells, and at most `outputs` wanted ones each."""
        step = size if self.wanted.sum() <= outputs else min(size, outputs)
        for first in range(0, len(self), step):
            part = slice(first, first + step)
            yield Cells(
                self.inputs[part], self.positions[part], self.sequences[part], self.wanted[part]
            )
