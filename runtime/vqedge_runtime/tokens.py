"""A video as codes and as tokens: what an encoder finds and what a language model reads.

NumPy only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float16] | npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False, repr=False)
class Codes:
    """A clip in codes: what an encoder finds, and all that a `.vqt` file keeps of the pictures.

    Equal to itself only.

    Attributes:
        index_map: int32 `[T, grid, grid]`, the token hash: which code each patch has. Codes are
            numbered by first occurrence, so 0 to k - 1 all occur.
        values: float16 `[k, D]`, the codes themselves; with a learned codebook int32
            `[k, levels]`, the entry of each level that a code is the sum of.
        margin: float32 `[T, grid, grid]`, how safe each patch's choice is; None from a file.
    """

    index_map: npt.NDArray[np.int32]
    values: Values
    margin: npt.NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        """How many; not the arrays."""
        return f"Codes(count={self.count})"

    @property
    def count(self) -> int:
        """Codes in use."""
        return len(self.values)

    @property
    def patch_counts(self) -> npt.NDArray[np.int64]:
        """How many patches have each code, `[k]`."""
        return np.bincount(self.index_map.ravel(), minlength=self.count)

    @property
    def ids(self) -> npt.NDArray[np.int32] | None:
        """Ids of a learned codebook, which mean the same in every video; None without one."""
        return self.values.astype(np.int32) if self.values.dtype.kind == "i" else None


@dataclass(frozen=True, eq=False, repr=False)
class TokenSet:
    """The discrete tokens of one clip. Equal to itself only; `key` names the content.

    Attributes:
        rows: float32 `[k, d_llm]`, one row a code in use, k <= budget. Of the published VQToken
            weights `[max(T, k) + 1, d_llm]`: none of those rows is a code's. Of a model whose
            videos are words `[k * words, d_llm]`, code after code.
        codes: what the rows are made from.
        words: int32 `[rows]`, the word that each row is, as `vqedge.video_words` numbers them;
            None where rows are made for each clip.
        token_ids: int32 `[rows]`, the same words as ids of the bundle's GGUF.
    """

    rows: npt.NDArray[np.float32]
    codes: Codes
    words: npt.NDArray[np.int32] | None = None
    token_ids: npt.NDArray[np.int32] | None = None

    def __repr__(self) -> str:
        """How many, of how many patches; not the arrays."""
        return f"TokenSet(count={self.count}, patches={self.patches})"

    @property
    def count(self) -> int:
        """Tokens the language model reads."""
        return len(self.rows)

    @property
    def rows_per_code(self) -> int | None:
        """How many rows tell of each code, code after code; None where no row is one code's."""
        if self.words is None and self.count != self.codes.count:
            return None
        return self.count // self.codes.count

    @property
    def patches(self) -> int:
        """Visual tokens before quantisation."""
        return int(self.codes.index_map.size)

    @property
    def index_map(self) -> npt.NDArray[np.int32]:
        """Which token each patch belongs to, int32 `[T, grid, grid]`."""
        return self.codes.index_map

    @property
    def margin(self) -> npt.NDArray[np.float32] | None:
        """How safe each patch's choice is, float32 `[T, grid, grid]`; None from a file."""
        return self.codes.margin

    @property
    def ids(self) -> npt.NDArray[np.int32] | None:
        """Ids of a learned codebook, int32 `[k, levels]`; None without one."""
        return self.codes.ids

    def key(self) -> str:
        """Names the content, as for prefix caches: see `rows_key`."""
        return rows_key(self.rows)


def rows_key(rows: npt.NDArray[np.float32]) -> str:
    """Sha256 of a video's rows, `[K, d_llm]`: what they are told apart by."""
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def no_tokens(frames: int, grid: int, width: int) -> TokenSet:
    """Tokens of a clip before there is a question, where they follow the question: none.

    Args:
        frames: T.
        grid: patches per side of a frame.
        width: d_llm.
    """
    index_map = np.zeros((frames, grid, grid), np.int32)
    return TokenSet(
        np.empty((0, width), np.float32), Codes(index_map, np.empty((0, 0), np.float16))
    )


def code_outputs(names: Collection[str]) -> tuple[str, ...]:
    """The encoder graph's outputs among `names` that `codes_from_outputs` reads."""
    return ("index_map", "mask", "margin", "ids" if "ids" in names else "codes")


def codes_from_outputs(outputs: Mapping[str, npt.NDArray[Any]]) -> Codes:
    """The codes in an encoder's outputs, by their names; see `code_outputs`."""
    values = outputs["ids"] if "ids" in outputs else outputs["codes"]
    return Codes(outputs["index_map"], values[outputs["mask"]], outputs["margin"])
