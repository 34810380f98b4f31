"""`vqedge bench`: every stage apart, as a table and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from vqedge.budget import Budget
from vqedge.bundle import bundle_or_default, open_bundle
from vqedge.commands.frames import reader_of
from vqedge.commands.measured import versions
from vqedge.commands.output import json_result, result
from vqedge.commands.pipe import require_there
from vqedge.commands.session import BEST_HERE, RunsOn, open_session
from vqedge.cores import processor_name, usable_cores
from vqedge.data.demo import write_demo
from vqedge.temporary import temporary_folder
from vqedge_runtime.bench import run, side_by_side
from vqedge_runtime.llm.build_flags import cpu_flags
from vqedge_runtime.vqt import require_video

# of x86: what encoders in int8 and bfloat16 are fast by
_LOW_PRECISION = {"avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}


def run_bench(
    video: Path | None,
    bundle: Path | None = None,
    *,
    runs: int = 5,
    budget: Budget | None = None,
    runs_on: RunsOn = BEST_HERE,
    as_json: bool = False,
) -> None:
    """Time a clip, or the demo clip if none is given.

    Raises:
        VideoError: there is no such clip.
        VqtError: a `.vqt`: what would be timed first is done already.
        ConfigError: a budget that the bundle does not take, or no place for the demo clip.
    """
    if video is not None:
        require_there(video)
        require_video(video)
    with _demo_clip() if video is None else nullcontext(video) as clip:
        began = time.perf_counter()
        with open_session(bundle, runs_on, budget=budget) as qa:
            open_ms = (time.perf_counter() - began) * 1e3
            document = run(qa, clip, runs, budget) | {"open_ms": open_ms}
            spec = qa.manifest.encoder
        opened = open_bundle(bundle_or_default(bundle), verify=False)
        frames = reader_of(spec)(clip, spec.frames, spec.size, None, None)
        document["encoders"] = side_by_side(opened, frames, runs, runs_on.threads, budget)
    document |= {"video": str(video or "generated demo clip"), "machine": machine_facts()}
    if as_json:
        json_result(document)
    else:
        _print_table(document)


@contextmanager
def _demo_clip() -> Iterator[Path]:
    with temporary_folder() as folder:
        write_demo(folder / "demo.mp4")
        yield folder / "demo.mp4"


def machine_facts() -> dict[str, Any]:
    """Processor, its instructions that matter here, and versions."""
    return {
        "processor": processor_name(),
        "usable_cores": usable_cores(),
        "instructions": sorted(_LOW_PRECISION & cpu_flags()),
        "versions": versions(),
    }


def _print_table(document: dict[str, Any]) -> None:
    result(f"{'opening the bundle':<28} {document['open_ms']:10.1f} ms  once")
    for stage, ms in document["stages_ms"].items():
        share = document["share_of_cold"][stage]
        result(_timed(document, stage, ms) + f"  {share:6.1%} of a cold ask")
    for backend, row in document["encoders"].items():
        if "error" in row:
            result(f"  {backend:<26} {row['error']}")
            continue
        share = f"{row['over_fp32']:6.2f} of fp32, " if "over_fp32" in row else ""
        result(
            f"  {row['name']:<26} {row['encode_ms']:10.1f} ms  {share}{row['cpu_ms']:.0f} ms of CPU"
        )
    for name in ("cold", "reask", "return", "unreduced"):
        ms = document[f"{name}_first_token_ms"]
        if ms is not None:
            result(_timed(document, f"{name}_first_token", ms))
    result(f"{'generation':<28} {document['tokens_per_s']:10.1f} tokens/s")
    result(f"{'peak memory':<28} {document['peak_rss_mb']:10.1f} MB")
    for name, row in document["together"].items():
        what = f"{row['prompts']} {name} together"
        result(
            f"{what:<28} {row['together_ms']:10.1f} ms  "
            f"{row['together_over_one_by_one']:6.2f} of one by one"
        )
    if document["unreduced_over_llm"] is None:
        result(f"{document['unreduced_tokens']} unreduced tokens: more than the context holds")
        return
    result(
        f"{document['unreduced_tokens']} unreduced tokens: {document['unreduced_over_llm']:.1f}x "
        f"as long to the first token as {document['tokens']}, "
        f"{document['unreduced_over_reask']:.1f}x as long as asking again"
    )


def _timed(document: dict[str, Any], name: str, ms: float) -> str:
    """A median and the 90th percentile beside it."""
    return f"{name.replace('_', ' '):<28} {ms:10.1f} ms  p90 {document['p90_ms'][name]:8.1f}"
