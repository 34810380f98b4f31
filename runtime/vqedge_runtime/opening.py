"""Opening an encoder in a thread while other things are opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from vqedge_runtime.encoders.protocol import Encoder

logger = logging.getLogger(__name__)


class Opening:
    """An encoder that is being opened since this was made; call it to have it, or close it.

    Worth it since ONNX Runtime, OpenVINO and llama.cpp free the interpreter lock while they load a
    model. One thread calls it or closes it.

    Args:
        ahead: opens it, in a thread of its own, within seconds: closing waits for it. What it gives
            is None, or what it raises is dropped, where it cannot.
        opens: opens it for whoever calls where that was in vain, and raises what is wrong.
    """

    def __init__(self, ahead: Callable[[], Encoder | None], opens: Callable[[], Encoder]) -> None:
        self._opens, self._process = opens, os.getpid()
        pool = ThreadPoolExecutor(1, "vqedge-opening")
        self._ahead: Future[Encoder | None] | None = pool.submit(ahead)
        pool.shutdown(wait=False)  # nothing else is given to it

    def __call__(self) -> Encoder:
        """What was opened ahead, once; after that, or if there is none, another."""
        found = self._taken()
        return self._opens() if found is None else found

    def close(self) -> None:
        """Wait for what is being opened ahead, and close it; nothing if that was called for."""
        if (found := self._taken()) is not None:
            found.close()

    def _taken(self) -> Encoder | None:
        if self._ahead is None or os.getpid() != self._process:  # its thread is not in a fork
            return None
        try:
            found = self._ahead.result()
        except Exception as error:  # whatever a library raises; `opens` meets it again
            logger.info("opened ahead in vain: %s", error)
            found = None
        self._ahead = None
        return found
