"""A video as tokens: what an encoder returns and a language model reads. NumPy only."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class TokenSet:
    """The discrete tokens of one clip.

    Attributes:
        rows: float32 `[k, d_llm]`, one row a code in use, k <= budget.
        index_map: int32 `[T, grid, grid]`, the token hash: which code each patch has.
        mask: bool `[K]`, the codes in use among all K of the encoder.
        margin: float32 `[T, grid, grid]`, how safe each patch's choice is.
        ids: int32 `[k, levels]` with a learned codebook, else None. They mean the same in every
            video: a row is made from the sum of one entry of each level.
    """

    rows: npt.NDArray[np.float32]
    index_map: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]
    margin: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32] | None = None

    @property
    def count(self) -> int:
        """Tokens the language model reads."""
        return len(self.rows)

    @property
    def patches(self) -> int:
        """Visual tokens before quantisation."""
        return int(self.index_map.size)

    def key(self) -> str:
        """Sha256 of the rows: names the content for prefix caches."""
        return hashlib.sha256(np.ascontiguousarray(self.rows).tobytes()).hexdigest()


def token_set_from_outputs(outputs: Mapping[str, npt.NDArray[Any]]) -> TokenSet:
    """The tokens in an encoder graph's outputs, by their names."""
    mask, ids = outputs["mask"], outputs.get("ids")
    return TokenSet(
        outputs["tokens"][mask],
        outputs["index_map"],
        mask,
        outputs["margin"],
        None if ids is None else ids[mask],
    )
