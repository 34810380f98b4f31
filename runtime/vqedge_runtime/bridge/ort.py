"""The bridge on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from vqedge.errors import BackendUnavailable, BundleError
from vqedge_runtime.encoders.ort import open_session, run_session
from vqedge_runtime.tokens import Codes, TokenSet

_INDEX_MAP, _CODES, _IDS = "index_map", "codes", "ids"
_TOKENS, _ROW_MASK, _WORDS = "tokens", "row_mask", "words"
_PADDING = {_CODES: 0, _IDS: -1}  # what the encoder's graph has where no code is in use


class OrtBridge:
    """Runs `bridge.onnx`, with one thread so that the number of cores has no say in the rows.

    Args:
        path: the ONNX file of a verified bundle.
        first_word: id in the bundle's GGUF of the first word of videos, if it has some.

    Raises:
        BundleError: ONNX Runtime refuses the file, or it takes other inputs.
    """

    def __init__(self, path: Path, first_word: int | None = None) -> None:
        session = open_session(path, threads=1)
        self._first_word = first_word
        inputs = {item.name: item for item in session.get_inputs()}
        values = (inputs.keys() - {_INDEX_MAP}) & _PADDING.keys()
        if _INDEX_MAP not in inputs or len(inputs) != 2 or len(values) != 1:
            raise BundleError(f"{path}: takes {', '.join(inputs)}; export again")
        self._session: ort.InferenceSession | None = session
        self._name = values.pop()
        names = {item.name for item in session.get_outputs()}
        self._outputs = [name for name in (_TOKENS, _ROW_MASK, _WORDS) if name in names]
        self._shape = tuple(inputs[self._name].shape)
        self._map_shape = tuple(inputs[_INDEX_MAP].shape)

    def tokens(self, codes: Codes) -> TokenSet:
        """The tokens of a clip: one row a code, or the rows that the graph says are to be read.

        Raises:
            BackendUnavailable: the bridge was closed.
            BundleError: the codes are of another shape, or the graph fails on them.
        """
        if self._session is None:
            raise BackendUnavailable("the bridge is closed; open the bundle again")
        feeds = {_INDEX_MAP: codes.index_map, self._name: self._padded(codes)}
        values = run_session(self._session, self._outputs, feeds, "bridge.onnx")
        found = dict(zip(self._outputs, values, strict=True))
        read = found.get(_ROW_MASK, slice(codes.count))
        words = found[_WORDS][read] if _WORDS in found else None
        ids = None if words is None or self._first_word is None else words + self._first_word
        return TokenSet(found[_TOKENS][read], codes, words, ids)

    def close(self) -> None:
        """Free the session; twice is fine."""
        self._session = None

    def _padded(self, codes: Codes) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        """The codes in as many rows as the graph has."""
        dtype = np.float16 if self._name == _CODES else np.int32
        rows, width = self._shape
        fits = codes.values.dtype == dtype and codes.values.shape[1:] == (width,)
        if not (fits and codes.count <= rows and codes.index_map.shape == self._map_shape):
            raise BundleError(
                f"codes {codes.values.dtype} {codes.values.shape} of a map "
                f"{codes.index_map.shape} do not fit this bundle; encode the video again"
            )
        padded = np.full(self._shape, _PADDING[self._name], dtype)
        padded[: codes.count] = codes.values
        return padded
