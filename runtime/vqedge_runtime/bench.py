"""Time every stage of an ask: cold, asked again, also after another clip, and unreduced.

The unreduced prompt is what a video LLM without quantisation would read: one row a patch (the first
row of every patch's code), through the same language model, if its context holds as many. Its ratio
to the reduced one does not depend on the machine.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vqedge.budget import Budget
from vqedge.bundle import Bundle
from vqedge.errors import PromptError, VqedgeError
from vqedge_runtime.answers import Video
from vqedge_runtime.budget import checked_budget
from vqedge_runtime.encoders import ENCODERS
from vqedge_runtime.encoders.auto import available
from vqedge_runtime.encoders.protocol import Frames, made_question
from vqedge_runtime.llm import DecodingOptions, Generation, Prompt, VideoRows
from vqedge_runtime.session import VideoQA

QUESTION = "What is in the video?"
_ANSWER_TOKENS = 32
_TOGETHER = 8  # prompts in one batch
_UNREDUCED_RUNS = 3  # at most
_REASKS = ("How many objects are there?", "What color is it?", "What happens first?")


_Cold = tuple[Video, Generation]  # of an ask from nothing: decoded, encoded, prefix read


def run(qa: VideoQA, path: Path, runs: int, budget: Budget | None = None) -> dict[str, Any]:
    """Measure a session on one clip.

    Args:
        qa: an open session; it is warmed up first.
        path: the clip.
        runs: repetitions of each measurement; medians and 90th percentiles are reported. Of the
            unreduced prompt, which takes seconds, there are at most three.
        budget: most tokens of the clip, as `VideoQA.encode` takes it.

    Returns:
        the JSON document of `vqedge bench`: times in milliseconds, memory in MB.

    Raises:
        ConfigError: the bundle does not take this budget.
    """
    _cold(qa, path, budget)  # warm-up: lazy allocations of both libraries
    colds = [_cold(qa, path, budget) for _ in range(runs)]
    video = colds[-1][0]
    again = [_again(qa, video, _REASKS[i % len(_REASKS)]) for i in range(max(runs, 3))]
    returned = _asked_after_another(qa, video, max(runs, 3))
    peak_rss_mb = _peak_rss_mb()  # before the unreduced prompt, which a user never pays for
    unreduced = _asked_unreduced(qa, video, min(runs, _UNREDUCED_RUNS))
    document = _document(qa, path, colds, again, returned, unreduced)
    return document | {
        "peak_rss_mb": peak_rss_mb,
        "runs": runs,
        "together": _together(qa, video, runs),
    }


def side_by_side(
    bundle: Bundle,
    frames_thwc: Frames,
    runs: int,
    threads: int | None = None,
    budget: Budget | None = None,
) -> dict[str, dict[str, Any]]:
    """Time every encoder backend that is installed and has a file in the bundle, in turns.

    Turns, because a machine that is busy for a while then slows all of them down.

    Args:
        bundle: holds the encoders.
        frames_thwc: uint8 RGB `[T, size, size, 3]`.
        runs: turns; medians are reported.
        threads: CPU threads.
        budget: most codes of a clip, as `run` takes it.

    Returns:
        by backend: `name`; `encode_ms`; `cpu_ms`, time on the CPU, which with one thread does not
        depend on what else the machine does; `over_fp32`, the time as a share of ONNX Runtime's in
        float32 on the CPU, if that runs. Or `error`, why it does not run.

    Raises:
        ConfigError: the bundle does not take this budget.
    """
    codes, text = checked_budget(bundle.manifest.quantizer, budget), made_question(bundle.manifest)
    rows: dict[str, dict[str, Any]] = {}
    times: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        encoders = {}
        for backend in available(bundle, ENCODERS):
            try:
                encoder = stack.enter_context(closing(ENCODERS[backend].open(bundle, threads)))
                encoder.encode(frames_thwc, codes, text)  # warm-up
            except VqedgeError as error:
                rows[backend] = {"error": str(error)}
                continue
            encoders[backend] = encoder
        for _ in range(runs):
            for backend, encoder in encoders.items():
                began = time.perf_counter(), time.process_time()
                encoder.encode(frames_thwc, codes, text)
                ended = time.perf_counter(), time.process_time()
                times.setdefault(backend, []).append((ended[0] - began[0], ended[1] - began[1]))
        for backend, encoder in encoders.items():
            wall_s, cpu_s = zip(*times[backend], strict=True)
            rows[backend] = {
                "name": encoder.name,
                "encode_ms": _median([1e3 * s for s in wall_s]),
                "cpu_ms": _median([1e3 * s for s in cpu_s]),
            }
    fp32_ms = rows.get("onnxruntime", {}).get("encode_ms")
    for row in rows.values():
        if fp32_ms and "encode_ms" in row:
            row["over_fp32"] = round(row["encode_ms"] / fp32_ms, 3)
    return rows


def _cold(qa: VideoQA, path: Path, budget: Budget | None) -> _Cold:
    qa.llm.forget()
    video = qa.asked(qa.encode(path, budget), QUESTION)
    return video, _asked(qa, video.rows, QUESTION)


def _again(qa: VideoQA, video: Video, question: str) -> Generation:
    """Another question; its tokens are made first where they follow it."""
    asked = qa.asked(video, question)
    encode_ms = 0.0 if asked is video else asked.timings.encode
    found = _asked(qa, asked.rows, question)
    first_ms, total_ms = found.first_token_ms + encode_ms, found.total_ms + encode_ms
    return replace(found, first_token_ms=first_ms, total_ms=total_ms)


def _asked(qa: VideoQA, rows: VideoRows, question: str) -> Generation:
    return qa.llm.ask(rows, question, DecodingOptions(max_tokens=_ANSWER_TOKENS))


def _asked_after_another(qa: VideoQA, video: Video, runs: int) -> list[Generation]:
    """Ask about a clip whose prefix was set aside for another clip's, as long and different."""
    other = VideoRows(np.roll(video.tokens.rows, 1, axis=0))
    found = []
    for number in range(runs):
        qa.llm.prefill_video(other)
        found.append(_again(qa, video, _REASKS[number % len(_REASKS)]))
    return found


