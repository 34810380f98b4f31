"""The encoder on ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from vqedge.errors import BackendUnavailable, BundleError
from vqedge_runtime.cores import usable_cores
from vqedge_runtime.encoders import Frames
from vqedge_runtime.tokens import TokenSet

_OUTPUTS = ("tokens", "index_map", "mask", "margin")
_IDS = "ids"  # an output more, of a learned codebook
_ERRORS_ONLY = 3


class OrtEncoder:
    """Runs `encoder.onnx` on the CPU.

    Args:
        path: the ONNX file of a verified bundle.
        threads: worker threads; the CPUs this process may use by default.

    Raises:
        BundleError: ONNX Runtime refuses the file.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.log_severity_level = _ERRORS_ONLY
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises a dozen private types here
            reason = str(error).splitlines()[0]
            raise BundleError(
                f"{path}: ONNX Runtime cannot load it ({reason}); export again"
            ) from error
        self._session: ort.InferenceSession | None = session
        has_ids = _IDS in {output.name for output in session.get_outputs()}
        self._outputs = (*_OUTPUTS, _IDS) if has_ids else _OUTPUTS

    @property
    def name(self) -> str:
        """What runs where."""
        return "onnxruntime CPU fp32"

    def encode(self, frames_thwc: Frames, budget: int) -> TokenSet:
        """Encode uint8 RGB `[T, size, size, 3]` with at most `budget` codes, or `ADAPTIVE`.

        Raises:
            BackendUnavailable: the encoder was closed.
            BundleError: the graph fails on these frames.
        """
        if self._session is None:
            raise BackendUnavailable("the encoder is closed; open the bundle again")
        feeds = {"frames": frames_thwc, "budget": np.array(budget, np.int64)}
        try:
            tokens, index_map, mask, margin, *ids = self._session.run(self._outputs, feeds)
        except Exception as error:
            reason = str(error).splitlines()[0]
            raise BundleError(
                f"encoder.onnx: ONNX Runtime failed ({reason}); export again"
            ) from error
        return TokenSet(tokens[mask], index_map, mask, margin, *(rows[mask] for rows in ids))

    def close(self) -> None:
        """Free the session; twice is fine."""
        self._session = None
