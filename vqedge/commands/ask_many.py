"""`vqedge ask` with several questions or several clips from `.vqt` files: all of them together."""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqedge.commands.ask_options import AskOptions
from vqedge.commands.output import copyable, counted, json_result, result, say, say_note
from vqedge.commands.pipe import STDIN, Given
from vqedge.errors import PromptError, VqedgeError, VqtError
from vqedge.files import MOST_TEXT_BYTES, text_within
from vqedge.prompt import first_words
from vqedge_runtime import Answer, Video, VideoQA
from vqedge_runtime.llm.cells import BRANCHES
from vqedge_runtime.video import Span
from vqedge_runtime.vqt import is_vqt, open_vqt


@dataclass(frozen=True)
class _Asked:
    path: Path
    video: Video
    question: str


def is_many(given: Given, span: Span) -> bool:
    """Whether a path means several clips: a folder of `.vqt` files, or one of several segments.

    Args:
        given: what the path holds.
        span: asked for, in seconds; it picks a segment.
    """
    if given.stored:
        return True
    if span != (None, None) or not is_vqt(given.path):
        return False
    try:
        return len(open_vqt(given.path).spans_us) > 1
    except VqtError:  # told when it is asked about
        return False


def questions_from_file(path: Path) -> list[str]:
    """A question a line, `-` for standard input; empty lines count for nothing.

    Raises:
        PromptError: it cannot be read, or holds none.
    """
    try:
        text = _text_of_stdin() if path == STDIN else text_within(path)
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise PromptError(
            f"--questions {path}: {why}; give a text file, a question a line"
        ) from error
    questions = [line.strip() for line in text.splitlines() if line.strip()]
    if not questions:
        raise PromptError(f"--questions {path}: no question in it; write one a line")
    return questions


def _text_of_stdin() -> str:
    text = sys.stdin.read(MOST_TEXT_BYTES + 1)
    if len(text) > MOST_TEXT_BYTES:
        raise OSError(errno.EFBIG, f"holds more than {MOST_TEXT_BYTES >> 20} MiB")
    return text


def ask_many(
    qa: VideoQA,
    given: Given,
    questions: Sequence[str],
    options: AskOptions,
    many: bool,
    as_json: bool,
) -> None:
    """Answer every question about every clip: a line each, as video, question and answer.

    Args:
        qa: the session.
        given: the video, or `many` clips.
        questions: one at least.
        options: which part of the video, how many tokens, how to pick those of answers, or which
            answers to choose from.
        many: as `is_many` says.
        as_json: print one document instead.

    Raises:
        VqedgeError: some clips could not be read or asked about; all others are answered.
    """
    began = time.perf_counter()
    failed: list[str] = []
    rows: list[dict[str, Any]] = []
    videos = _stored(qa, given, failed) if many else _one(qa, given, options, failed)
    asked = (_Asked(path, clip, question) for path, clip in videos for question in questions)
    answered = wordless = 0
    for item, answer in _answered(qa, asked, options, failed):
        answered += 1
        wordless += not answer.text.strip()
        if as_json:
            rows.append(_row(item, answer))
        else:
            told = item.question.strip(), answer.text.strip()
            result("\t".join(map(_field, (_name(item), *told))))
    if as_json:
        spent_ms = round((time.perf_counter() - began) * 1e3, 3)
        json_result(
            {
                "answers": rows,
                "failed": failed,
                "timings_ms": {"total": spent_ms},
                "backend": asdict(qa.backend_for(many or is_vqt(given.path))),
            }
        )
    if wordless:
        have = f"{counted(wordless, 'answer')} {'has' if wordless == 1 else 'have'}"
        say(f"{have} no words; ask in other words, or try --temperature 0.7", always=True)
    _report(failed, answered)


def _answered(
    qa: VideoQA, asked: Iterator[_Asked], options: AskOptions, failed: list[str]
) -> Iterator[tuple[_Asked, Answer]]:
    """Every question with its answer; the model reads a group of them at a time.

    Choices are scored for one question after another.
    """
    for group in _groups(asked, 1 if options.choices else BRANCHES):
        yield from _answers(qa, group, options, failed)


def _answers(
    qa: VideoQA, group: Sequence[_Asked], options: AskOptions, failed: list[str]
) -> Iterator[tuple[_Asked, Answer]]:
    """Those of a group; one by one where it cannot be read, since one question may be too long."""
    try:
        found = _together(qa, group, options)
    except PromptError as error:
        if len(group) == 1:
            failed.append(f"{_name(group[0])}, {first_words(group[0].question)}: {error}")
            return
        for item in group:
            yield from _answers(qa, [item], options, failed)
    else:
        yield from zip(group, found, strict=True)


def _together(qa: VideoQA, group: Sequence[_Asked], options: AskOptions) -> list[Answer]:
    pairs = [(item.video, item.question) for item in group]
    if options.choices:
        return qa.ask_many(pairs, choices=options.choices)
    return qa.ask_many(pairs, options=options.decoding)


def _field(text: str) -> str:
    """`copyable`, with spaces for tabs and line breaks: an answer is one line of three fields."""
    return copyable(" ".join(text.replace("\t", " ").splitlines()))


def _row(item: _Asked, answer: Answer) -> dict[str, Any]:
    row: dict[str, Any] = {
        "video": str(item.path),
        "start_s": round(item.video.start_s, 6),
        "end_s": round(item.video.end_s, 6),
        "question": item.question,
        "answer": answer.text,
        "tokens": answer.tokens,
        "stopped": answer.stopped,
    }
    return row | {"choices": answer.choice_scores} if answer.choice_scores else row


def _report(failed: Sequence[str], answered: int) -> None:
    if len(failed) == 1 and not answered:
        raise VqtError(failed[0])
    for error in failed:
        say(f"failed: {error}", always=True)
    if failed:
        raise VqtError(
            f"{len(failed)} clips or questions could not be answered; they are listed above, all "
            "others are"
        )


def _one(
    qa: VideoQA, given: Given, options: AskOptions, failed: list[str]
) -> Iterator[tuple[Path, Video]]:
    try:
        video = qa.encode(given.path, options.budget, *options.span)
    except VqedgeError as error:
        failed.append(given.told(str(error)))
        return
    say_note(given.name, video.note)
    yield given.name, video


def _stored(qa: VideoQA, given: Given, failed: list[str]) -> Iterator[tuple[Path, Video]]:
    """Every segment of the `.vqt` file, or of all in the folder; each is opened once."""
    for path in given.stored or [given.path]:
        name = path if given.stored else given.name
        try:
            yield from ((name, video) for video in qa.encode_segments(path))
        except VqedgeError as error:
            failed.append(given.told(str(error)))


def _groups(asked: Iterator[_Asked], size: int) -> Iterator[list[_Asked]]:
    group: list[_Asked] = []
    for item in asked:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _name(item: _Asked) -> str:
    """The path, with its span where a part of the file was asked about."""
    video = item.video
    return f"{item.path}" + (f" {video.start_s:g}-{video.end_s:g} s" if video.part else "")
