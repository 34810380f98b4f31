"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

BundleOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads the annotation at run time
    typer.Option(
        "-m",
        "--model",
        metavar="BUNDLE",
        help="Bundle to use [default: $VQEDGE_BUNDLE or build/tiny.vqedge].",
    ),
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
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, help="CPU threads [default: all usable].")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="Of the ViT: int8, fp16 or fp32 [default: int8 beside fp32 in ONNX, fp32 of what was "
        "imported; fp16 in engines]. ONNX always holds fp32 as well."
    ),
]
CapabilitiesOption = Annotated[
    str | None,
    typer.Option(
        "--sm",
        help="GPUs to build for [default: 80,86,89,120 of tensorrt-rtx, this one otherwise].",
    ),
]
PluginOption = Annotated[
    str | None,
    typer.Option(
        help="NearestCodebook in tensorrt engines: a plugin library, auto to compile one here, or "
        "none for the graph's own function [default: auto]."
    ),
]
