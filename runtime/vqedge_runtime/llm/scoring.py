"""Log-likelihoods of given answers, side by side as branches of their prompt."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from vqedge.agreement import log_softmax
from vqedge.errors import PromptError
from vqedge_runtime.llm.cells import BRANCHES, Cells
from vqedge_runtime.llm.handles import Context

Answers = Sequence[Sequence[int]]


def groups_of(answers: Answers, room: int) -> list[Answers]:
    """Runs of answers that the context can hold together, as long as they can be.

    Args:
        answers: ids of each.
        room: positions that the context has after the prompt.

    Raises:
        PromptError: an answer alone is longer.
    """
    first, used = 0, 0
    groups: list[Answers] = []
    for place, answer in enumerate(answers):
        if len(answer) > room:
            raise PromptError(
                f"a choice has {len(answer)} tokens, and there is room for {room} after the "
                "question; shorten the choice"
            )
        if place - first == BRANCHES or used + len(answer) > room:
            groups.append(answers[first:place])
            first, used = place, 0
        used += len(answer)
    return [*groups, answers[first:]]


def totals_of(context: Context, start: int, groups: Sequence[Answers]) -> tuple[float, ...]:
    """Log-likelihood of each answer after a prompt, which the context has just read.

    Args:
        context: has the logits of the first tokens.
        start: positions of the prompt.
        groups: see `groups_of`.
    """
    first = log_softmax(context.last_logits())
    return tuple(total for group in groups for total in _branch(context, start, first, group))


def _branch(
    context: Context, start: int, first: npt.NDArray[np.float64], answers: Answers
) -> list[float]:
    """Log-likelihood of each answer, given that of every first token."""
    totals = [float(first[answer[0]]) for answer in answers]
    cells = Cells.branching(start, [answer[:-1] for answer in answers])
    targets = [(number, token) for number, answer in enumerate(answers) for token in answer[1:]]
    with context.branches(len(answers)):
        for number in range(1, len(answers) + 1):
            context.fork(0, number, start)
        for (number, token), row in zip(targets, context.logits(cells), strict=True):
            totals[number] += float(log_softmax(row)[token])
    return totals
