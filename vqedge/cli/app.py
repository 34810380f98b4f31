"""The command line's root: what every command shares."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from vqedge import __version__

# Exit codes; 2 is click's too, and shells add a signal's number to the last.
USER_ERROR, USAGE_ERROR, INTERNAL_ERROR, OF_SIGNAL = 1, 2, 3, 128

app = typer.Typer(
    name="vqedge",
    help="Ask questions about a video, on the device: it becomes 8 to 64 discrete tokens, which a "
    "small quantised LLM reads.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"vqedge {__version__}", flush=True)
        raise typer.Exit


@app.callback()
def _root(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show progress of libraries on stderr.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_tell_version, help="Print it."),
    ] = False,
) -> None:
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(name)s: %(message)s")
    logging.getLogger("vqedge_export").setLevel(min(level, logging.INFO))  # minutes, step by step