def _together(qa: VideoQA, video: Video, runs: int) -> dict[str, dict[str, float]]:
    """Eight prompts one by one and side by side, in turns.

    One question about eight clips (the clip's rows in eight orders: as long, and different), and
    eight questions about one.
    """
    rows = video.tokens.rows
    clips = [VideoRows(np.roll(rows, number, axis=0)) for number in range(_TOGETHER)]
    asked = [f"{QUESTION} {number}" for number in range(_TOGETHER)]
    cases = {
        "clips": [Prompt(clip, QUESTION) for clip in clips],
        "questions": [Prompt(qa.asked(video, question).rows, question) for question in asked],
    }
    return {name: _one_by_one_and_together(qa, prompts, runs) for name, prompts in cases.items()}


def _one_by_one_and_together(qa: VideoQA, prompts: Sequence[Prompt], runs: int) -> dict[str, float]:
    options = DecodingOptions(max_tokens=_ANSWER_TOKENS)
    one_by_one, together = [], []
    for _ in range(runs):
        qa.llm.forget()
        began = time.perf_counter()
        for prompt in prompts:
            qa.llm.ask(prompt.video, prompt.question, options)
        one_by_one.append(time.perf_counter() - began)
        qa.llm.forget()
        began = time.perf_counter()
        qa.llm.ask_many(prompts, options)
        together.append(time.perf_counter() - began)
    ms = [_median([1e3 * s for s in seconds]) for seconds in (one_by_one, together)]
    return {
        "prompts": len(prompts),
        "one_by_one_ms": ms[0],
        "together_ms": ms[1],
        "together_over_one_by_one": round(ms[1] / ms[0], 3),
    }


