"""`vqedge viz`: a picture of a video's tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vqedge.budget import Budget
from vqedge.bundle import bundle_or_default, open_bundle
from vqedge.commands.encoded import encoded_clip
from vqedge.commands.evidence import NO_WORDS, evidence_document, evidence_for, evidence_line
from vqedge.commands.output import json_result, result, say, say_note
from vqedge.commands.pipe import Given, given_video
from vqedge.commands.question import check_question
from vqedge.commands.session import BEST_HERE, RunsOn, open_session
from vqedge.commands.span import check_span
from vqedge.errors import ConfigError, printable
from vqedge_runtime import Answer, VideoQA
from vqedge_runtime.budget import checked_budget
from vqedge_runtime.evidence import Evidence
from vqedge_runtime.stored import read_stored, stamp_from_path
from vqedge_runtime.tokens import Codes
from vqedge_runtime.video import Clip, Span, clip_from_path
from vqedge_runtime.video.clip import is_image
from vqedge_runtime.video.faults import video_fault
from vqedge_runtime.viz import Picture, write_picture, writer_for
from vqedge_runtime.vqt import is_vqt


@dataclass(frozen=True)
class VizOptions:
    """What is drawn of a video: see `vqedge viz --help`.

    Raises:
        UsageError: no video has the span.
    """

    question: str | None = None
    budget: Budget | None = None
    span: Span = (None, None)
    runs_on: RunsOn = BEST_HERE

    def __post_init__(self) -> None:
        """Refuse a span that there cannot be, before any file is opened."""
        check_span(self.span)


def run_viz(
    video: Path,
    out: Path,
    bundle: Path | None = None,
    *,
    options: VizOptions | None = None,
    as_json: bool = False,
) -> None:
    """Write the picture; its path goes to stdout. A video `-` is standard input.

    Raises:
        UsageError: `out` ends in no kind of picture or is a pipe, or the question is empty.
        PromptError: the question is too long.
        ConfigError: a flag holds what cannot work, or the picture cannot be written.
        VideoError: the video cannot be decoded.
        VqtError: the `.vqt` cannot be read.
    """
    settings = options or VizOptions()
    writer_for(out)
    if out.exists() and video.exists() and out.samefile(video):
        raise ConfigError(f"-o {out}: that is the video itself; give another name")
    if is_image(out) and video.is_dir() and out.parent.exists() and out.parent.samefile(video):
        raise ConfigError(f"-o {out}: it would be a frame of the video; give another folder")
    if settings.question is not None:
        check_question(settings.question)
    with given_video(video) as given:
        picture, answer = _seen(given, bundle, settings)
    write_picture(picture, out)
    if as_json:
        json_result(_document(picture, out, answer))
    else:
        result(str(out))


def _seen(video: Given, bundle: Path | None, settings: VizOptions) -> tuple[Picture, Answer | None]:
    """What is drawn, and the answer if something was asked."""
    if settings.question is not None:
        return _asked(video, bundle, settings, settings.question)
    if is_vqt(video.path):
        return _stored(video, settings), None
    return _encoded(video, bundle, settings), None


def _stored(video: Given, settings: VizOptions) -> Picture:
    """The codes of a file, whatever bundle they are for."""
    if settings.budget is not None:
        raise ConfigError(f"--budget: {video.name} has its tokens already; leave the budget out")
    _, segment = read_stored(video.path, None, *settings.span)
    times_s = tuple(time_us / 1e6 for time_us in segment.times_us)
    span = (segment.start_us / 1e6, segment.end_us / 1e6)
    return Picture(_title(video), segment.codes, times_s, *span)


def _encoded(video: Given, bundle: Path | None, settings: VizOptions) -> Picture:
    """Frames and their codes; no language model is loaded."""
    opened = open_bundle(bundle_or_default(bundle))
    budget = checked_budget(opened.manifest.quantizer, settings.budget)
    clip, codes = encoded_clip(video.path, settings.span, opened, budget, settings.runs_on)
    return _picture(video, clip, codes)


def _asked(
    video: Given, bundle: Path | None, settings: VizOptions, question: str
) -> tuple[Picture, Answer]:
    """The same with an answer and its evidence, if it has any."""
    stored = is_vqt(video.path)
    with open_session(bundle, settings.runs_on, stored) as qa:
        stamp = None if stored else stamp_from_path(video.path)
        encoded = qa.encode(video.path, settings.budget, *settings.span)
        answer = qa.ask(encoded, question)
        say(answer.text if answer.text.strip() else NO_WORDS, always=True)
        codes = answer.video.tokens.codes
        evidence = _evidence(qa, answer, question)
        spec = qa.manifest.encoder
    if stored:
        span = (encoded.start_s, encoded.end_s)
        picture = Picture(_title(video), codes, encoded.times_s, *span)
    else:
        clip = clip_from_path(video.path, spec.frames, spec.size, *settings.span, rule=spec.rule)
        if stamp_from_path(video.path) != stamp:
            raise video_fault(video.name, "has changed since it was encoded", "run again")
        picture = _picture(video, clip, codes)
    return replace(picture, question=" ".join(question.split()), evidence=evidence), answer


def _evidence(qa: VideoQA, answer: Answer, question: str) -> Evidence | None:
    """What is marked, told in a line; nothing where none can be looked for."""
    if answer.video.tokens.rows_per_code is None:
        say("no evidence is marked: no row of this bundle's is one code's", always=True)
        return None
    evidence = evidence_for(qa, answer, question)
    if evidence is not None:
        say(evidence_line(evidence), always=True)
    return evidence


def _picture(video: Given, clip: Clip, codes: Codes) -> Picture:
    say_note(video.name, clip.note)
    end_s, aspect = clip.start_s + clip.duration_s, clip.width / clip.height
    times = (clip.times_s, clip.start_s, end_s)
    return Picture(_title(video), codes, *times, clip.frames_thwc, aspect)


def _title(video: Given) -> str:
    return printable(video.name.absolute().name)


def _document(picture: Picture, out: Path, answer: Answer | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "out": str(out),
        "frames": len(picture.times_s),
        "times_s": list(picture.times_s),
        "codes": picture.codes.count,
        "mass": [[round(share, 6) for share in frame] for frame in picture.mass.tolist()],
    }
    if answer is not None:
        document |= {"question": picture.question, "answer": answer.text}
    if picture.evidence is not None:
        document |= evidence_document(picture.evidence)
    return document
