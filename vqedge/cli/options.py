"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from vqedge.seconds import seconds_from_text


def not_empty(text: str) -> str:
    """What names a file or folder; empty, as a variable that is not set, it would name this folder.

    Raises:
        BadParameter: it is empty.
    """
    if not text:
        raise typer.BadParameter("it is empty; give a path")
    return text


def given_path(text: str) -> Path:
    """Every path of the command line; see `not_empty`."""
    return Path(not_empty(text))


def given_seconds(text: str) -> float:
    """Every `--start` and `--end` of the command line.

    Raises:
        BadParameter: it is no time; see `seconds_from_text`.
    """
    try:
        return seconds_from_text(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def time_option(told: str) -> Any:
    """A `--start` or an `--end`, with what its help says."""
    return typer.Option(parser=given_seconds, metavar="TIME", help=told)


StartOption = Annotated[
    float | None,
    time_option("Look from this time on, as 90 or 1:30; of a .vqt, at the segment there."),
]
EndOption = Annotated[float | None, time_option("Look up to this time.")]
BundleOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option(
        "-m",
        "--model",
        parser=given_path,
        metavar="BUNDLE",
        help="Bundle to use [default: $VQEDGE_BUNDLE, tiny.vqedge or build/tiny.vqedge].",
    ),
]
BundleArgument = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads the annotation at run time
    typer.Argument(parser=given_path, help="The bundle [default: that of -m]."),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document as the last line of stdout.")
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="NAME",
        help="Encoder backend, as doctor lists them; auto: the fastest here, measured once.",
    ),
]
BudgetOption = Annotated[
    str | None, typer.Option(help="Most video tokens, or auto [default: the bundle's].")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads [default: all usable].")
]
MaxTokensOption = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
TemperatureOption = Annotated[
    float, typer.Option(min=0.0, help="0 picks the likeliest token; else 0.001 to 1000.")
]
TopKOption = Annotated[
    int, typer.Option(min=0, help="Draw from so many likeliest tokens; 0 is all.")
]
TopPOption = Annotated[
    float,
    typer.Option(
        min=0.0,
        max=1.0,
        help="Draw from the fewest likeliest tokens whose probabilities reach this sum; above 0.",
    ),
]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed for temperature > 0.")]
GpuLayersOption = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers",
        "-ngl",
        min=-1,
        metavar="N",
        help="Layers of the language model on the GPU; -1 is all [default: all, where llama.cpp "
        "was built for a GPU].",
    ),
]
LlmQuantOption = Annotated[
    str | None,
    typer.Option(help="Of the language model: F16, Q8_0, Q4_K_M or Q4_0 [default: Q8_0]."),
]
CapabilitiesOption = Annotated[
    str | None,
    typer.Option(
        "--sm",
        help="GPUs to build for [default: 80,86,89,120 of tensorrt-rtx, this one otherwise].",
    ),
]
CalibrateOption = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        parser=given_path,
        help="Folder of videos to calibrate int8 engines on, beside generated clips.",
    ),
]
PluginOption = Annotated[
    str | None,
    typer.Option(
        help="NearestCodebook in tensorrt engines: a plugin library, auto to compile one here, or "
        "none for the graph's own function [default: auto]."
    ),
]
