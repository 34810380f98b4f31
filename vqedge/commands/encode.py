"""`vqedge encode`: videos to `.vqt` files."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import TaskProgressColumn

from vqedge.budget import Budget
from vqedge.bundle import Bundle, bundle_or_default, open_bundle
from vqedge.commands.output import counted, json_result, path_result, say, say_note
from vqedge.commands.pipe import STDIN, given_video, refuse_pipe
from vqedge.commands.session import BEST_HERE, RunsOn
from vqedge.commands.span import check_span
from vqedge.errors import ConfigError, UsageError, VqtError, printable
from vqedge.files import is_special
from vqedge.progress import bar_of
from vqedge.temporary import temporary_folder
from vqedge_runtime.batch import BatchEncoder, Job, Outcome
from vqedge_runtime.budget import checked_budget
from vqedge_runtime.encoders import AUTO, open_encoder, require_backend
from vqedge_runtime.encoders.protocol import Encoder
from vqedge_runtime.video import Span, images_in
from vqedge_runtime.video.faults import video_faults
from vqedge_runtime.vqt import header_for
from vqedge_runtime.vqt.file import SUFFIX

_STDOUT = "-"
_NO_ENCODER = "none (nothing to encode)"
VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".flv", ".gif", ".h264", ".hevc", ".m2ts", ".m4v", ".mkv"),
    *(".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
_NOTHING_IN_IT = (
    f"no videos and no images in it (known endings: {', '.join(VIDEO_SUFFIXES)})",
    "name the files themselves",
)


@dataclass(frozen=True)
class EncodeOptions:
    """How videos are encoded: see `vqedge encode --help`.

    Raises:
        UsageError: a span or length that is none, or a part cut in segments.
    """

    budget: Budget | None = None
    segment_s: float | None = None
    jobs: int = 2
    runs_on: RunsOn = BEST_HERE
    bits: int = 0
    span: Span = (None, None)
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Refuse what no video makes right, before any file is opened."""
        check_span(self.span)
        if self.segment_s is None:
            return
        if self.span != (None, None):
            raise UsageError("--segment: cuts all of a video; leave out --start and --end")
        if not math.isfinite(self.segment_s):
            raise UsageError(f"--segment {self.segment_s}: give seconds, as 10")


def run_encode(
    videos: Sequence[Path],
    out: str | None,
    bundle: Path | None = None,
    *,
    options: EncodeOptions | None = None,
    as_json: bool = False,
) -> None:
    """Write a file a video; the paths go to stdout as they are done, what failed to stderr.

    Args:
        videos: files, folders of them, or `-` for standard input.
        out: a file, or a folder: one that is there or ends in a slash, or for several videos; `-`
            for standard output.
        bundle: whose codes they become.
        options: how they are encoded.
        as_json: print one document instead.

    Raises:
        VqtError: some videos could not be encoded. All others were.
        UsageError: there is no `out`, it is a pipe or a device, or flags that do not go together.
        ConfigError: a flag holds what does not go with these videos or this bundle.
        BackendUnavailable: the encoder cannot run here or on this bundle.
    """
    if out is None:
        raise UsageError("say where to: -o FILE.vqt or -o FOLDER/; or --as text to print words")
    if is_special(Path(out)):
        raise UsageError(f"-o {out}: is a pipe or a device; give a file's name, or -o -")
    settings = options or EncodeOptions()
    _check_flags(settings, videos, out, as_json)
    require_backend(settings.runs_on.backend)
    opened = open_bundle(bundle_or_default(bundle))
    header_for(opened.manifest, 0, bits=settings.bits)  # that it can be, before any work
    budget = checked_budget(opened.manifest.quantizer, settings.budget)
    with ExitStack() as stack:
        jobs = stack.enter_context(_jobs(videos, out))
        if len(jobs) > 1 and settings.span != (None, None):
            raise ConfigError(f"{videos[0]}: a folder, and a part is of one video; give one of it")
        batch = BatchEncoder(
            partial(_opened_encoder, stack, opened, settings.runs_on),
            opened.manifest,
            budget,
            settings.segment_s,
            workers=settings.jobs,
            bits=settings.bits,
            span=settings.span,
            overwrite=settings.overwrite,
        )
        outcomes = _run(batch, jobs, quiet=as_json or out == _STDOUT)
        if out == _STDOUT and not outcomes[0].error:
            sys.stdout.buffer.write(jobs[0].out.read_bytes())
    outcomes = [_as_given(outcome, videos, out) for outcome in outcomes]
    if as_json:
        files = [_document(outcome) for outcome in outcomes]
        encoder = batch.opened.name if batch.opened else _NO_ENCODER
        json_result({"files": files, "backend": {"encoder": encoder}})
    _report(outcomes, named=settings.runs_on.backend != AUTO)


