"""`vqedge ask`: one question about one video."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from vqedge.commands.ask_many import ask_many, is_many, questions_from_file
from vqedge.commands.ask_options import AskOptions
from vqedge.commands.evidence import NO_WORDS, evidence_document, evidence_for, evidence_line
from vqedge.commands.output import json_result, result, say, say_note
from vqedge.commands.pipe import STDIN, Given, given_video
from vqedge.commands.question import check_question
from vqedge.commands.session import open_ahead
from vqedge.errors import ConfigError, UsageError
from vqedge.prompt import question_text
from vqedge_runtime import Answer, Video, VideoQA
from vqedge_runtime.evidence import Evidence
from vqedge_runtime.kv import kv_path
from vqedge_runtime.vqt import Origin, is_vqt


def run_ask(
    video: Path,
    question: str | None,
    bundle: Path | None = None,
    *,
    options: AskOptions | None = None,
    as_json: bool = False,
) -> None:
    """Answer on stdout, the backends on stderr.

    Raises:
        UsageError: no question or an empty one, two ways to ask, or the video is named last.
        ConfigError: options that do not go with this video or bundle.
    """
    wanted = options or AskOptions()
    if question is not None:
        _check_words(video, question, wanted)
    if video == STDIN:
        _check_pipe(question, wanted)
    with given_video(video, or_many=True) as given:
        many = is_many(given, wanted.span)
        _check_clips(given, wanted, many)
        file = wanted.questions
        asked = [_question(question)] if file is None else questions_from_file(file)
        stored = many or is_vqt(given.path)
        with open_ahead(bundle, wanted.runs_on, stored, wanted.budget) as qa:
            if many or file is not None:
                say(str(qa.backend_for(stored)))
                ask_many(qa, given, asked, wanted, many, as_json)
            else:
                _ask_one(qa, given, asked[0], wanted, as_json)


def _check_words(video: Path, question: str, wanted: AskOptions) -> None:
    """See that the words of the command line are a video and a question, in this order."""
    if wanted.questions is not None:
        raise UsageError("give a question or --questions, not both")
    check_question(question)
    if video != STDIN and os.path.exists(question) and not os.path.exists(video):
        words = shlex.join([question, str(video)])
        raise UsageError(f"{video}: no such file; the video comes first: vqedge ask {words}")


def _check_pipe(question: str | None, wanted: AskOptions) -> None:
    """See that only the video is to come through the pipe."""
    if question is None and wanted.questions in (None, STDIN):
        raise UsageError(
            "-: the video comes through the pipe; give the question as words, or --questions FILE"
        )
    if wanted.keep_kv:
        raise UsageError("--keep-kv: writes beside a file, and - is none; give the .vqt itself")


def _check_clips(given: Given, wanted: AskOptions, many: bool) -> None:
    """See that what is asked for can be of this video, or of these `many` clips."""
    if many and wanted.for_one:
        raise ConfigError(
            "--evidence and --keep-kv are for one question about one video; name a .vqt, and of "
            "several segments one with --start"
        )
    if many and (*wanted.span, wanted.budget) != (None, None, None):
        raise ConfigError(
            "--start, --end and --budget are for one video; these are several, already encoded"
        )
    if wanted.keep_kv and not is_vqt(given.path):
        raise ConfigError(
            "--keep-kv is for one .vqt file; make one with: vqedge encode VIDEO -o FILE.vqt"
        )


def _ask_one(qa: VideoQA, given: Given, question: str, wanted: AskOptions, as_json: bool) -> None:
    """Ask one question about one video, and print the answer."""
    streamed = wanted.stream and not as_json and not wanted.choices
    encoded = qa.encode(given.path, wanted.budget, *wanted.span)
    say(str(qa.backend_for(is_vqt(given.path))))
    if isinstance(encoded.source, Origin) and wanted.span != (None, None):
        say(f"segment from {encoded.start_s:g} to {encoded.end_s:g} s")
    say_note(given.name, encoded.note)
    prefix_ms = qa.prefill(encoded, kv_path(given.path)).ms if wanted.keep_kv else 0.0
    answer = _answer(qa, encoded, question, wanted, streamed).including_encoding(prefix_ms)
    if not as_json:
        _print_text(answer, streamed)
    if not answer.text.strip():
        say(f"{NO_WORDS}, or try --temperature 0.7", always=True)
    found = evidence_for(qa, answer, question) if wanted.evidence else None
    if as_json:
        json_result(document_of(answer, question, given.name, found))
    elif found is not None:
        result(evidence_line(found))


def _answer(qa: VideoQA, video: Video, question: str, wanted: AskOptions, streamed: bool) -> Answer:
    if wanted.choices:
        return qa.ask(video, question, choices=wanted.choices)
    if not streamed:
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
    speed = f", {answer.tokens_per_s:.0f} tokens/s" if answer.tokens_per_s else ""
    say(
        f"{answer.tokens} of {answer.video.tokens.patches} visual tokens; "
        f"first token after {timings.first_token:.0f} ms, total {timings.total:.0f} ms{speed}"
    )
    say_if_cut(answer)


def say_if_cut(answer: Answer) -> None:
    """Tell that an answer is not all that the model had to say."""
    if not answer.stopped:
        say(
            f"cut after {answer.generated_tokens} tokens; --max-tokens allows longer answers",
            always=True,
        )


def _question(question: str | None) -> str:
    """The question, from standard input if it is piped there; refused early if it is empty."""
    if question is None and not sys.stdin.isatty():
        question = sys.stdin.read()
    if question is None:
        raise UsageError("no question; ask something, as: vqedge ask clip.mp4 'What moves?'")
    question_text(question)
    return question
