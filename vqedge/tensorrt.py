"""Loading a TensorRT, and hearing what it has to say; shared by who builds and who runs engines."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from importlib import import_module
from threading import Lock
from typing import Any

from vqedge.engines import MODULES, Flavour
from vqedge.errors import BackendUnavailable
from vqedge.packages import install_line

logger = logging.getLogger(__name__)

TF32_VARIABLE = "NVIDIA_TF32_OVERRIDE"  # an engine runs only where it is as it was at its build
_FIRST_ERRORS = 3  # the first one names the cause, later ones its consequences
_LAST_WARNINGS = 3
_LONGEST = 400
_MAKING = Lock()


def tensorrt_module(flavour: Flavour) -> Any:
    """The Python module of a TensorRT.

    Raises:
        BackendUnavailable: it is not installed, or its libraries cannot be loaded.
    """
    try:
        return import_module(MODULES[flavour])
    except (ImportError, OSError) as error:
        reason = one_line([str(error)])
        raise BackendUnavailable(
            f"{flavour} cannot be loaded ({reason}); {install_line(MODULES[flavour])}"
        ) from error


def log_of(trt: Any) -> Any:
    """The logger of a TensorRT that keeps its errors; `last_words()` gives them in one line, once.

    Where there are none, warnings stand for them: a driver that is too old is one. One logger for
    the whole process: TensorRT goes on using the first that it was given. Call `forget()` before
    what may fail, or it is told what failed earlier.
    """
    with _MAKING:  # a cache lets threads in side by side
        return _made_log(trt)


@cache
def _made_log(trt: Any) -> Any:
    severity = trt.ILogger.Severity
    bad = (severity.ERROR, severity.INTERNAL_ERROR)
    talk = (severity.WARNING, severity.INFO)

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.forget()

        def log(self, severity: Any, message: str) -> None:
            if severity in bad:
                self.errors.append(message)
                logger.error(message)
                return
            if severity == severity.WARNING:
                self.warnings.append(message)
            logger.log(logging.INFO if severity in talk else logging.DEBUG, message)

        def forget(self) -> None:
            self.errors: list[str] = []
            self.warnings: deque[str] = deque(maxlen=_LAST_WARNINGS)

        def last_words(self) -> str:
            told = one_line(self.errors[:_FIRST_ERRORS] or self.warnings)
            self.forget()
            return told or "it gives no reason"

    return Log()


def made(kind: Callable[[Any], Any], log: Any) -> Any:
    """TensorRT's Builder or Runtime.

    Args:
        kind: its class.
        log: from `log_of`.

    Raises:
        BackendUnavailable: TensorRT makes none, as where the driver is older than its CUDA.
    """
    try:
        return kind(log)
    except TypeError as error:  # the library gave a null pointer
        raise BackendUnavailable(
            f"TensorRT cannot start ({log.last_words()}); the driver must know its CUDA: update "
            "it, or install the wheels of its CUDA, as tensorrt-cu12"
        ) from error


def one_line(texts: Iterable[str]) -> str:
    """What a library said, as one line that is not too long."""
    line = " ".join(" ".join(texts).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."