def _opened_encoder(stack: ExitStack, bundle: Bundle, runs_on: RunsOn) -> Encoder:
    """The encoder, told on stderr, until the stack is left."""
    encoder = open_encoder(runs_on.backend, bundle, runs_on.threads)
    stack.callback(encoder.close)
    say(f"encoder: {encoder.name}")
    return encoder


def _check_flags(settings: EncodeOptions, videos: Sequence[Path], out: str, as_json: bool) -> None:
    if settings.span != (None, None) and len(videos) > 1:
        raise UsageError("--start and --end are for one video; give it alone")
    if out == _STDOUT and (as_json or sys.stdout.isatty()):
        raise UsageError("-o -: the file goes to a pipe, without --json; or give -o FILE.vqt")
    if len(videos) > 1 and (STDIN in videos or out == _STDOUT):
        raise UsageError("-: a pipe is for one video; give it alone")
    if STDIN in videos and _ends_as_folder(out):
        raise UsageError(f"-o {out}: what comes through a pipe has no name; give the file's")


def _run(batch: BatchEncoder, jobs: Sequence[Job], quiet: bool) -> list[Outcome]:
    """Encode all with a bar on stderr."""
    outcomes: list[Outcome] = []
    with bar_of(TaskProgressColumn(), Console(stderr=True)) as bar:
        task = bar.add_task("encoding", total=len(jobs))

        def show(job: Job, share: float) -> None:
            bar.update(task, completed=len(outcomes) + share, description=printable(job.video.name))

        batch.on_progress = show
        with closing(batch.run(jobs)) as running:
            for outcome in running:
                outcomes.append(outcome)
                if not outcome.error and not quiet:
                    path_result(outcome.job.out)
    return outcomes


def _as_given(outcome: Outcome, videos: Sequence[Path], out: str) -> Outcome:
    """An outcome that names pipes, not the temporary files in their place."""
    job = outcome.job
    given = Job(STDIN if STDIN in videos else job.video, Path(out) if out == _STDOUT else job.out)
    names = {str(job.video): str(given.video), str(job.out): str(given.out)}
    error, note = outcome.error, outcome.note
    for name, own in names.items():
        error, note = error.replace(name, own), note.replace(name, own)
    return replace(outcome, job=given, error=error, note=note)


def _report(outcomes: Sequence[Outcome], named: bool) -> None:
    """What was done, on stderr; what failed, last. A file does not say which encoder made it."""
    for outcome in outcomes:
        say_note(outcome.job.video, outcome.note)
    made = [outcome for outcome in outcomes if not (outcome.error or outcome.skipped)]
    skipped = sum(outcome.skipped for outcome in outcomes)
    total_bytes = sum(outcome.size_bytes for outcome in made)
    segments = sum(outcome.segments for outcome in made)
    told = f"{len(made)} encoded, {counted(segments, 'segment')}, {counted(total_bytes, 'byte')}"
    if skipped:
        told += f"; {skipped} were up to date"
    if skipped and named:
        told += ", by whichever encoder: --overwrite encodes them anew"
    say(told)
    failed = [outcome for outcome in outcomes if outcome.error]
    if len(failed) == len(outcomes) == 1:
        raise VqtError(failed[0].error)
    for outcome in failed:
        say(f"failed: {outcome.error}", always=True)
    if failed:
        raise VqtError(
            f"{len(failed)} of {len(outcomes)} videos could not be encoded; "
            "they are listed above, all others are done"
        )


