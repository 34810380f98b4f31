"""The `vqedge` command: arguments in, one function of `vqedge.commands` out.

Heavy imports happen inside the commands, so that `--help` stays fast. Errors meet the user here
and nowhere else: exit code 1 for what the user can fix, 2 for wrong usage, 3 for a fault of ours.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from vqedge.cli import asking, making, measuring  # they add their commands, in this order
from vqedge.cli.app import INTERNAL_ERROR, OF_SIGNAL, USAGE_ERROR, USER_ERROR, app
from vqedge.errors import UsageError, VqedgeError, printable
from vqedge.files import disk_fault
from vqedge.packages import install_line

__all__ = ["app", "asking", "main", "making", "measuring"]

_DEBUG = "--debug"
_ANYWHERE = (_DEBUG, "--verbose", "--quiet", "-q")  # taken before or after the command
_WIDEST = "999"  # columns
_TWICE_S = 1.0  # `timeout` sends SIGTERM twice, at once; a shell and a terminal SIGHUP
_ENDINGS = (signal.SIGTERM, signal.SIGHUP)  # of an ssh session that is closed: the second


def main() -> None:
    """Run the command line; the only place where errors become exit codes."""
    with _terminable():
        _open_closed()
        _take_any_text()
        _bound_width()
        _run()


def _run() -> None:
    arguments = sys.argv[1:]
    flags = [flag for flag in _ANYWHERE if flag in arguments]
    try:
        words = [word for word in arguments if word not in _ANYWHERE]
        app(args=[*flags, *words], prog_name="vqedge")
    except UsageError as error:
        _fail(error, USAGE_ERROR, f"vqedge: {error}")
    except VqedgeError as error:
        _fail(error, USER_ERROR, f"vqedge: {error}")
    except KeyboardInterrupt:
        sys.exit(OF_SIGNAL + signal.SIGINT)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer makes 1 of it, without a word
            sys.exit(OF_SIGNAL + signal.SIGPIPE)
        raise
    except Exception as error:
        if known := _lacking(error) or _refused(error):
            _fail(error, USER_ERROR, f"vqedge: {known}")
        what = printable(" ".join(f"{type(error).__name__}: {error}".split()))
        line = f"vqedge: internal error: {what}; please report it (--debug for more)"
        _fail(error, INTERNAL_ERROR, line)


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP end a command as Ctrl-C does: temporary files go and children end.

    They may be sent again: what they raise within a callback of a C library ends nothing. What is
    ignored from the start, as by `nohup`, stays so.
    """
    last_s = -_TWICE_S

    def leave(number: int, _: object) -> None:
        nonlocal last_s
        again, last_s = time.monotonic() - last_s < _TWICE_S, time.monotonic()
        if not again:
            sys.exit(OF_SIGNAL + number)

    before = {number: signal.getsignal(number) for number in _ENDINGS}
    heard = [number for number in _ENDINGS if before[number] is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def _open_closed() -> None:
    """A standard stream that is closed is an empty one, or one that nobody reads.

    Python would print talk for a closed stderr to stdout, into results. And no file that is opened
    later gets the number of one, and with it what C libraries write there.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


def _take_any_text() -> None:
    """A file's name or a question that is not of the terminal's encoding ends no command."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "surrogateescape")):
        if isinstance(stream, io.TextIOWrapper):
            unicode = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors=errors if unicode else "replace")


def _bound_width() -> None:
    """Whatever COLUMNS says: rich writes a help's frames as wide."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdigit() and len(columns) > len(_WIDEST):
        os.environ["COLUMNS"] = _WIDEST


def _fail(error: BaseException, code: int, line: str) -> None:
    if _DEBUG in sys.argv:
        traceback.print_exception(error)
    print(line, file=sys.stderr)
    try:
        print(end="", flush=True)
    except OSError:  # the interpreter would try it again at its end, and complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _lacking(error: Exception) -> str | None:
    """Which library is missing or broken, and what mends it, if that is what failed."""
    if not isinstance(error, ImportError) or not error.name or error.name.startswith("vqedge"):
        return None
    missing = isinstance(error, ModuleNotFoundError)
    how = "is not installed" if missing else f"does not load ({error})"
    return printable(" ".join(f"{error.name} {how}; {install_line(error.name)}".split()))


def _refused(error: Exception) -> str | None:
    """What the disk refuses, if that is what failed."""
    fault = disk_fault(error)
    return fault and (
        f"{printable(fault)}, or name another place: -o for results, VQEDGE_CACHE for the cache, "
        "TMPDIR for temporary files"
    )
