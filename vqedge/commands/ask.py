"""`vqedge ask`: one question about one video."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vqedge.budget import Budget, budget_from_text
from vqedge.commands.ask_many import ask_many, is_many, questions_from_file
from vqedge.commands.evidence import evidence_document, evidence_for, evidence_line
from vqedge.commands.output import json_result, result, say
from vqedge.commands.pipe import STDIN, Given, given_video
from vqedge.commands.session import BEST_HERE, RunsOn, open_session
from vqedge.commands.span import checked_span
from vqedge.errors import ConfigError, UsageError
from vqedge.prompt import question_text
from vqedge_runtime import Answer, DecodingOptions, Video, VideoQA
from vqedge_runtime.evidence import Evidence
from vqedge_runtime.kv import kv_path
from vqedge_runtime.video import Span
from vqedge_runtime.vqt import Origin, is_vqt


@dataclass(frozen=True)
class _Wanted:
    """How a question is asked, and what of its answer is printed: see `vqedge ask --help`."""

    budget: Budget | None
    span: Span
    choices: list[str]
    decoding: DecodingOptions
    as_json: bool
    stream: bool
    evidence: bool
    keep_kv: bool


def run_ask(
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
    wanted = _Wanted(
        budget_from_text(budget),
        checked_span(start, end),
        [] if choices is None else _choices(choices),
        options or DecodingOptions(),
        as_json,
        stream and not as_json and choices is None,
        evidence,
        keep_kv,
    )
    if questions is not None and (evidence or keep_kv or wanted.choices):
        raise UsageError("--evidence, --keep-kv and --choices are for one question")
    if questions is not None and question is not None:
        raise UsageError("give a question or --questions, not both")
    if video == STDIN:
        _check_pipe(question, questions, keep_kv)
    with given_video(video) as given:
        many = is_many(given.path, wanted.span)
        _check_clips(given, wanted, many)
        asked = [_question(question)] if questions is None else questions_from_file(questions)
        with open_session(bundle, runs_on, many or is_vqt(given.path)) as qa:
            if many or questions is not None:
                several = (wanted.budget, wanted.span, wanted.decoding, as_json)
                ask_many(qa, given, asked, *several)
            else:
                _ask_one(qa, given, asked[0], wanted)


def _check_pipe(question: str | None, questions: Path | None, keep_kv: bool) -> None:
    """See that only the video is to come through the pipe."""
    if question is None and questions in (None, STDIN):
        raise UsageError(
            "-: the video comes through the pipe; give the question as words, or --questions FILE"
        )
    if keep_kv:
        raise UsageError("--keep-kv: writes beside a file, and - is none; give the .vqt itself")


def _check_clips(given: Given, wanted: _Wanted, many: bool) -> None:
    """See that what is asked for can be of this video, or of these `many` clips."""
    if many and (wanted.evidence or wanted.keep_kv or wanted.choices):
        raise ConfigError(
            "--evidence, --keep-kv and --choices are for one question about one video; name a "
            ".vqt, and of several segments one with --start"
        )
    if many and (*wanted.span, wanted.budget) != (None, None, None):
        raise ConfigError(
            "--start, --end and --budget are for one video, and these are several with their tokens"
        )
    if wanted.keep_kv and not is_vqt(given.path):
        raise ConfigError("--keep-kv is for one .vqt file; make one with: vqedge encode VIDEO")


def _ask_one(qa: VideoQA, given: Given, question: str, wanted: _Wanted) -> None:
    """Ask one question about one video, and print the answer."""
    encoded = qa.encode(given.path, wanted.budget, *wanted.span)
    if isinstance(encoded.source, Origin) and wanted.span != (None, None):
        say(f"segment from {encoded.start_s:g} to {encoded.end_s:g} s")
    prefix_ms = qa.prefill(encoded, kv_path(given.path)).ms if wanted.keep_kv else 0.0
    answer = _answer(qa, encoded, question, wanted).including_encoding(prefix_ms)
    if not wanted.as_json:
        _print_text(answer, wanted.stream)
    if wordless := not answer.text.strip():
        say("the model gave no words; ask in other words, or try --temperature 0.7")
    explained = wanted.evidence and not wordless
    found = evidence_for(qa, answer, question) if explained else None
    if wanted.as_json:
        json_result(document_of(answer, question, given.name, found))
    elif found is not None:
        result(evidence_line(found))


def _answer(qa: VideoQA, video: Video, question: str, wanted: _Wanted) -> Answer:
    if wanted.choices:
        return qa.ask(video, question, choices=wanted.choices)
    if not wanted.stream:
        return qa.ask(video, question, options=wanted.decoding)
    stream = qa.stream(video, question, options=wanted.decoding)
    for piece in stream:
        result(piece, end="")
    return stream.answer


def document_of(
    answer: Answer, question: str, video: Path, evidence: Evidence | None = None
) -> dict[str, Any]:
    """The JSON of an answer: `Answer.to_dict`, and what was asked. Scripts rely on its keys.

    Args:
        answer: the answer.
        question: the user's words.
        video: the user's name for the video.
        evidence: what the answer hangs on, if that was looked for.
    """
    document, clip = answer.to_dict(), answer.video
    document["question"] = question.strip()
    document["video"] |= {
        "path": str(video),
        "start_s": round(clip.start_s, 6),
        "end_s": round(clip.end_s, 6),
    }
    return document if evidence is None else document | evidence_document(evidence)


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
    if len(choices) < 2 or not all(choices) or len({*choices}) < len(choices):
        raise UsageError(
            f"--choices {text!r}: give two or more, all different, separated by |, as 'red|blue'"
        )
    return choices
