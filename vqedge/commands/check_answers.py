"""`vqedge check --suite`: what an encoder backend changes of the answers, on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vqedge.agreement import chance_of_loss
from vqedge.commands.evaluate import BundleAnswerer
from vqedge.commands.output import say
from vqedge.data.suites import Item, suite_version
from vqedge.evaluate import EvalReport, Reply, evaluate
from vqedge.progress import progress
from vqedge_export.report import AnswerParity
from vqedge_runtime import VideoQA


def answers_compared(
    reference: VideoQA, other: VideoQA, suite: str, items: Sequence[Item]
) -> AnswerParity:
    """Ask both sessions a suite's questions; clips that cannot be read are said and left out.

    Args:
        reference: what is taken for right.
        other: differs from it in the encoder.
        suite: where the questions are from.
        items: the questions, those about one clip one after another.

    Raises:
        VideoError: none of the clips can be read.
    """
    wanted, texts = _asked(reference, suite, items)
    found, others = _asked(other, suite, items)
    for failure in wanted.failed:
        say(f"failed: {failure}", always=True)
    return AnswerParity(
        suite=Path(suite).name,
        version=suite_version(suite),
        questions=len(texts),
        clips=len(wanted.overall.asked),
        same=sum(a == b for a, b in zip(texts, others, strict=True)),
        accuracy_reference=wanted.overall.accuracy,
        accuracy=found.overall.accuracy,
        chance_of_loss=chance_of_loss(found.overall.right, wanted.overall.right),
    )


def _asked(qa: VideoQA, suite: str, items: Sequence[Item]) -> tuple[EvalReport, list[str]]:
    """The suite's report, and every answer."""
    texts: list[str] = []
    with progress(f"answers with {qa.encoder.name}", len(items)) as advance:

        def keep(_item: Item, reply: Reply, _hit: bool) -> None:
            texts.append(reply.text)
            advance("")

        return evaluate(BundleAnswerer(qa), suite, items, keep), texts
