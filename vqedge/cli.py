"""The `vqedge` command: arguments in, one function of `vqedge.commands` out.

Heavy imports happen inside the commands, so that `--help` stays fast. Errors meet the user here
and nowhere else: exit code 1 for what the user can fix, 2 for wrong usage, 3 for a fault of ours.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Optional

import typer

from vqedge.errors import VqedgeError

USER_ERROR, INTERNAL_ERROR, INTERRUPTED = 1, 3, 130
_DEBUG = "--debug"  # taken at any place, before or after the command

app = typer.Typer(
    name="vqedge",
    help="Ask videos questions on the device: a video becomes 32 discrete tokens for a small LLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)

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
        help="Of the ViT: int8, fp16 or fp32 [default: int8 beside fp32 in ONNX, fp16 in engines]."
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


@app.callback()
def _root(
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show progress of libraries on stderr.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug logs.")] = False,
) -> None:
    level = logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(name)s: %(message)s")


@app.command()
def ask(
    video: Annotated[Path, typer.Argument(help="Video, GIF, image, folder of frames, .vqt.")],
    question: Annotated[
        str | None, typer.Argument(help="The question [default: from stdin].")
    ] = None,
    bundle: BundleOption = None,
    choices: Annotated[
        str | None, typer.Option(help="Score these answers instead: 'a|b|c'.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Most video tokens, or auto [default: the bundle's].")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Look from this second on.")] = None,
    end: Annotated[float | None, typer.Option(help="Look up to this second.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 picks the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed for temperature > 0.")] = 0,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the answer in one piece.")
    ] = False,
    evidence: Annotated[
        bool,
        typer.Option(
            "--evidence", help="Also tell when that is to be seen: one more prompt a token."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about a video.

    Example: vqedge ask clip.mp4 "What color is the circle?" -m tiny.vqedge
    """
    from vqedge.commands.ask import ask as run
    from vqedge_runtime.llm import DecodingOptions

    options = DecodingOptions(max_tokens=max_tokens, temperature=temperature, seed=seed)
    run(
        video,
        question,
        bundle,
        choices=choices,
        budget=budget,
        start=start,
        end=end,
        options=options,
        backend=backend,
        threads=threads,
        as_json=as_json,
        stream=not no_stream,
        evidence=evidence,
    )


