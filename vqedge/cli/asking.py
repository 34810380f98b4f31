"""Commands about videos: ask, chat, encode, viz, search."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from vqedge.budget import budget_from_text
from vqedge.cli.app import app
from vqedge.cli.options import (
    BackendOption,
    BudgetOption,
    BundleOption,
    EndOption,
    GpuLayersOption,
    JsonOption,
    MaxTokensOption,
    SeedOption,
    StartOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
    given_path,
    not_empty,
    time_option,
)
from vqedge.errors import UsageError


@app.command(context_settings={"allow_extra_args": True})
def ask(
    context: typer.Context,
    video: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            help="Video, GIF, image, folder of frames, .vqt, folder of .vqt; - is stdin.",
        ),
    ],
    question: Annotated[
        str | None, typer.Argument(help="The question [default: from stdin].")
    ] = None,
    bundle: BundleOption = None,
    choices: Annotated[
        str | None,
        typer.Option(
            help="Pick the likeliest of these answers instead of generating one: 'a|b|c'."
        ),
    ] = None,
    budget: BudgetOption = None,
    start: StartOption = None,
    end: EndOption = None,
    max_tokens: MaxTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = None,
    no_stream: Annotated[
        bool, typer.Option("--no-stream", help="Print the answer in one piece.")
    ] = False,
    evidence: Annotated[
        bool,
        typer.Option(
            "--evidence",
            help="Also say when in the video the evidence is visible; costs up to 49 more prompts.",
        ),
    ] = False,
    questions: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, help="File of questions, one a line, asked together; - is stdin."
        ),
    ] = None,
    keep_kv: Annotated[
        bool,
        typer.Option(
            "--keep-kv", help="Keep what the model read of a .vqt beside it, for the next ask."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Answer a question about a video, or many about many.

    Example: vqedge ask clip.mp4 "What color is the circle?" -m tiny.vqedge

    Example: vqedge ask folder-of-vqt "How many objects are there?"
    """
    _refuse_more(question, context.args)
    from vqedge.commands.ask import run_ask
    from vqedge.commands.ask_options import AskOptions, choices_from_text
    from vqedge.commands.session import RunsOn
    from vqedge_runtime.llm import DecodingOptions

    options = AskOptions(
        choices=choices_from_text(choices),
        budget=budget_from_text(budget),
        span=(start, end),
        decoding=DecodingOptions(max_tokens, temperature, top_p, top_k, seed),
        runs_on=RunsOn(backend, threads, gpu_layers),
        stream=not no_stream,
        evidence=evidence,
        questions=questions,
        keep_kv=keep_kv,
    )
    run_ask(video, question, bundle, options=options, as_json=as_json)


def _refuse_more(question: str | None, words: list[str]) -> None:
    if words and question is not None and os.path.exists(question):
        raise UsageError(
            f"{question!r} is a file or folder; ask takes one video, or a folder of .vqt: "
            "vqedge encode VIDEOS -o FOLDER/, then vqedge ask FOLDER 'What moves?'"
        )
    if words:
        raise UsageError(
            f"{words[0]!r} is one argument too many; put the question in quotes, as: "
            "vqedge ask clip.mp4 'What moves?'"
        )


@app.command()
def chat(
    video: Annotated[
        Path, typer.Argument(parser=given_path, help="Video, GIF, image, folder of frames, .vqt.")
    ],
    bundle: BundleOption = None,
    budget: BudgetOption = None,
    start: StartOption = None,
    end: EndOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = None,
    max_tokens: MaxTokensOption = 64,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    seed: SeedOption = 0,
    history: Annotated[
        bool, typer.Option("--history", help="Let questions refer to earlier ones.")
    ] = False,
) -> None:
    """Ask question after question; the video is encoded and read once.

    Example: vqedge chat clip.mp4 -m tiny.vqedge
    """
    from vqedge.commands.chat import run_chat
    from vqedge.commands.session import RunsOn
    from vqedge_runtime.llm import DecodingOptions

    run_chat(
        video,
        bundle,
        budget=budget_from_text(budget),
        span=(start, end),
        runs_on=RunsOn(backend, threads, gpu_layers),
        options=DecodingOptions(max_tokens, temperature, top_p, top_k, seed),
        history=history,
    )


