"""Ctrl-C and its like while a library computes that calls back into Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any


@contextmanager
def signals_later() -> Iterator[None]:
    """Signals that come within are handled at its end, each kind once, by their own handlers.

    Python runs a handler when it next runs code of its own. While llama.cpp loads, makes a context
    or quantises, that is the callback of its log: what is raised there, as `KeyboardInterrupt` by
    Ctrl-C, is printed with a traceback and lost, and llama.cpp goes on.

    Signals that Python does not handle do what they always do. Only the main thread runs handlers:
    in another this changes nothing.
    """
    noted: set[int] = set()
    heard: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        heard = {number: own for number, own in handlers.items() if callable(own)}
    with ExitStack() as after:  # all that is put in, whatever one raises, the last first
        for number, own in heard.items():
            after.callback(_handle, noted, number, own)
        for number, own in heard.items():
            after.callback(signal.signal, number, own)
            signal.signal(number, lambda number, _: noted.add(number))
        yield


def _handle(noted: set[int], number: int, own: Callable[[int, None], Any]) -> None:
    if number in noted:
        own(number, None)
