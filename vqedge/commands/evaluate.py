"""`vqedge eval`: a suite's questions through a bundle or a checkpoint."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vqedge.commands.output import bundle_or_default, json_result, result, say
from vqedge.data.suites import Item, Scene, suite_items
from vqedge.errors import ConfigError
from vqedge.evaluate import Answerer, EvalReport, Reply, evaluate
from vqedge_runtime import Video, VideoQA


class BundleAnswerer:
    """Evaluates an exported bundle: what users will get.

    Args:
        qa: the open session.
        budget: most tokens a clip, the bundle's default if not given.
    """

    def __init__(self, qa: VideoQA, budget: int | None = None) -> None:
        self.qa, self.budget = qa, budget
        self._clip: Scene | Path | None = None
        self._video: Video | None = None

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

    def reply(self, item: Item) -> Reply:
        """Answer one question; a clip is encoded once."""
        if self._video is None or item.clip != self._clip:
            self._clip, self._video = item.clip, self._encoded(item.clip)
        answer = self.qa.ask(self._video, item.question, choices=item.choices)
        return Reply(answer.text, answer.tokens)

    def _encoded(self, clip: Scene | Path) -> Video:
        if isinstance(clip, Scene):
            frames = clip.frames(self.frames, self.qa.manifest.encoder.size)
            return self.qa.encode_frames(frames, self.budget)
        return self.qa.encode(clip, self.budget)


def run_eval(
    suite: str,
    bundle: Path | None = None,
    checkpoint: Path | None = None,
    *,
    limit: int | None = None,
    budget: int | None = None,
    videos: Path | None = None,
    threads: int | None = None,
    show: bool = False,
    as_json: bool = False,
) -> None:
    """Evaluate and print accuracy per kind with its interval."""
    if suite == "synthetic" and limit is None:
        limit = 300
    items = suite_items(suite, limit, videos)
    with ExitStack() as stack:
        answerer = _answerer(stack, bundle, checkpoint, budget, threads)
        report = evaluate(answerer, suite, items, _show if show else lambda *_: None)
        report = replace(report, extra={"backend": answerer.backend})
    if as_json:
        json_result(report.to_dict())
    else:
        _print_table(report)


def _answerer(
    stack: ExitStack,
    bundle: Path | None,
    checkpoint: Path | None,
    budget: int | None,
    threads: int | None,
) -> Answerer:
    if checkpoint is not None:
        if bundle is not None:
            raise ConfigError("give a bundle (-m) or --checkpoint, not both")
        from vqedge.model.answer import CheckpointAnswerer
        from vqedge.model.checkpoint import open_checkpoint

        return CheckpointAnswerer(open_checkpoint(checkpoint), budget)
    qa = stack.enter_context(VideoQA.open(bundle_or_default(bundle), threads=threads))
    say(str(qa.backend))
    qa.checked_budget(budget)
    return BundleAnswerer(qa, budget)


def _show(item: Item, reply: Reply, hit: bool) -> None:
    say(f"{'ok ' if hit else '-- '} {item.question}  {reply.text!r} (want {item.answer!r})")


def _print_table(report: EvalReport) -> None:
    document: dict[str, Any] = report.to_dict()
    low, high = document["interval"]
    result(f"{report.suite}: {document['accuracy']:.1%} of {document['n']} [{low:.1%}, {high:.1%}]")
    for kind, row in document["by_kind"].items():
        result(f"  {kind:<12} {row['accuracy']:6.1%}  of {row['n']}")
    result(
        f"tokens a clip {document['tokens_mean']:.1f} of {document['tokens_before']} "
        f"({document['frames']} frames); TokDense {document['tokdense']:.3f} (percent per token)"
    )
