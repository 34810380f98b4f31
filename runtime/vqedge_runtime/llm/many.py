"""Several prompts at once, side by side in the sequences of one context.

    sequence 0   [template] [video held]
    sequence 1   [template, rows it shares] [its own rows] [question] [answer]
    sequence 2   ...

What a prompt has in common with the video held is read once: all of it for several questions about
one video, the rows that it begins with like it, the template for different videos. The numbers are
those of one prompt at a time up to the rounding of larger matrix products.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from vqedge.agreement import log_softmax
from vqedge_runtime.llm.cells import BRANCHES, Cells
from vqedge_runtime.llm.handles import Model, Sampler
from vqedge_runtime.llm.protocol import DecodingOptions, Generation, Prompt
from vqedge_runtime.llm.reader import Placed, Reader
from vqedge_runtime.llm.turn import Turn


def generate(
    model: Model,
    reader: Reader,
    prompts: Sequence[Prompt],
    suffixes: Sequence[Sequence[int]],
    options: DecodingOptions,
) -> list[Generation]:
    """An answer to every prompt; times count from the beginning of the group it was answered in.

    Args:
        model: answers.
        reader: reads them.
        prompts: videos and questions.
        suffixes: what the reader gave of each.
        options: how to pick tokens.

    Raises:
        BackendUnavailable: the model is closed or failed.
    """
    found: list[Generation] = []
    for group in _groups(reader, prompts, suffixes, options.max_tokens):
        found += _generated(model, reader, prompts[group], suffixes[group], options)
    return found


def score(
    reader: Reader,
    prompts: Sequence[Prompt],
    suffixes: Sequence[Sequence[int]],
    answer: Sequence[int],
) -> list[float]:
    """Log-likelihood of an answer after each prompt; raises as `generate` does.

    Args:
        reader: reads them.
        prompts: videos and questions.
        suffixes: what the reader gave of each.
        answer: ids, the end of turn included.
    """
    totals: list[float] = []
    for group in _groups(reader, prompts, suffixes, len(answer)):
        totals += _scored(reader, prompts[group], suffixes[group], answer)
    return totals


def _groups(
    reader: Reader, prompts: Sequence[Prompt], suffixes: Sequence[Sequence[int]], answer_tokens: int
) -> Iterator[slice]:
    """Runs of prompts that the context can hold with an answer each, as long as they can be."""
    first, used = 0, 0
    videos: set[str] = set()
    for place, prompt in enumerate(prompts):
        asked = len(suffixes[place]) + answer_tokens
        rows = len(prompt.video.rows)
        new = 0 if prompt.video.key in videos else rows
        full = place - first == BRANCHES or used + asked + new > reader.room_aside
        if full and place > first:
            yield slice(first, place)
            first, used, new = place, 0, rows
            videos.clear()
        videos.add(prompt.video.key)
        used += asked + new
    if prompts:
        yield slice(first, len(prompts))


def _generated(
    model: Model,
    reader: Reader,
    prompts: Sequence[Prompt],
    suffixes: Sequence[Sequence[int]],
    options: DecodingOptions,
) -> list[Generation]:
    started = time.perf_counter()
    with ExitStack() as stack:
        reading = reader.read_side_by_side(prompts, suffixes, options.max_tokens)
        placed = stack.enter_context(reading)
        turns = [_turn(at, started) for at in placed]
        samplers = [stack.enter_context(Sampler(model, options)) for _ in turns]
        unread = {number: at.question for number, at in enumerate(placed)}
        while unread:
            places = reader.context.wanted(Cells.joined(list(unread.values())))
            going: dict[int, Cells] = {}
            for number, place in zip(list(unread), places, strict=True):
                turn = turns[number]
                data = turn.next_token(model, reader.context, samplers[number], place)
                turn.say(data)
                if data is not None and turn.generated < options.max_tokens:
                    assert turn.unread is not None
                    going[number] = Cells.at(turn.end, [turn.unread], "last", number + 1)
            unread = going
    for turn in turns:
        turn.say(None)
    return [turn.generation() for turn in turns]


def _turn(placed: Placed, started: float) -> Turn:
    return Turn(
        prefix=placed.prefix,
        prompt_tokens=placed.prefix.tokens + len(placed.question),
        question_ms=0.0,  # read together with the others' and the first tokens
        started=started,
    )


def _scored(
    reader: Reader,
    prompts: Sequence[Prompt],
    suffixes: Sequence[Sequence[int]],
    answer: Sequence[int],
) -> list[float]:
    totals = [0.0] * len(prompts)
    with reader.read_side_by_side(prompts, suffixes, len(answer)) as placed:
        cells: list[Cells] = []
        for number, at in enumerate(placed, 1):
            after = at.prefix.tokens + len(at.question)
            cells += [at.question, Cells.at(after, answer[:-1], "all", number)]
        targets = [(number, token) for number in range(len(prompts)) for token in answer]
        rows = reader.context.logits(Cells.joined(cells))
        for (number, token), row in zip(targets, rows, strict=True):
            totals[number] += float(log_softmax(row)[token])
    return totals
