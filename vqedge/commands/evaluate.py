"""`vqedge eval`: a suite's questions through a bundle or a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vqedge.budget import Budget
from vqedge.bundle import bundle_or_default
from vqedge.checkpoint import model_config_of, one_save, steps_of
from vqedge.commands.baselines import (
    Subject,
    baselines_of,
    opened_checkpoint,
    print_comparison,
    report_of,
)
from vqedge.commands.frames import reader_of, require_all_read, require_frames
from vqedge.commands.measured import machine, model_of_bundle, model_of_checkpoint, versions
from vqedge.commands.output import json_result, result, say
from vqedge.commands.session import BEST_HERE, RunsOn, open_session
from vqedge.data.jsonl import VideoFile
from vqedge.data.suites import Item, frames_of, missing_videos, suite_items, suite_version
from vqedge.errors import UsageError, VqedgeError, printable
from vqedge.evaluate import Answerer, EvalReport, PerturbedAnswerer, Reply
from vqedge.progress import progress
from vqedge_runtime import Video, VideoQA
from vqedge_runtime.vqt import is_vqt

_BASELINES = Path("runs/baselines")


class BundleAnswerer:
    """Evaluates an exported bundle: what users will get.

    Args:
        qa: the open session.
        budget: most tokens a clip, the bundle's default if not given.
        shuffled: show the frames in a random order.
    """

    def __init__(self, qa: VideoQA, budget: Budget | None = None, shuffled: bool = False) -> None:
        self.qa, self.budget, self.shuffled = qa, budget, shuffled

    @property
    def backend(self) -> dict[str, str]:
        """What runs where."""
        return asdict(self.qa.backend)

    @property
    def tokens_before(self) -> int:
        """Patches of a clip."""
        return self.frames * self.qa.manifest.encoder.grid**2

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.qa.manifest.encoder.frames

    def perturbed(self) -> dict[str, Answerer]:
        """The same models with less to see; they cannot read a question without any video."""
        return {"shuffled frames": BundleAnswerer(self.qa, self.budget, shuffled=True)}

    def replies(self, items: Sequence[Item]) -> Iterator[Reply]:
        """Answer questions about one clip, which is encoded once; one by one, as `ask` does."""
        video = self._encoded(items[0])
        for item in items:
            choices = tuple(dict.fromkeys(map(str.strip, item.choices)))  # one may be there twice
            answer = self.qa.ask(video, item.question, choices=choices or None)
            yield Reply(answer.text, answer.tokens)

    def _encoded(self, item: Item) -> Video:
        clip = item.clip
        if isinstance(clip, VideoFile) and is_vqt(clip.path) and not self.shuffled:
            return self.qa.encode(clip.path, self.budget, clip.start_s, clip.end_s)
        spec = self.qa.manifest.encoder
        frames = frames_of(clip, spec.frames, spec.size, reader_of(spec), self.shuffled)
        return self.qa.encode_frames(frames, self.budget)


@dataclass(frozen=True)
class EvalOptions:
    """What is evaluated beside a bundle, and how: see `vqedge eval --help`.

    Attributes:
        checkpoint: evaluated in PyTorch, in place of a bundle.
        limit: most questions.
        budget: most tokens a clip.
        videos: folder of the videos that the suite names.
        baselines: compare it with others.
        baselines_dir: folder of the checkpoints to compare with, in place of the usual one.
        reducers_dir: of no use here; given by mistake.
        runs_on: where a bundle's models run.
        show: print every answer on stderr.

    Raises:
        UsageError: a checkpoint, and a backend for it; or a folder that nothing looks into.
    """

    checkpoint: Path | None = None
    limit: int | None = None
    budget: Budget | None = None
    videos: Path | None = None
    baselines: bool = False
    baselines_dir: Path | None = None
    reducers_dir: Path | None = None
    runs_on: RunsOn = BEST_HERE
    show: bool = False

    def __post_init__(self) -> None:
        """Refuse what no suite makes right, before any file is opened."""
        if self.reducers_dir is not None:
            raise UsageError("--reducers-dir: is where --reducers looks; add --reducers NAMES")
        if self.baselines_dir is not None and not self.baselines:
            raise UsageError("--baselines-dir: is where --baselines looks; add --baselines")
        if self.checkpoint is not None and self.runs_on != BEST_HERE:
            raise UsageError(
                "--checkpoint runs in PyTorch: leave out --backend, --threads and --gpu-layers"
            )


def run_eval(
    suite: str,
    bundle: Path | None = None,
    *,
    options: EvalOptions | None = None,
    as_json: bool = False,
) -> None:
    """Evaluate and print accuracy per kind with its interval.

    Raises:
        UsageError: a bundle and a checkpoint, or no such suite.
        CheckpointError: the checkpoint is incomplete, or was saved anew while it was opened.
        ConfigError: the suite names a `.vqt`, and what is asked for wants frames.
        VideoError: clips, questions or baselines failed; all others were asked, and the report is
            printed.
    """
    wanted = options or EvalOptions()
    if bundle is not None and wanted.checkpoint is not None:
        raise UsageError("give a bundle (-m) or --checkpoint, not both")
    items = suite_items(suite, wanted.limit, wanted.videos)
    if wanted.baselines:
        require_frames(items, "--baselines", "shuffle")
    if wanted.budget is not None and wanted.checkpoint is None:
        require_frames(items, "--budget", "encode")
    with ExitStack() as stack:
        with one_save(wanted.checkpoint) if wanted.checkpoint else nullcontext():
            answerer = _answerer(stack, bundle, wanted)
            told = _measured(answerer, suite, bundle, wanted) if as_json else {}
            steps = steps_of(wanted.checkpoint) if wanted.checkpoint else None
        others = _others(answerer, wanted)
        report = _asked(Subject(suite, lambda: answerer, steps), suite, items, wanted.show)
        for other in others:
            try:
                report.baselines[other.name] = _asked(other, suite, items, wanted.show)
            except VqedgeError as error:  # the report of all others is not lost
                report.failed.append(f"{other.name}: {error}")
    if as_json:
        json_result(report.to_dict() | told)
    else:
        _print_table(report)
    require_all_read(_failures(report))


def _answerer(stack: ExitStack, bundle: Path | None, wanted: EvalOptions) -> PerturbedAnswerer:
    if wanted.checkpoint is not None:
        return opened_checkpoint(wanted.checkpoint, wanted.budget)
    qa = stack.enter_context(open_session(bundle, wanted.runs_on, budget=wanted.budget))
    return BundleAnswerer(qa, wanted.budget)


def _measured(
    answerer: PerturbedAnswerer, suite: str, bundle: Path | None, wanted: EvalOptions
) -> dict[str, Any]:
    """What is asked of which model at which budget, and on what; files may change while it is."""
    if isinstance(answerer, BundleAnswerer):
        manifest = answerer.qa.manifest
        model = model_of_bundle(bundle_or_default(bundle), manifest)
        default = manifest.quantizer.default_budget
    else:
        assert wanted.checkpoint is not None
        model = model_of_checkpoint(wanted.checkpoint)
        default = model_config_of(wanted.checkpoint).quantizer.default_budget
    return {
        "suite_version": suite_version(suite),
        "limit": wanted.limit,
        "missing": missing_videos(suite, wanted.videos),
        "model": model,
        "budget": default if wanted.budget is None else wanted.budget,
        "machine": machine(),
        "versions": versions(),
    }


def _others(answerer: PerturbedAnswerer, wanted: EvalOptions) -> Sequence[Subject]:
    """What the answers are compared with, if that is wanted."""
    if not wanted.baselines:
        return ()
    folder = wanted.baselines_dir or _BASELINES
    return baselines_of(answerer, wanted.checkpoint, folder, wanted.budget)


def _asked(subject: Subject, suite: str, items: Sequence[Item], show: bool) -> EvalReport:
    """The suite through one of them, with a bar, or every answer, on stderr."""
    if show:
        say(subject.name, always=True)
        return report_of(subject, suite, items, _show)
    with progress(subject.name, len(items)) as advance:
        return report_of(subject, suite, items, lambda *_: advance(""))


def _failures(report: EvalReport) -> list[str]:
    """Its own, and what failed in a baseline alone."""
    alone = [
        f"{name}: {line}"
        for name, baseline in report.baselines.items()
        for line in baseline.failed
        if line not in report.failed
    ]
    return report.failed + alone


def _show(item: Item, reply: Reply, hit: bool) -> None:
    mark, question = "ok " if hit else "-- ", printable(item.question)
    say(f"{mark} {question}  {reply.text!r} (want {item.answer!r})", always=True)


def _print_table(report: EvalReport) -> None:
    document: dict[str, Any] = report.to_dict()
    low, high = document["interval"]
    result(
        f"{printable(report.suite)}: {document['accuracy']:.1%} of {document['n']} "
        f"[{low:.1%}, {high:.1%}] (answered blindly: {document['prior']:.1%})"
    )
    groups = {f"{group}*": row for group, row in document.get("by_group", {}).items()}
    for kind, row in (document["by_kind"] | groups).items():
        low, high = row["interval"]
        share = f"{row['accuracy']:6.1%}  of {row['n']} [{low:.1%}, {high:.1%}]"
        result(f"  {printable(kind):<12} {share}")
    if "facts" in document:
        facts, described = document["facts"], document["described"]
        result(
            f"  {facts['accuracy']:.1%} of the {facts['n']} things told as they are; "
            f"{described['accuracy']:.1%} of the clips whole, in any order"
        )
    result(
        f"tokens a clip {document['tokens_mean']:.1f} of {document['tokens_before']} "
        f"({document['frames']} frames); TokDense {document['tokdense']:.3f} (percent per token)"
    )
    if report.baselines:
        print_comparison({"itself": report, **report.baselines})