@app.command()
def encode(
    videos: Annotated[
        list[Path],
        typer.Argument(parser=given_path, help="Videos, folders of them, or - for standard input."),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "-o",
            "--out",
            parser=not_empty,
            metavar="PATH",
            help="File to make, FOLDER/ or - for standard output; of several videos the folder.",
        ),
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option(
            "--as",
            metavar="text|ids",
            help="Print one video as words of the GGUF's vocabulary, for other runtimes.",
        ),
    ] = None,
    question: Annotated[
        str | None,
        typer.Option(help="With --as ids: print the whole prompt that asks this of the video."),
    ] = None,
    start: Annotated[
        float | None,
        time_option(
            "Of one video, from this time on, as 90 or 1:30; of a .vqt, the segment there."
        ),
    ] = None,
    end: Annotated[float | None, time_option("Up to this time.")] = None,
    bundle: BundleOption = None,
    budget: Annotated[
        str | None, typer.Option(help="Most tokens a segment, or auto [default: the bundle's].")
    ] = None,
    segment: Annotated[
        float | None,
        typer.Option(min=0.1, help="Seconds of video in a segment [default: all in one]."),
    ] = None,
    bits: Annotated[
        int | None,
        typer.Option(
            min=2,
            max=8,
            help="Bits of each number of a code, for smaller files [default: none, float16].",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Spans decoded ahead.")] = 2,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Encode anew what is up to date, too.")
    ] = False,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn videos into .vqt files, to ask, search and evaluate without the pixels.

    Files that are there and up to date are left alone; a video that fails stops no other.

    Example: vqedge encode clips/ -o tokens/ -m tiny.vqedge
    """
    from vqedge.commands.encode import EncodeOptions, run_encode
    from vqedge.commands.session import RunsOn
    from vqedge.commands.words import run_words

    options = EncodeOptions(
        budget=budget_from_text(budget),
        segment_s=segment,
        jobs=jobs,
        runs_on=RunsOn(backend, threads),
        bits=bits or 0,
        span=(start, end),
        overwrite=overwrite,
    )
    if as_ is None and question is None:
        run_encode(videos, out, bundle, options=options, as_json=as_json)
    else:
        run_words(videos, as_, question, out, bundle, options=options, as_json=as_json)


@app.command()
def viz(
    video: Annotated[
        Path,
        typer.Argument(
            parser=given_path, help="Video, GIF, image, folder of frames, .vqt; - is stdin."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "-o",
            "--out",
            parser=given_path,
            help="Picture to make: name.png, name.html or name.mp4.",
        ),
    ],
    bundle: BundleOption = None,
    question: Annotated[
        str | None, typer.Option(help="Ask this, and mark the codes that mattered for the answer.")
    ] = None,
    budget: BudgetOption = None,
    start: StartOption = None,
    end: EndOption = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    gpu_layers: GpuLayersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw a video's tokens: frames, the codes over them, and when each code occurs.

    A .vqt holds no pixels: its codes are drawn alone, without a bundle unless a question is asked.

    Example: vqedge viz clip.mp4 -o clip.html --question "Which way does the circle move?"
    """
    from vqedge.commands.session import RunsOn
    from vqedge.commands.viz import VizOptions, run_viz

    options = VizOptions(
        question=question,
        budget=budget_from_text(budget),
        span=(start, end),
        runs_on=RunsOn(backend, threads, gpu_layers),
    )
    run_viz(video, out, bundle, options=options, as_json=as_json)


@app.command()
def search(
    query: Annotated[
        Path,
        typer.Argument(parser=given_path, help="A .vqt, or a video to encode first; - is stdin."),
    ],
    folder: Annotated[
        Path, typer.Argument(parser=given_path, help="Folder of .vqt files; it gets an index.")
    ],
    bundle: BundleOption = None,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Only clips that show the same at the same time.")
    ] = False,
    novel: Annotated[
        bool, typer.Option("--novel", help="The query's codes that no clip of the folder has.")
    ] = False,
    count: Annotated[
        int, typer.Option("-n", "--limit", "--count", min=1, help="Most clips or codes to list.")
    ] = 10,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Least similarity of clips [default: 0.9 with --duplicates]; a code is new below "
            "it [default: 0.8, and 1 with a learned codebook].",
        ),
    ] = None,
    start: Annotated[
        float | None, time_option("Take the query from this time on, as 90 or 1:30.")
    ] = None,
    end: Annotated[float | None, time_option("Take it up to this time.")] = None,
    backend: BackendOption = "auto",
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find clips in a folder of .vqt files: alike, duplicate, or what is new in one.

    Example: vqedge search clip.mp4 tokens/ -m tiny.vqedge -n 5
    """
    from vqedge.commands.search import SearchOptions, run_search
    from vqedge.commands.session import RunsOn

    options = SearchOptions(
        duplicates=duplicates,
        novel=novel,
        count=count,
        threshold=threshold,
        span=(start, end),
        runs_on=RunsOn(backend, threads),
    )
    run_search(query, folder, bundle, options=options, as_json=as_json)