def _asked_unreduced(qa: VideoQA, video: Video, runs: int) -> list[Generation]:
    """Up to the first token, of one row a patch, `[T * grid * grid, width]`; none if too many."""
    tokens = video.tokens
    rows = VideoRows(tokens.rows[tokens.index_map.reshape(-1) * (tokens.rows_per_code or 1)])
    first_token = DecodingOptions(max_tokens=1)
    try:
        qa.llm.ask(rows, QUESTION, first_token)  # warm-up: makes a larger context
    except PromptError:
        return []
    found = []
    for _ in range(runs):
        qa.llm.forget()
        found.append(qa.llm.ask(rows, QUESTION, first_token))
    return found


def _document(
    qa: VideoQA,
    path: Path,
    colds: Sequence[_Cold],
    again: Sequence[Generation],
    returned: Sequence[Generation],
    unreduced: Sequence[Generation],
) -> dict[str, Any]:
    stages, first = _stages(colds), _first_tokens(colds, again, returned, unreduced)
    stages_ms, first_ms = _medians(stages), _medians(first)
    last, speeds = colds[-1][0], [*again, *(found for _, found in colds)]
    return {
        "video": str(path),
        "stages_ms": stages_ms,
        "share_of_cold": {name: round(ms / first_ms["cold"], 4) for name, ms in stages_ms.items()},
        **{f"{name}_first_token_ms": ms for name, ms in first_ms.items()},
        **_against_unreduced(stages_ms, first_ms),
        "p90_ms": _p90s(stages | {f"{name}_first_token": ms for name, ms in first.items()}),
        "tokens": last.tokens.count,
        "unreduced_tokens": last.tokens.patches,
        "tokens_per_s": _median([found.tokens_per_s for found in speeds]),
        "backend": {"encoder": qa.backend.encoder, "llm": qa.backend.llm},
    }


def _stages(colds: Sequence[_Cold]) -> dict[str, list[float]]:
    """Milliseconds of every cold ask in each stage."""
    return {
        "decode": [video.timings.decode for video, _ in colds],
        "preprocess": [video.timings.preprocess for video, _ in colds],
        "encode": [video.timings.encode for video, _ in colds],
        "prefill": [found.prefix_ms + found.question_ms for _, found in colds],
    }


def _first_tokens(
    colds: Sequence[_Cold],
    again: Sequence[Generation],
    returned: Sequence[Generation],
    unreduced: Sequence[Generation],
) -> dict[str, list[float]]:
    """Milliseconds to the first token of every ask, by its kind; `llm` is a cold one's part."""
    times = [video.timings for video, _ in colds]
    before = [each.decode + each.preprocess + each.encode for each in times]
    llm = [found.first_token_ms for _, found in colds]
    others = {"reask": again, "return": returned, "unreduced": unreduced}
    return {
        "cold": [sum(pair) for pair in zip(before, llm, strict=True)],
        "llm": llm,
        **{name: [found.first_token_ms for found in founds] for name, founds in others.items()},
    }


def _against_unreduced(
    stages_ms: dict[str, float], first_ms: dict[str, float]
) -> dict[str, float | None]:
    """The unreduced prompt beside the reduced one; null where it does not fit the context."""
    ms = first_ms.get("unreduced")
    cold_ms = ms and ms + sum(stages_ms[name] for name in ("decode", "preprocess", "encode"))
    return {
        "unreduced_first_token_ms": ms,
        "unreduced_cold_first_token_ms": cold_ms,
        "unreduced_over_llm": ms and ms / first_ms["llm"],
        "unreduced_over_reask": ms and ms / first_ms["reask"],
        "unreduced_over_cold": cold_ms and cold_ms / first_ms["cold"],
    }


def _medians(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: _median(ms) for name, ms in samples.items() if ms}


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 3)


def _p90s(samples: dict[str, list[float]]) -> dict[str, float]:
    return {name: round(float(np.percentile(ms, 90)), 3) for name, ms in samples.items() if ms}


def _peak_rss_mb() -> float:
    """Highest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1e6 if sys.platform == "darwin" else 1e3 / 1.024), 1)
