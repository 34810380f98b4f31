"""The encoder on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from vqedge.errors import BackendUnavailable, BundleError
from vqedge_runtime.cores import usable_cores
from vqedge_runtime.encoders import Frames
from vqedge_runtime.tokens import Codes

_OUTPUTS = ("index_map", "mask", "margin")
_CODES, _IDS = "codes", "ids"  # an output more: the clip's own codes, or those of a codebook
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
        session = open_session(path, threads or usable_cores())
        self._session: ort.InferenceSession | None = session
        has_ids = _IDS in {output.name for output in session.get_outputs()}
        self._outputs = (*_OUTPUTS, _IDS if has_ids else _CODES)

    @property
    def name(self) -> str:
        """What runs where."""
        return "onnxruntime CPU fp32"

    def encode(self, frames_thwc: Frames, budget: int) -> Codes:
        """Encode uint8 RGB `[T, size, size, 3]` with at most `budget` codes, or `ADAPTIVE`.

        Raises:
            BackendUnavailable: the encoder was closed.
            BundleError: the graph fails on these frames.
        """
        if self._session is None:
            raise BackendUnavailable("the encoder is closed; open the bundle again")
        feeds = {"frames": frames_thwc, "budget": np.array(budget, np.int64)}
        outputs = run_session(self._session, self._outputs, feeds, "encoder.onnx")
        index_map, mask, margin, values = outputs
        return Codes(index_map, values[mask], margin)

    def close(self) -> None:
        """Free the session; twice is fine."""
        self._session = None


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    """Open an ONNX file on the CPU.

    Raises:
        BundleError: ONNX Runtime refuses the file.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a dozen private types here
        reason = str(error).splitlines()[0]
        raise BundleError(
            f"{path}: ONNX Runtime cannot load it ({reason}); export again"
        ) from error


def run_session(
    session: ort.InferenceSession, outputs: Sequence[str], feeds: Mapping[str, Any], name: str
) -> list[Any]:
    """What a graph gives for some of its outputs; nodes that only others need are left out.

    Raises:
        BundleError: ONNX Runtime fails.
    """
    options = ort.RunOptions()
    options.only_execute_path_to_fetches = True
    try:
        return list(session.run(outputs, feeds, options))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise BundleError(f"{name}: ONNX Runtime failed ({reason}); export again") from error
