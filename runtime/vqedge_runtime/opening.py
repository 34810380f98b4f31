"""Opening one thing in a thread while others are opened."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar


class Closable(Protocol):
    """What can be closed."""

    def close(self) -> None:
        """Free everything; twice is fine."""


Opened = TypeVar("Opened", bound=Closable)


class Opening(Generic[Opened]):
    """What is being opened since this was made; call it to wait for it, or close both.

    Worth it for libraries that free the interpreter lock while they load a model, as ONNX Runtime,
    OpenVINO and llama.cpp do.

    Args:
        opens: opens it, in a thread of its own.
    """

    def __init__(self, opens: Callable[[], Opened]) -> None:
        pool = ThreadPoolExecutor(1, "vqedge-opening")
        self._found = pool.submit(opens)
        pool.shutdown(wait=False)  # nothing else is given to it

    def __call__(self) -> Opened:
        """What was opened; raises what opening it raised."""
        return self._found.result()

    def close(self) -> None:
        """Wait for what is being opened, and close it."""
        if self._found.exception() is None:
            self._found.result().close()
