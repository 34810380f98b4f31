"""What commands run on, and the session that most of them open."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vqedge.budget import Budget
from vqedge.bundle import bundle_or_default
from vqedge.commands.output import say
from vqedge.cores import check_threads
from vqedge_runtime import VideoQA
from vqedge_runtime.encoders import AUTO, check_backend


@dataclass(frozen=True)
class RunsOn:
    """Where encoder and language model run: see `vqedge ask --help`.

    Raises:
        UsageError: no such backend, or more threads than anybody has use for.
    """

    backend: str = AUTO
    threads: int | None = None
    gpu_layers: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no bundle makes right, before any file is opened."""
        check_backend(self.backend)
        check_threads(self.threads, "--threads")


BEST_HERE = RunsOn()


def open_session(
    bundle: Path | None, runs_on: RunsOn, stored: bool = False, budget: Budget | None = None
) -> VideoQA:
    """Open a bundle, or the one that lies here, and say what runs where.

    See `open_ahead`, which does not wait for the encoder.
    """
    with ExitStack() as stack:
        qa = stack.enter_context(open_ahead(bundle, runs_on, stored, budget))
        say(str(qa.backend_for(stored)))
        stack.pop_all()
    return qa


def open_ahead(
    bundle: Path | None, runs_on: RunsOn, stored: bool = False, budget: Budget | None = None
) -> VideoQA:
    """Open a bundle, or the one that lies here; its encoder goes on loading.

    Args:
        bundle: the bundle.
        runs_on: where its models run.
        stored: the video is a `.vqt`, so that no encoder is needed.
        budget: for a video, checked before anything is encoded.

    Raises:
        ConfigError: the bundle does not take this budget.
        BundleError: there is no bundle, or it is altered.
        BackendUnavailable: a model cannot run here.
    """
    qa = VideoQA.open(
        bundle_or_default(bundle),
        encoder=runs_on.backend,
        threads=runs_on.threads,
        gpu_layers=runs_on.gpu_layers,
        encoder_ahead=not stored,
    )
    with ExitStack() as stack:
        stack.callback(qa.close)
        if not stored:
            qa.checked_budget(budget)
        stack.pop_all()
    return qa