@app.command()
def chat(
    video: Annotated[Path, typer.Argument(help="Video, GIF, image, folder of frames, .vqt.")],
    bundle: BundleOption = None,
    budget: Annotated[
        str | None, typer.Option(help="Most video tokens, or auto [default: the bundle's].")
    ] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Ask question after question; the video is encoded and read once.

    Example: vqedge chat clip.mp4 -m tiny.vqedge
    """
    from vqedge.commands.chat import chat as run

    run(video, bundle, budget=budget, backend=backend, threads=threads)


@app.command()
def encode(
    videos: Annotated[
        list[Path], typer.Argument(help="Videos, folders of them, or - for standard input.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="File to make, or folder for several videos.")
    ],
    bundle: BundleOption = None,
    budget: Annotated[
        str | None, typer.Option(help="Most tokens a segment, or auto [default: the bundle's].")
    ] = None,
    segment: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds of video in a segment [default: all in one]."),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Spans decoded ahead.")] = 2,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn videos into .vqt files, which every command takes in their place.

    Files that are there and up to date are left alone; a video that fails stops no other.

    Example: vqedge encode clips/ -o tokens/ -m tiny.vqedge
    """
    from vqedge.commands.encode import EncodeOptions
    from vqedge.commands.encode import encode as run

    options = EncodeOptions(budget, segment, jobs, backend, threads)
    run(videos, out, bundle, options=options, as_json=as_json)


@app.command()
def viz(
    video: Annotated[Path, typer.Argument(help="Video, GIF, image, folder of frames, .vqt.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Picture to make: name.png, name.html or name.mp4.")
    ],
    bundle: BundleOption = None,
    question: Annotated[
        str | None, typer.Option(help="Ask this, and mark the codes that mattered for the answer.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="Most video tokens, or auto [default: the bundle's].")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Look from this second on.")] = None,
    end: Annotated[float | None, typer.Option(help="Look up to this second.")] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a video's tokens: frames, the codes over them, and when each code occurs.

    A .vqt holds no pixels: its codes are drawn alone, without a bundle unless a question is asked.

    Example: vqedge viz clip.mp4 -o clip.html --question "Which way does the circle move?"
    """
    from vqedge.commands.viz import VizOptions
    from vqedge.commands.viz import viz as run

    options = VizOptions(question, budget, start, end, backend, threads)
    run(video, out, bundle, options=options, as_json=as_json)


@app.command()
def search(
    query: Annotated[Path, typer.Argument(help="A .vqt, or a video to encode first.")],
    folder: Annotated[Path, typer.Argument(help="Folder of .vqt files; it gets an index.")],
    bundle: BundleOption = None,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Only clips that show the same at the same time.")
    ] = False,
    novel: Annotated[
        bool, typer.Option("--novel", help="The query's codes that no clip of the folder has.")
    ] = False,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Most clips to list.")] = 10,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Least similarity of duplicates [default: 0.9]; a code is new below it "
            "[default: 0.8, and 1 with a learned codebook].",
        ),
    ] = None,
    start: Annotated[float | None, typer.Option(help="Take the query from this second on.")] = None,
    end: Annotated[float | None, typer.Option(help="Take it up to this second.")] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find clips in a folder of .vqt files: alike, duplicate, or what is new in one.

    Example: vqedge search clip.mp4 tokens/ -m tiny.vqedge -n 5
    """
    from vqedge.commands.search import SearchOptions, run_search

    options = SearchOptions(duplicates, novel, count, threshold, start, end, backend, threads)
    run_search(query, folder, bundle, options=options, as_json=as_json)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML file of the run, as recipes/tiny.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes: key.sub=value ...")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last save.")] = False,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Output folder.")] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0, help="Save and stop after this time.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a checkpoint on generated clips, photos or videos of your own.

    Example: vqedge train recipes/tiny.yaml -o runs/mine optim.steps=300

    Several GPUs: accelerate launch -m vqedge.cli train recipes/tiny.yaml
    """
    from vqedge.commands.train import run_train

    run_train(config, overrides or [], resume=resume, out=out, minutes=minutes, as_json=as_json)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder written by `vqedge train`.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Bundle to make, as tiny.vqedge.")],
    target: Annotated[
        str | None,
        typer.Option(
            help="onnx and gguf, which are always made; tensorrt, tensorrt-rtx: engines; or all."
        ),
    ] = None,
    precision: PrecisionOption = None,
    sm: CapabilitiesOption = None,
    plugin: PluginOption = None,
    llm_quant: Annotated[str | None, typer.Option(help="F16, Q8_0, Q4_K_M or Q4_0.")] = None,
    no_check: Annotated[bool, typer.Option("--no-check", help="Skip the parity check.")] = False,
    plugin_node: Annotated[
        bool,
        typer.Option(
            "--plugin-node", help="Plain plugin node for TensorRT 10.3; not for ONNX Runtime."
        ),
    ] = False,
    record: Annotated[
        bool, typer.Option("--record", help="Store graph and parity report in the checkpoint.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing bundle.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn a checkpoint into a bundle and prove that it computes the same (needs torch).

    Example: vqedge export models/tiny -o tiny.vqedge --target tensorrt-rtx --sm 86,89
    """
    from vqedge.commands.export import export as run

    run(
        checkpoint,
        out,
        target=target,
        precision=precision,
        sm=sm,
        plugin=plugin,
        llm_quant=llm_quant,
        check=not no_check,
        record=record,
        plugin_node=plugin_node,
        overwrite=overwrite,
        as_json=as_json,
    )


@app.command()
def assemble(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that holds encoder.graph.onnx.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Bundle to make, as tiny.vqedge.")],
    llm_quant: Annotated[str | None, typer.Option(help="F16, Q8_0, Q4_K_M or Q4_0.")] = None,
    precision: PrecisionOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing bundle.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the same bundle as `export`, without torch.

    Example: vqedge assemble models/tiny -o tiny.vqedge
    """
    from vqedge.commands.export import assemble as run

    run(
        checkpoint,
        out,
        llm_quant=llm_quant,
        precision=precision,
        overwrite=overwrite,
        as_json=as_json,
    )


@app.command()
def build(
    bundle: Annotated[Path, typer.Argument(help="Bundle to add an engine to.")],
    target: Annotated[str, typer.Option(help="tensorrt or tensorrt-rtx.")] = "tensorrt",
    precision: PrecisionOption = None,
    sm: CapabilitiesOption = None,
    plugin: PluginOption = None,
    typing: Annotated[
        str, typer.Option(help="strong, or weak: TensorRT 10 picks types by its flags.")
    ] = "strong",
    optimization_level: Annotated[
        int, typer.Option(min=0, max=5, help="0 builds fast, 5 runs fast.")
    ] = 3,
    workspace_mb: Annotated[
        int | None, typer.Option(min=1, help="Scratch memory of a layer [default: no limit].")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="For later TensorRT of this major too.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option("--hardware-compatible", help="For all GPUs from SM 8.0 on.")
    ] = False,
    device: Annotated[str, typer.Option(help="gpu; dla is refused, with the reason.")] = "gpu",
    as_json: JsonOption = False,
) -> None:
    """Build a TensorRT engine from a bundle's ONNX, on this machine, into the bundle.

    Example: vqedge build tiny.vqedge --target tensorrt
    """
    from vqedge.commands.build import run_build

    run_build(
        bundle,
        target,
        precision=precision,
        sm=sm,
        plugin=plugin,
        typing=typing,
        optimization_level=optimization_level,
        workspace_mb=workspace_mb,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        device=device,
        as_json=as_json,
    )


@app.command()
def check(
    bundle: Annotated[Path, typer.Argument(help="Bundle to check.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Measure parity with it (needs torch).")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(help="Compare this encoder backend with onnxruntime, into parity.json."),
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(
            help="Folder of clips: what the lighter encoders change on them (needs onnx)."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Most clips [default: all].")] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle's files and, if asked, its parity on this machine.

    Example: vqedge check tiny.vqedge --backend tensorrt
    """
    from vqedge.commands.export import check as run

    run(
        bundle,
        checkpoint=checkpoint,
        backend=backend,
        videos=videos,
        limit=limit,
        as_json=as_json,
    )


@app.command("eval")
def evaluate(
    bundle: BundleOption = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Evaluate in PyTorch instead.")] = None,
    suite: Annotated[
        str,
        typer.Option(help="synthetic, photos:INDEX.jsonl, FILE.jsonl or FILE.csv (NExT-QA)."),
    ] = "synthetic",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Most questions [default: 300 of synthetic or photos, else all]."),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Most video tokens, or auto: as many as the clip needs."),
    ] = None,
    videos: Annotated[Path | None, typer.Option(help="Folder of a CSV suite's videos.")] = None,
    baselines: Annotated[
        bool,
        typer.Option("--baselines", help="Ask with shuffled frames, blind, and other trainings."),
    ] = False,
    baselines_dir: Annotated[
        Path, typer.Option(help="Folder of the checkpoints to compare a --checkpoint with.")
    ] = Path("runs/baselines"),
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    show: Annotated[bool, typer.Option("--show", help="Print every answer on stderr.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure accuracy on a suite of questions.

    Example: vqedge eval -m tiny.vqedge --suite synthetic --limit 300 --json
    """
    from vqedge.budget import budget_from_text
    from vqedge.commands.evaluate import run_eval

    run_eval(
        suite,
        bundle,
        checkpoint,
        limit=limit,
        budget=budget_from_text(budget),
        videos=videos,
        baselines=baselines_dir if baselines else None,
        backend=backend,
        threads=threads,
        show=show,
        as_json=as_json,
    )


@app.command()
def bench(
    video: Annotated[
        Path | None, typer.Argument(help="Clip to time [default: a generated one].")
    ] = None,
    bundle: BundleOption = None,
    runs: Annotated[int, typer.Option(min=1, help="Repetitions; medians are shown.")] = 5,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time every stage, cold and asked again, against the unreduced patch tokens."""
    from vqedge.commands.bench import run_bench

    run_bench(video, bundle, runs=runs, backend=backend, threads=threads, as_json=as_json)


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(help="Bundle, checkpoint, .vqt, .onnx, .gguf or .engine.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Show what a file or folder holds."""
    from vqedge.commands.inspect import run_inspect

    run_inspect(path, as_json=as_json)


@app.command()
def doctor(
    bundle: BundleOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that this machine can answer questions; every line that fails says its fix."""
    from vqedge.commands.doctor import run_doctor

    if not run_doctor(bundle, as_json=as_json):
        raise typer.Exit(USER_ERROR)


@app.command()
def fetch(
    name: Annotated[
        str | None, typer.Argument(help="One source [default: what the tiny model needs].")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Hash cached files in full.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Download base weights into the cache, pinned by sha256."""
    from vqedge.commands.fetch import run_fetch

    run_fetch(name, verify=verify, as_json=as_json)


def main() -> None:
    """Run the command line; the only place where errors become exit codes."""
    arguments = sys.argv[1:]
    debug = _DEBUG in arguments
    try:
        words = [word for word in arguments if word != _DEBUG]
        app(args=[_DEBUG, *words] if debug else words, prog_name="vqedge")
    except VqedgeError as error:
        _fail(error, USER_ERROR, f"vqedge: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(USER_ERROR)
    except ModuleNotFoundError as error:
        line = f"vqedge: {error.name} is not installed; {_install_line(error.name)}"
        _fail(error, USER_ERROR, line)
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        line = f"vqedge: internal error: {what}; please report it (--debug for more)"
        _fail(error, INTERNAL_ERROR, line)


def _fail(error: BaseException, code: int, line: str) -> None:
    if _DEBUG in sys.argv:
        traceback.print_exception(error)
    print(line, file=sys.stderr)
    sys.exit(code)


def _install_line(module: str | None) -> str:
    needs = {"onnx": "assemble", "gguf": "assemble", "safetensors": "assemble", "PIL": "viz"}
    return f"pip install 'vqedge[{needs.get(module or '', 'export')}]'"


if __name__ == "__main__":
    main()
