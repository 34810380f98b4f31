"""The bridge: codes and index map to the rows the language model reads.

Whatever found the codes, a file or an encoder on any device, the same bridge makes the rows, on one
CPU thread: a `.vqt` and the video it was made from give the same rows bit for bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from vqedge.errors import BackendUnavailable
from vqedge_runtime.tokens import Codes, TokenSet


class Bridge(Protocol):
    """Turns codes into tokens."""

    def tokens(self, codes: Codes) -> TokenSet:
        """The tokens of a clip: one row a code, unless the bundle's bridge makes others."""

    def close(self) -> None:
        """Free everything; twice is fine."""


def open_bridge(path: Path, first_word: int | None = None) -> Bridge:
    """Open `bridge.onnx` of a verified bundle; see `vqedge_runtime.bridge.ort.OrtBridge`.

    Raises:
        BackendUnavailable: ONNX Runtime is not here.
        BundleError: the file cannot be run.
    """
    from vqedge_runtime.encoders.providers import missing_provider

    if lacking := missing_provider("CPU"):
        raise BackendUnavailable(f"the bridge: {lacking.why}; {lacking.fix}")
    from vqedge_runtime.bridge.ort import OrtBridge

    return OrtBridge(path, first_word)
