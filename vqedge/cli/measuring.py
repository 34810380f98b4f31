"""Commands that measure and look: eval, bench, inspect, doctor, fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vqedge.budget import budget_from_text
from vqedge.cli.app import USER_ERROR, app
from vqedge.cli.options import (
    BackendOption,
    BudgetOption,
    BundleArgument,
    BundleOption,
    GpuLayersOption,
    JsonOption,
    ThreadsOption,
    given_path,
)

SuiteOption = Annotated[
    str,
    typer.Option(
        help="synthetic, photos:INDEX.jsonl, photos-confirm:INDEX.jsonl, captions, "
        "captions:INDEX.jsonl, bindings, each also with :SEED; FILE.jsonl or FILE.csv (NExT-QA); "
        "nextqa-letters:FILE.csv, to compare with published figures."
    ),
]
BaselinesDirOption = Annotated[
    Path | None,
    typer.Option(
        parser=given_path,
        help="Folder of the checkpoints to compare a --checkpoint with [default: runs/baselines].",
    ),
]
ReducersDirOption = Annotated[
    Path | None,
    typer.Option(
        parser=given_path,
        help="Folder of the checkpoints that were trained with a reducer [default: runs/reducers].",
    ),
]


@app.command("eval")
def evaluate(
    bundle: BundleOption = None,
    checkpoint: Annotated[
        Path | None, typer.Option(parser=given_path, help="Evaluate in PyTorch instead.")
    ] = None,
    suite: SuiteOption = "synthetic",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Most questions [default: 300 of clips that are made, else all]."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Most video tokens, or auto: as many as the clip needs; several for --reducers."
        ),
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(parser=given_path, help="Folder of the videos of a CSV or JSONL suite."),
    ] = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Ask with shuffled frames, blind, and other trainings."),
    ] = False,
    baselines_dir: BaselinesDirOption = None,
    reducers: Annotated[
        str | None,
        typer.Option(help="Other reducers' tokens through a --checkpoint: all, or names as tome."),
    ] = None,
    reducers_dir: ReducersDirOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = None,
    show: Annotated[bool, typer.Option("--show", help="Print every answer on stderr.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy on a suite of questions.

    Example: vqedge eval -m tiny.vqedge --suite synthetic --limit 300 --json
    """
    from vqedge.commands.evaluate import EvalOptions, run_eval
    from vqedge.commands.reducers import ReducersOptions, run_reducers
    from vqedge.commands.session import RunsOn

    if reducers is not None:
        beside = {
            "-m": bundle is not None,
            "--baselines": baselines,
            "--baselines-dir": baselines_dir is not None,
            "--backend": backend != "auto",
            "--threads": threads is not None,
            "--gpu-layers": gpu_layers is not None,
            "--show": show,
        }
        asked = ReducersOptions(
            names=reducers,
            checkpoint=checkpoint,
            budget=budget,
            limit=limit,
            videos=videos,
            trained=reducers_dir,
            beside=beside,
        )
        run_reducers(suite, options=asked, as_json=as_json)
        return
    options = EvalOptions(
        checkpoint=checkpoint,
        limit=limit,
        budget=budget_from_text(budget),
        videos=videos,
        baselines=baselines,
        baselines_dir=baselines_dir,
        reducers_dir=reducers_dir,
        runs_on=RunsOn(backend, threads, gpu_layers),
        show=show,
    )
    run_eval(suite, bundle, options=options, as_json=as_json)


@app.command()
def bench(
    video: Annotated[
        Path | None,
        typer.Argument(parser=given_path, help="Clip to time [default: a generated one]."),
    ] = None,
    bundle: BundleOption = None,
    runs: Annotated[int, typer.Option(min=1, help="Repetitions; medians are shown.")] = 5,
    budget: BudgetOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time every stage, cold and asked again, against the unreduced patch tokens.

    Example: vqedge bench clip.mp4 -m tiny.vqedge --runs 9
    """
    from vqedge.commands.bench import run_bench
    from vqedge.commands.session import RunsOn

    run_bench(
        video,
        bundle,
        runs=runs,
        budget=budget_from_text(budget),
        runs_on=RunsOn(backend, threads, gpu_layers),
        as_json=as_json,
    )


@app.command()
def inspect(
    path: Annotated[
        Path,
        typer.Argument(
            parser=given_path, help="Bundle, checkpoint, .vqt, .onnx, .gguf, .safetensors, .engine."
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what a file or folder holds.

    Example: vqedge inspect tiny.vqedge
    """
    from vqedge.commands.inspect import run_inspect

    run_inspect(path, as_json=as_json)


@app.command()
def doctor(
    bundle: BundleArgument = None,
    model: BundleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell whether this machine can answer questions, and what to do if not.

    Exits with 1 if it cannot.

    Example: vqedge doctor tiny.vqedge
    """
    from vqedge.commands.doctor import run_doctor
    from vqedge.commands.output import named_once

    if not run_doctor(named_once(bundle, model), as_json=as_json):
        raise typer.Exit(USER_ERROR)


@app.command()
def fetch(
    name: Annotated[
        str | None, typer.Argument(help="One source [default: what the tiny model needs].")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash cached files in full.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Download base weights into the cache, pinned by sha256.

    Example: vqedge fetch && vqedge assemble models/tiny -o tiny.vqedge
    """
    from vqedge.commands.fetch import run_fetch

    run_fetch(name, verify=verify, as_json=as_json)
