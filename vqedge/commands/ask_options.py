"""What `vqedge ask` can be told, and what of it does not go together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from vqedge.budget import Budget
from vqedge.commands.session import BEST_HERE, RunsOn
from vqedge.commands.span import check_span
from vqedge.errors import UsageError
from vqedge_runtime import DecodingOptions
from vqedge_runtime.video import Span


@dataclass(frozen=True)
class AskOptions:
    """How a question is asked, and what of its answer is printed: see `vqedge ask --help`.

    Raises:
        UsageError: no video has the span, or what is for one question is asked of many.
    """

    choices: tuple[str, ...] = ()
    budget: Budget | None = None
    span: Span = (None, None)
    decoding: DecodingOptions = field(default_factory=DecodingOptions)
    runs_on: RunsOn = BEST_HERE
    stream: bool = True
    evidence: bool = False
    questions: Path | None = None
    keep_kv: bool = False

    @property
    def for_one(self) -> bool:
        """Whether something is asked for that only one question about one video has."""
        return self.evidence or self.keep_kv

    def __post_init__(self) -> None:
        """Refuse what no video makes right, before any file is opened."""
        check_span(self.span)
        if self.questions is not None and self.for_one:
            raise UsageError("--evidence and --keep-kv are for one question")


def choices_from_text(text: str | None) -> tuple[str, ...]:
    """`red|blue` as ("red", "blue"); none for None.

    Raises:
        UsageError: fewer than two, an empty one, or one twice.
    """
    if text is None:
        return ()
    choices = tuple(choice.strip() for choice in text.split("|"))
    if len(choices) < 2 or not all(choices) or len({*choices}) < len(choices):
        raise UsageError(
            f"--choices {text!r}: give two or more, all different, separated by |, as 'red|blue'"
        )
    return choices
