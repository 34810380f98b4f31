"""Ctrl-C and its like while a library computes that calls back into Python."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
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
    noted: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    with ExitStack() as after:  # all that is put in, whatever one raises, the last first
        after.callback(_handle, noted, before)
        for number, handler in before.items():
            if callable(handler):
                after.callback(signal.signal, number, handler)
                signal.signal(number, lambda number, _: noted.append(number))
        yield


def _handle(noted: list[int], handlers: Mapping[int, Any]) -> None:
    with ExitStack() as each:
        for number in reversed(dict.fromkeys(noted)):
            each.callback(handlers[number], number, None)
