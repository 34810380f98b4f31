"""Modules of ours in a process of their own."""

from __future__ import annotations

import sys

_RUN = (  # -m would put the working directory first, and with it any `random.py` that lies there
    "import sys; sys.path[:] = [place for place in sys.path if place]; import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def module_command(name: str, *arguments: str) -> list[str]:
    """`python -m NAME ARGUMENTS`, which finds no module in the working directory."""
    return [sys.executable, "-c", _RUN, name, *arguments]
