"""Commands that make models: train, import, export, assemble, build, check."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vqedge.cli.app import app
from vqedge.cli.options import (
    BundleArgument,
    BundleOption,
    CalibrateOption,
    CapabilitiesOption,
    JsonOption,
    LlmQuantOption,
    PluginOption,
    given_path,
    not_empty,
)


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(parser=given_path, help="YAML file of the run, as recipes/world.yaml.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Changes: key.sub=value ...; --print-config shows all keys."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last save.")] = False,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", parser=given_path, help="Output folder.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option("--minutes", min=0, help="Save and stop after this time.")
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option("--print-config", help="Print all keys with their values; train nothing."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a checkpoint on generated clips, photos or videos of your own.

    Example: vqedge train recipes/world.yaml -o runs/mine optim.steps=300

    Several GPUs: accelerate launch --multi_gpu -m vqedge train recipes/world.yaml
    """
    from vqedge.commands.train import run_train

    run_train(
        config,
        overrides or [],
        resume=resume,
        out=out,
        minutes=minutes,
        print_config=print_config,
        as_json=as_json,
    )


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(
            parser=not_empty,
            metavar="SOURCE",
            help="Hugging Face folder, or OWNER/NAME of the hub.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=given_path, help="Checkpoint folder to make.")
    ],
    mode: Annotated[
        str | None,
        typer.Option(
            help="Which attention: official, the published one; codes, no attention; paper, "
            "vqedge's own, yet to be trained [default: official where the source has it]."
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames of a clip [default: 16].")
    ] = None,
    block: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of a vision model alone: block whose features are taken "
            "[default: at three quarters].",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of a vision model alone: pixels a side of its frames, whole patches "
            "[default: its own].",
        ),
    ] = None,
    reducer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A training-free reducer instead of k-means (docs/reducers.md), as tome.",
        ),
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit of the hub.")] = "main",
    as_json: JsonOption = False,
) -> None:
    """Turn a published model (VQToken, LLaVA-OneVision, SigLIP, CLIP, DINOv2) into a checkpoint.

    Example: vqedge import haichaozhang/VQ-Token-llava-ov-0.5b -o vqtoken
    """
    from vqedge.commands.import_ import run_import

    run_import(
        source,
        out,
        mode=mode,
        frames=frames,
        block=block,
        size=size,
        reducer=reducer,
        revision=revision,
        as_json=as_json,
    )


@app.command()
def export(
    checkpoint: Annotated[
        Path, typer.Argument(parser=given_path, help="Folder of `vqedge train` or `vqedge import`.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=given_path, help="Bundle to make, as tiny.vqedge.")
    ],
    target: Annotated[
        str | None,
        typer.Option(
            help="What to make besides ONNX and GGUF, separated by commas: gguf-vocab (the GGUF "
            "reads videos as words), tensorrt, tensorrt-rtx (engines), all (every engine)."
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the ViT: int8 or fp32, in engines fp16 too [default: int8, fp32 of what was "
            "imported, fp16 in engines]. ONNX always holds fp32 as well."
        ),
    ] = None,
    sm: CapabilitiesOption = None,
    plugin: PluginOption = None,
    calibrate: CalibrateOption = None,
    llm_quant: LlmQuantOption = None,
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
    from vqedge.commands.export import ExportOptions, run_export

    options = ExportOptions(
        target=target,
        precision=precision,
        sm=sm,
        plugin=plugin,
        calibrate=calibrate,
        llm_quant=llm_quant,
        check=not no_check,
        record=record,
        plugin_node=plugin_node,
        overwrite=overwrite,
    )
    run_export(checkpoint, out, options=options, as_json=as_json)


@app.command()
def assemble(
    checkpoint: Annotated[
        Path, typer.Argument(parser=given_path, help="Folder that holds encoder.graph.onnx.")
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", parser=given_path, help="Bundle to make, as tiny.vqedge.")
    ],
    llm_quant: LlmQuantOption = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of the lighter encoder: int8, or fp32 for none [default: int8; fp32 of what was "
            "imported]."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing bundle.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make the same bundle as `export`, without torch.

    Example: vqedge assemble models/tiny -o tiny.vqedge
    """
    from vqedge.commands.export import run_assemble

    run_assemble(
        checkpoint,
        out,
        llm_quant=llm_quant,
        precision=precision,
        overwrite=overwrite,
        as_json=as_json,
    )


@app.command()
def build(
    bundle: BundleArgument = None,
    model: BundleOption = None,
    target: Annotated[str, typer.Option(help="tensorrt or tensorrt-rtx.")] = "tensorrt",
    precision: Annotated[
        str | None,
        typer.Option(help="Of the engine's ViT: fp16, fp32 or int8 [default: fp16]."),
    ] = None,
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
    calibrate: CalibrateOption = None,
    device: Annotated[str, typer.Option(help="gpu; dla is refused, with the reason.")] = "gpu",
    as_json: JsonOption = False,
) -> None:
    """Build a TensorRT engine from a bundle's ONNX, on this machine, into the bundle.

    Example: vqedge build tiny.vqedge --target tensorrt
    """
    from vqedge.commands.build import build_options, run_build
    from vqedge.commands.output import named_once

    options = build_options(
        precision,
        sm,
        typing=typing,
        optimization_level=optimization_level,
        workspace_mb=workspace_mb,
        version_compatible=version_compatible,
        hardware_compatible=hardware_compatible,
        device=device,
    )
    run_build(
        named_once(bundle, model),
        target,
        options=options,
        plugin=plugin,
        calibrate=calibrate,
        as_json=as_json,
    )


@app.command()
def check(
    bundle: BundleArgument = None,
    model: BundleOption = None,
    checkpoint: Annotated[
        Path | None, typer.Option(parser=given_path, help="Measure parity with it (needs torch).")
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            help="Compare this encoder backend with onnxruntime, in tokens and in answers "
            "[default: auto, what ask takes]."
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="The suite to ask through both, as in eval [default: synthetic]."),
    ] = None,
    videos: Annotated[
        Path | None,
        typer.Option(
            parser=given_path,
            help="Folder of clips to compare on: with --backend that one, else the lighter "
            "encoders (needs onnx).",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Most clips and questions [default: all of a folder; 12 made; 200 asked of a "
            "backend that is named, else 64].",
        ),
    ] = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Verify the files, measure nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Verify a bundle's files and its parity on this machine, into parity.json.

    It encodes a dozen clips and asks 64 questions twice; --files-only reads the files alone.

    Example: vqedge check tiny.vqedge --backend tensorrt
    """
    from vqedge.commands.check import run_check
    from vqedge.commands.output import named_once

    run_check(
        named_once(bundle, model),
        checkpoint=checkpoint,
        backend=backend,
        suite=suite,
        videos=videos,
        limit=limit,
        files_only=files_only,
        as_json=as_json,
    )