def _document(outcome: Outcome) -> dict[str, str | int | bool]:
    return {
        "video": str(outcome.job.video),
        "out": str(outcome.job.out),
        "bytes": outcome.size_bytes,
        "segments": outcome.segments,
        "skipped": outcome.skipped,
        "note": outcome.note,
        "error": outcome.error,
    }


@contextmanager
def _jobs(videos: Sequence[Path], out: str) -> Iterator[list[Job]]:
    """One job a video; what comes or goes through a pipe lies in a temporary file meanwhile."""
    if STDIN not in videos and out != _STDOUT:
        yield _jobs_of(videos, out)
        return
    if _holds_videos(videos[0]):
        raise ConfigError(f"{videos[0]}: a folder; -o - writes one video: name one file in it")
    if Path(out).is_dir():
        raise ConfigError(f"-o {out}: a folder, and a pipe's video has no name; give the file's")
    with given_video(videos[0]) as given, temporary_folder() as folder:
        place = folder / "stdout" if out == _STDOUT else Path(out)
        yield [Job(given.path, with_suffix(place))]


def _jobs_of(videos: Sequence[Path], out: str) -> list[Job]:
    """One job a video, none of them through a pipe."""
    for video in videos:
        refuse_pipe(video)
    place = Path(out)
    found = list(dict.fromkeys(pair for video in videos for pair in _found(video)))
    if len(found) == 1 and not _means_folder(out) and not _holds_videos(videos[0]):
        return [Job(found[0][0], with_suffix(place))]
    if place.suffix.lower() == SUFFIX or place.is_file():
        raise ConfigError(f"-o {out}: {len(found)} videos go to a folder; give its name")
    return _jobs_in(place, found)


def _jobs_in(out: Path, found: Sequence[tuple[Path, Path]]) -> list[Job]:
    """A file a video in a folder, under the video's whole name: two may differ in its end only."""
    jobs = {out / f"{below}{SUFFIX}": video for video, below in reversed(found)}
    if len(jobs) < len(found):
        names = [below for _, below in found]
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"two videos are called {twice}; encode them into different folders")
    return [Job(video, path) for path, video in reversed(jobs.items())]


def _found(video: Path) -> list[tuple[Path, Path]]:
    """The videos that a path means, with their places below it; a folder of frames is one.

    Raises:
        VideoError: a folder that holds neither.
    """
    if not _holds_videos(video):
        if video.is_dir():
            with video_faults(video):
                images_in(video, _NOTHING_IN_IT)
        return [(video, Path(video.absolute().name))]
    files = sorted(path for path in video.rglob("*") if _is_video(path))
    return [(path, path.relative_to(video)) for path in files]


def _holds_videos(path: Path) -> bool:
    return path.is_dir() and any(_is_video(item) for item in path.rglob("*"))


def _is_video(path: Path) -> bool:
    """By its name; a link that leads nowhere is one that fails."""
    named = path.suffix.lower() in VIDEO_SUFFIXES and path.name[0] != "."
    return named and (os.path.isfile(path) or not os.path.exists(path))


def _means_folder(out: str) -> bool:
    return _ends_as_folder(out) or Path(out).is_dir()


def _ends_as_folder(out: str) -> bool:
    return out.endswith(("/", os.sep))


def with_suffix(out: Path) -> Path:
    """A name that ends in `.vqt`: no video is written over."""
    return out if out.suffix.lower() == SUFFIX else out.with_name(out.name + SUFFIX)
