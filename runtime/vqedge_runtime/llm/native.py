"""llama.cpp's library: loaded and started once, its log off stderr, its pointers owned.

The one place that imports llama-cpp-python, and only its low-level binding.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from typing_extensions import Self

from vqedge.errors import BackendUnavailable
from vqedge_runtime.llm.build_flags import pip_line
from vqedge_runtime.llm.cells import Cells

_log = logging.getLogger(__name__)

_LEVEL_ERROR, _LEVEL_CONTINUED = 4, 5  # ggml.h; 3 is a warning
_SPINS = "1000"  # iterations, some microseconds
_STARTING = threading.Lock()


@contextmanager
def _short_spins() -> Iterator[None]:
    """Let threads that wait for each other sleep after a moment, unless the user says otherwise.

    llama.cpp's threads meet after every operation, some 600 times a token. OpenMP lets one that
    waits spin for milliseconds; if another program has the other's core, that is a core lost each
    time, and a first token takes seconds. `tests/bench/bench_busy.py` has the figures. GNU's OpenMP
    reads this when it is loaded.
    """
    ours = not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    if ours:
        os.environ["GOMP_SPINCOUNT"] = _SPINS
    try:
        yield
    finally:
        if ours:
            del os.environ["GOMP_SPINCOUNT"]


try:
    with _short_spins():
        import llama_cpp
        from llama_cpp import llama_cpp as _binding
except (ImportError, OSError, RuntimeError) as error:  # not there, or its library does not load
    raise BackendUnavailable(f"llama.cpp cannot be loaded ({error}); run: {pip_line()}") from error
if not hasattr(_binding, "llama_vocab_get_suppress_tokens"):  # the youngest function of those used
    _found = f"llama-cpp-python {llama_cpp.__version__}"
    raise BackendUnavailable(f"{_found} is too old for vqedge; run: {pip_line()}")

lib: Any = _binding
ggml: Any = getattr(_binding, "_lib", None)  # the library itself, and those it brings along


class NativeLog:
    """Takes llama.cpp's log off stderr; remembers the last errors, as codes give no reason."""

    def __init__(self) -> None:
        """Make the callback; it must live as long as it is set."""
        self.errors: deque[str] = deque(maxlen=3)
        self._level = 0
        self.callback = lib.llama_log_callback(self._take)

    def _take(self, level: int, text: bytes, _: object) -> None:
        self._level = self._level if level == _LEVEL_CONTINUED else level
        line = text.decode("utf-8", "replace").strip()
        if line:
            _log.debug("%s", line)
        if line and self._level == _LEVEL_ERROR:
            self.errors.append(line)

    def reason(self) -> str:
        """The last errors as one line."""
        return "; ".join(self.errors) or "llama.cpp gave no reason"


def backend() -> NativeLog:
    """llama.cpp, started once in a process and stopped at its end."""
    with _STARTING:  # a cache lets threads in side by side, and llama.cpp keeps one log only
        return _started()


@functools.cache
def _started() -> NativeLog:
    log = NativeLog()
    # an assertion that fails would call gdb, which may hang and prints where answers belong
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    lib.llama_log_set(log.callback, ctypes.c_void_p(0))
    lib.llama_backend_init()
    atexit.register(lib.llama_backend_free)
    return log


def system_info() -> str:
    """Version of the binding and what its library was built for."""
    return f"{llama_cpp.__version__} {lib.llama_print_system_info().decode()}"


class _Leader(threading.local):
    """What a thread knows of the threads that OpenMP keeps for it."""

    process = 0  # in which they are; 0 while there are none


_leader = _Leader()
_FORKED = (
    "llama.cpp's threads stayed behind when this process was forked; start processes with "
    "multiprocessing's 'spawn', or open with threads=1"
)


def check_team() -> None:
    """To call before llama.cpp computes with several threads: GNU's OpenMP keeps them from then on.

    Raises:
        BackendUnavailable: it keeps them for this thread already, in the process that this one was
            forked from; the computation would wait for them for ever.
    """
    process = os.getpid()
    if _leader.process not in (0, process) and "OPENMP = 1" in system_info():
        raise BackendUnavailable(_FORKED)
    _leader.process = process


class Owned:
    """A native pointer that is freed once. Closing is safe after a half-built `__init__`."""

    _pointer: Any = None
    _what = "handle"

    @property
    def pointer(self) -> Any:
        """The native pointer.

        Raises:
            BackendUnavailable: the handle is closed.
        """
        if self._pointer is None:
            raise BackendUnavailable(f"the {self._what} is closed; open the language model again")
        return self._pointer

    def close(self) -> None:
        """Free the native memory; twice is fine."""
        pointer, self._pointer = self._pointer, None
        if pointer is not None:
            self._free(pointer)

    def _free(self, pointer: Any) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def __del__(self) -> None:
        """Close, unless the interpreter is going down and takes the memory with it."""
        if not sys.is_finalizing():
            self.close()


@contextmanager
def native_batch(cells: Cells) -> Iterator[Any]:
    """Cells copied into a native batch, freed at the end."""
    count, width = len(cells), cells.inputs.shape[1] if cells.is_rows else 0
    batch = lib.llama_batch_init(count, width, 1)
    try:
        batch.n_tokens = count
        inputs = batch.embd if cells.is_rows else batch.token
        np.ctypeslib.as_array(inputs, cells.inputs.shape)[...] = cells.inputs
        np.ctypeslib.as_array(batch.pos, (count,))[...] = cells.positions
        np.ctypeslib.as_array(batch.n_seq_id, (count,))[...] = 1
        np.ctypeslib.as_array(batch.logits, (count,))[...] = cells.wanted
        for index, sequence in enumerate(cells.sequences.tolist()):
            batch.seq_id[index][0] = sequence
        yield batch
    finally:
        lib.llama_batch_free(batch)
