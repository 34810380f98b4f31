"""`vqedge ask`: one question about one video."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from vqedge.budget import Budget, budget_from_text
from vqedge.commands.ask_many import ask_many, is_many, questions_from_file
from vqedge.commands.evidence import evidence_document, evidence_for, evidence_line
from vqedge.commands.output import json_result, result, say
from vqedge.commands.session import BEST_HERE, RunsOn, open_session
from vqedge.commands.span import checked_span
from vqedge.errors import ConfigError, UsageError, VqedgeError
from vqedge.prompt import question_text
from vqedge_runtime import Answer, DecodingOptions, Video, VideoQA
from vqedge_runtime.evidence import Evidence
from vqedge_runtime.kv import kv_path
from vqedge_runtime.vqt import Origin, is_vqt


def ask(
    video: Path,
    question: str | None,
    bundle: Path | None = None,
    *,
    choices: str | None = None,
    budget: str | None = None,
    start: float | None = None,
    end: float | None = None,
    options: DecodingOptions | None = None,
    runs_on: RunsOn = BEST_HERE,
    as_json: bool = False,
    stream: bool = True,
    evidence: bool = False,
    questions: Path | None = None,
    keep_kv: bool = False,
) -> None:
    """Answer on stdout, the backends on stderr.

    Raises:
        UsageError: flags that do not go together, or a text that is none of those they take.
        ConfigError: flags that do not go with this video or bundle.
    """
    span, most = checked_span(start, end), budget_from_text(budget)
    decoding = options or DecodingOptions()
    if choices is not None:
        _choices(choices)
    if questions is not None and (evidence or keep_kv or choices is not None):
        raise UsageError("--evidence, --keep-kv and --choices are for one question")
    folder = is_many(video)
    if folder and (evidence or choices is not None):
        raise ConfigError("--evidence and --choices are for one question about one video")
    if keep_kv and not is_vqt(video):
        raise ConfigError("--keep-kv is for one .vqt file; make one with: vqedge encode VIDEO")
    if folder and (start, end, budget) != (None, None, None):
        raise ConfigError(
            "--start, --end and --budget are for one video, and this is a folder of .vqt"
        )
    asked = _asked(question, questions)
    with open_session(bundle, runs_on, is_vqt(video) or folder) as qa:
        if folder or questions is not None:
            ask_many(qa, video, asked, most, span, decoding, as_json)
            return
        encoded = _encoded(qa, video, most, span)
        prefix_ms = qa.prefill(encoded, kv_path(video)).ms if keep_kv else 0.0
        streamed = stream and not as_json and choices is None
        answer = _answer(qa, encoded, asked[0], choices, decoding, streamed)
        answer = answer.including_encoding(prefix_ms)
        if not as_json:
            _print_text(answer, streamed)
        found = evidence_for(qa, answer, asked[0]) if evidence else None
    if as_json:
        json_result(document_of(answer, found))
    elif found is not None:
        result(evidence_line(found))


def _asked(question: str | None, questions: Path | None) -> list[str]:
    if questions is None:
        return [_question(question)]
    if question is not None:
        raise UsageError("give a question or --questions, not both")
    return questions_from_file(questions)


def _encoded(
    qa: VideoQA, video: Path, budget: Budget | None, span: tuple[float | None, float | None]
) -> Video:
    encoded = qa.encode(video, budget, *span)
    if isinstance(encoded.source, Origin) and span != (None, None):
        say(f"segment from {encoded.start_s:g} to {encoded.end_s:g} s")
    return encoded


def _answer(
    qa: VideoQA,
    video: Video,
    question: str,
    choices: str | None,
    options: DecodingOptions,
    streamed: bool,
) -> Answer:
    if choices is not None:
        answer = qa.ask(video, question, choices=_choices(choices))
    elif streamed:
        answer = _streamed(qa.stream(video, question, options=options))
    else:
        answer = qa.ask(video, question, options=options)
    if not answer.text.strip():
        raise VqedgeError("the model gave no words; ask in other words, or try --temperature 0.7")
    return answer


def document_of(answer: Answer, evidence: Evidence | None = None) -> dict[str, Any]:
    """The JSON of an answer: `Answer.to_dict`, and what this command adds. Scripts rely on it."""
    added = {} if evidence is None else evidence_document(evidence)
    return answer.to_dict() | added


def _streamed(stream: Any) -> Answer:
    for piece in stream:
        result(piece, end="")
    answer: Answer = stream.answer
    return answer


def _print_text(answer: Answer, streamed: bool) -> None:
    result("" if streamed else answer.text)
    for choice, probability in answer.choice_scores.items():
        result(f"{probability:7.1%}  {choice}")
    timings = answer.timings
    say(
        f"{answer.tokens} of {answer.video.tokens.patches} visual tokens; "
        f"first token after {timings.first_token:.0f} ms, total {timings.total:.0f} ms"
    )
    say_if_cut(answer)


def say_if_cut(answer: Answer) -> None:
    """Tell that an answer is not all that the model had to say."""
    if not answer.stopped:
        say(f"cut after {answer.generated_tokens} tokens; --max-tokens allows longer answers")


def _question(question: str | None) -> str:
    """The question, from standard input if it is piped there; refused early if it is empty."""
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is None:
        raise UsageError("no question; ask something, as: vqedge ask clip.mp4 'What moves?'")
    question_text(question)
    return question


def _choices(text: str) -> list[str]:
    choices = [choice.strip() for choice in text.split("|")]
    if len(choices) < 2 or not all(choices):
        raise UsageError(
            f"--choices {text!r}: give two or more, separated by |, as 'red|blue|green'"
        )
    return choices
