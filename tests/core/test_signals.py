"""Signals that wait until a library is done."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from vqedge.signals import signals_later


def told(*numbers: signal.Signals) -> None:
    """Send them to this process from a callback of the C library, as llama.cpp's log is one."""

    def compare(_one: object, _other: object) -> int:
        for number in numbers:
            signal.raise_signal(number)
        return 0

    order = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(compare)
    ctypes.CDLL(None).qsort((ctypes.c_int * 2)(), 2, ctypes.sizeof(ctypes.c_int), order)


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Grows by every SIGUSR1 that its handler hears."""
    numbers: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: numbers.append(number))
    yield numbers
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_in_a_callback_is_raised_at_the_end() -> None:
    before, done = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), signals_later():
        told(signal.SIGINT)
        done = True
    assert done and signal.getsignal(signal.SIGINT) is before


@pytest.mark.usefixtures("interrupts")
def test_each_kind_is_handled_once(heard: list[int]) -> None:
    with pytest.raises(KeyboardInterrupt), signals_later():
        told(signal.SIGUSR1, signal.SIGUSR1, signal.SIGINT)
        assert not heard
    assert heard == [signal.SIGUSR1]


@pytest.mark.usefixtures("interrupts")
def test_what_one_raises_keeps_no_other_from_being_handled(heard: list[int]) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(KeyboardInterrupt), signals_later():
        told(signal.SIGINT, signal.SIGUSR1)
    assert heard == [signal.SIGUSR1] and signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.usefixtures("interrupts")
def test_an_interrupt_comes_after_an_error() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, signals_later():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("the library could not")
    assert isinstance(caught.value.__context__, ValueError)


def test_what_python_does_not_handle_is_left_alone() -> None:
    ignored = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with signals_later():
            assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
            assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL
            os.kill(os.getpid(), signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, ignored)


def test_another_thread_changes_nothing() -> None:
    handlers = []

    def look() -> None:
        with signals_later():
            handlers.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)]
