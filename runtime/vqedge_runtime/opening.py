"""Opening one thing in a thread while others are opened."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

logger = logging.getLogger(__name__)


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None:
        """Free everything; twice is fine."""


Opened = TypeVar("Opened", bound=Closable)


class Opening(Generic[Opened]):
    """What is being opened since this was made; call it to have it, or close it.

    Worth it for libraries that free the interpreter lock while they load a model, as ONNX Runtime,
    OpenVINO and llama.cpp do. One thread calls it or closes it.

    Args:
        ahead: opens it, in a thread of its own, within seconds: closing waits for it. What it gives
            is None, or what it raises is dropped, where it cannot.
        opens: opens it for whoever calls where that was in vain, and raises what is wrong.
    """

    def __init__(self, ahead: Callable[[], Opened | None], opens: Callable[[], Opened]) -> None:
        self._opens, self._process = opens, os.getpid()
        pool = ThreadPoolExecutor(1, "vqedge-opening")
        self._ahead: Future[Opened | None] | None = pool.submit(ahead)
        pool.shutdown(wait=False)  # nothing else is given to it

    def __call__(self) -> Opened:
        """What was opened ahead, once; after that, or if there is none, another."""
        found = self._taken()
        return self._opens() if found is None else found

    def close(self) -> None:
        """Wait for what is being opened ahead, and close it; nothing if that was called for."""
        if (found := self._taken()) is not None:
            found.close()

    def _taken(self) -> Opened | None:
        if self._ahead is None or os.getpid() != self._process:  # its thread is not in a fork
            return None
        try:
            found = self._ahead.result()
        except Exception as error:  # whatever a library raises; `opens` meets it again
            logger.info("opened ahead in vain: %s", error)
            found = None
        self._ahead = None
        return found
