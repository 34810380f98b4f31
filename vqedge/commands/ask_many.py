"""`vqedge ask` with several questions or a folder of `.vqt` files: all of them together."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqedge.budget import Budget
from vqedge.commands.output import json_result, result, say
from vqedge.errors import PromptError, VqedgeError, VqtError
from vqedge_runtime import Answer, DecodingOptions, Video, VideoQA
from vqedge_runtime.vqt import open_vqt
from vqedge_runtime.vqt.file import SUFFIX

_STDIN = Path("-")
_AT_ONCE = 240  # prompts given to the model in one call; their clips are in memory


@dataclass(frozen=True)
class _Clip:
    """A video, or a segment of a `.vqt`."""

    path: Path
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class _Asked:
    clip: _Clip
    video: Video
    question: str


def is_many(video: Path) -> bool:
    """Whether a path is a folder that holds `.vqt` files."""
    return video.is_dir() and any(_vqt_files(video))


def questions_from_file(path: Path) -> list[str]:
    """A question a line, `-` for standard input; empty lines count for nothing.

    Raises:
        PromptError: it cannot be read, or holds none.
    """
    try:
        text = sys.stdin.read() if path == _STDIN else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(
            f"--questions {path}: {error}; give a text file, a question a line"
        ) from error
    questions = [line.strip() for line in text.splitlines() if line.strip()]
    if not questions:
        raise PromptError(f"--questions {path}: no question in it; write one a line")
    return questions


def ask_many(
    qa: VideoQA,
    video: Path,
    questions: Sequence[str],
    budget: Budget | None,
    span: tuple[float | None, float | None],
    options: DecodingOptions,
    as_json: bool,
) -> None:
    """Answer every question about every clip: a line each, as video, question and answer.

    Raises:
        VqedgeError: some clips could not be read; all others are answered.
    """
    began = time.perf_counter()
    clips = _clips_in(video) if is_many(video) else [_Clip(video, *span)]
    failed: list[str] = []
    rows: list[dict[str, Any]] = []
    asked = _asked(qa, clips, questions, budget, failed)
    for group in _groups(asked):
        found = qa.ask_many([(item.video, item.question) for item in group], options=options)
        for item, answer in zip(group, found, strict=True):
            if as_json:
                rows.append(_row(item, answer))
            else:
                result("\t".join(map(_field, (_name(item), item.question, answer.text))))
    if as_json:
        spent_ms = round((time.perf_counter() - began) * 1e3, 3)
        json_result(
            {
                "answers": rows,
                "failed": failed,
                "timings_ms": {"total": spent_ms},
                "backend": asdict(qa.backend),
            }
        )
    _report(failed, len(clips))


def _field(text: str) -> str:
    """Without tabs and line breaks: an answer is one line of three fields."""
    return " ".join(text.split())


def _row(item: _Asked, answer: Answer) -> dict[str, Any]:
    return {
        "video": str(item.clip.path),
        "start_s": round(item.video.start_s, 6),
        "end_s": round(item.video.end_s, 6),
        "question": item.question,
        "answer": answer.text,
        "tokens": answer.tokens,
        "stopped": answer.stopped,
    }


def _report(failed: Sequence[str], count: int) -> None:
    if len(failed) == count == 1:
        raise VqtError(failed[0])
    for error in failed:
        say(f"failed: {error}")
    if failed:
        raise VqtError(
            f"{len(failed)} of {count} clips could not be read; they are listed above, all others "
            "are answered"
        )


def _asked(
    qa: VideoQA,
    clips: Sequence[_Clip],
    questions: Sequence[str],
    budget: Budget | None,
    failed: list[str],
) -> Iterator[_Asked]:
    for clip in clips:
        try:
            video = qa.encode(clip.path, budget, clip.start_s, clip.end_s)
        except VqedgeError as error:
            failed.append(str(error))
            continue
        yield from (_Asked(clip, video, question) for question in questions)


def _groups(asked: Iterator[_Asked]) -> Iterator[list[_Asked]]:
    group: list[_Asked] = []
    for item in asked:
        group.append(item)
        if len(group) == _AT_ONCE:
            yield group
            group = []
    if group:
        yield group


def _clips_in(folder: Path) -> list[_Clip]:
    """Every segment of every `.vqt` file; one that cannot be read stands for itself."""
    clips: list[_Clip] = []
    for path in _vqt_files(folder):
        try:
            spans = open_vqt(path).spans_us
        except VqtError:
            spans = ()
        starts = [start_us / 1e6 for start_us, _ in spans] if len(spans) > 1 else [None]
        clips += [_Clip(path, start_s) for start_s in starts]
    return clips


def _vqt_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(f"*{SUFFIX}") if path.is_file())


def _name(item: _Asked) -> str:
    """The path, with its span where a part of the file was asked about."""
    clip, video = item.clip, item.video
    whole = clip.start_s is None and clip.end_s is None
    return f"{clip.path}" + ("" if whole else f" {video.start_s:g}-{video.end_s:g} s")
