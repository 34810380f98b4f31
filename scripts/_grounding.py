"""Measures grounding in time: does an answer's evidence say when its object is there?

    python scripts/_grounding.py BUNDLE [--questions 60] [--threads N] [--write]

Clips are held out (the synthetic suite's). Every object that is there for at most 0.7 of its clip
and whose shape no other one has is asked for its colour; the evidence of the true answer gives a
span, which is compared with the span that the object is there. The figure to beat is the whole clip
as the answer to every question. --write puts the result into docs/measured/grounding.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vqedge.data.generated import GeneratedClips
from vqedge.data.seeds import SYNTHETIC_SEED
from vqedge.data.world import MovingObject
from vqedge.evaluate import is_right
from vqedge_runtime import VideoQA
from vqedge_runtime.evidence import find_evidence

OUT = Path(__file__).parents[1] / "docs/measured/grounding.json"
LONGEST = 0.7
CLIPS = 10_000


class Span(NamedTuple):
    """A part of a clip, as shares of it."""

    start: float
    end: float


class Found(NamedTuple):
    """One question: overlap of three spans with the true one; was it answered?"""

    evidence: float
    whole_clip: float
    frames: float  # those that show it: the best that this many frames can do
    right: bool


def overlap(a: Span, b: Span) -> float:
    """Intersection over union."""
    shared = max(0.0, min(a.end, b.end) - max(a.start, b.start))
    return shared / (max(a.end, b.end) - min(a.start, b.start))


def objects() -> Iterator[tuple[int, MovingObject]]:
    """What is asked about, with the number of its clip."""
    clips = GeneratedClips(SYNTHETIC_SEED, CLIPS)
    for number in range(CLIPS):
        items = clips[number].scene.objects
        shapes = [item.shape for item in items]
        for item in items:
            if item.lasts <= LONGEST and shapes.count(item.shape) == 1:
                yield number, item


def found(qa: VideoQA, count: int) -> Iterator[Found]:
    """Ask, find the evidence, compare."""
    spec, clips = qa.manifest.encoder, GeneratedClips(SYNTHETIC_SEED, CLIPS)
    for done, (number, item) in zip(range(count), objects(), strict=False):
        frames = clips[number].frames(spec.frames, spec.size)
        video = replace(qa.encode_frames(frames), duration_s=1.0)  # so that times are shares
        question = f"What color is the {item.shape}?"
        evidence = find_evidence(qa.llm, video, question, item.color)
        true = Span(item.appears_at, item.vanishes_at)
        yield Found(
            overlap(Span(evidence.start_s, evidence.end_s), true),
            overlap(Span(0.0, 1.0), true),
            overlap(shown(item, spec.frames), true),
            is_right(qa.ask(video, question).text, item.color),
        )
        print(f"\r{done + 1} asked", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)


def shown(item: MovingObject, frames: int) -> Span:
    """The frames that show an object, each for its part of the clip."""
    seen = [i for i in range(frames) if item.shows_at((i + 0.5) / frames)]
    return Span(seen[0] / frames, (seen[-1] + 1) / frames)


def document(rows: Sequence[Found], backend: str) -> dict[str, Any]:
    """Means over all questions, and over those that were answered."""
    groups = {"all": rows, "answered": [row for row in rows if row.right]}
    figures = {
        name: {
            "n": len(group),
            "evidence_iou": statistics.fmean(row.evidence for row in group),
            "whole_clip_iou": statistics.fmean(row.whole_clip for row in group),
            "frames_iou": statistics.fmean(row.frames for row in group),
            "evidence_iou_above_half": statistics.fmean(row.evidence > 0.5 for row in group),
        }
        for name, group in groups.items()
        if group
    }
    return {"backend": backend, **figures}


def main() -> None:
    """Measure; print, and write if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    with VideoQA.open(arguments.bundle, threads=arguments.threads) as qa:
        result = document(list(found(qa, arguments.questions)), str(qa.backend))
    text = json.dumps(result, indent=1) + "\n"
    if arguments.write:
        OUT.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
