"""The command line's root: what every command shares."""

from __future__ import annotations

import logging
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vqedge import __version__
from vqedge.errors import UsageError
from vqedge.quiet import quietly

# Exit codes; 2 is click's too, and shells add a signal's number to the last.
USER_ERROR, USAGE_ERROR, INTERNAL_ERROR, OF_SIGNAL = 1, 2, 3, 128

_CALLED_HERE = {  # what other programs call it
    "download": "fetch",
    "help": "--help",
    "info": "inspect",
    "predict": "ask",
    "run": "ask",
    "verify": "check",
    "version": "--version",
}


_WHERE = {  # by option
    "--backend": "--backend says where the encoder runs",
    "--gpu-layers": "--gpu-layers where the language model does",
}


class _Commands(TyperGroup):
    """Says what a word that other programs take is called here."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The command that the words name, as click looks for it.

        Raises:
            UsageError: it has another name here, or has no `--device`.
        """
        if ctx.resilient_parsing:  # the shell completes a line
            return super().resolve_command(ctx, args)
        if (word := args[0]) in _CALLED_HERE:
            raise UsageError(f"{word}: no such command; it is: vqedge {_CALLED_HERE[word]}")
        found: Any = super().resolve_command(ctx, args)
        _, command, rest = found
        known = {option for parameter in command.params for option in parameter.opts}
        here = [what for option, what in _WHERE.items() if option in known]
        if here and "--device" in {text.partition("=")[0] for text in rest} - known:
            raise UsageError(f"--device: no such option; {', '.join(here)}")
        return found


app = typer.Typer(
    name="vqedge",
    cls=_Commands,
    help="Ask questions about a video, on the device: it becomes 8 to 64 discrete tokens, which a "
    "small quantised LLM reads.",
    no_args_is_help=True,
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
    context: typer.Context,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show progress of libraries on stderr.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Say nothing on stderr but errors and warnings."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_tell_version,
            help="Print the version and exit.",
        ),
    ] = False,
) -> None:
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(name)s: %(message)s")
    steps = level if quiet else min(level, logging.INFO)
    logging.getLogger("vqedge_export").setLevel(steps)  # they take minutes
    context.with_resource(quietly(quiet))
