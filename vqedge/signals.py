"""Ctrl-C and its like while a library computes that calls back into Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_later() -> Iterator[None]:
    """Signals that come within are handled at its end, each kind once.

    Python runs a handler when it next runs code of its own. While llama.cpp loads, makes a context
    or quantises, that is the callback of its log: what is raised there, as `KeyboardInterrupt` by
    Ctrl-C, is printed with a traceback and lost, and llama.cpp goes on.

    Signals that Python does not handle do what they always do. Only the main thread runs handlers:
    in another this changes nothing.
    """
    noted: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    heard = [number for number, handler in before.items() if callable(handler)]
    try:
        for number in heard:
            signal.signal(number, lambda number, _: noted.append(number))
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])
        for late in dict.fromkeys(noted):
            signal.raise_signal(late)
