"""`vqedge check`: are a bundle's files whole, and what do they compute on this machine?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from vqedge.bundle import Bundle, bundle_or_default, open_bundle
from vqedge.commands.check_figures import (
    Figures,
    backend_figures,
    checkpoint_figures,
    flip_figures,
    require_reportable,
)
from vqedge.commands.export import print_bundle
from vqedge.commands.output import say
from vqedge.errors import (
    BackendUnavailable,
    BundleError,
    CheckpointError,
    ParityError,
    UsageError,
)
from vqedge_runtime.encoders import AUTO, check_backend

Measure = Callable[[Bundle], tuple[Bundle, Figures]]

_QUICK = 64  # questions where nothing is named: about just enough clips to tell a loss


def run_check(
    bundle: Path | None,
    *,
    checkpoint: Path | None = None,
    backend: str | None = None,
    suite: str | None = None,
    videos: Path | None = None,
    limit: int | None = None,
    files_only: bool = False,
    as_json: bool = False,
) -> None:
    """Verify a bundle's files; measure its parity, print it and write it into the bundle.

    Without `checkpoint`, `backend` and `videos` the encoder that `ask` takes here is measured, and
    where it cannot be a line says why.

    Args:
        bundle: the bundle; None for the one that `vqedge ask` would take.
        checkpoint: where it was exported from, to compare with PyTorch.
        backend: of the encoder, to compare with ONNX Runtime in tokens and in answers.
        suite: whose questions are asked through both, "synthetic" by default.
        videos: a folder of clips that the backend is compared on, instead of generated ones; the
            lighter encoders if none is given.
        limit: most clips, and most questions.
        files_only: measure nothing.
        as_json: print one document, also where parity is lost.

    Raises:
        UsageError: a suite or a limit that bounds nothing, or no such backend.
        BundleError: a file is missing or altered, or the report cannot be written.
        ParityError: a figure is out of bounds.
        BackendUnavailable: the backend cannot run here.
    """
    if files_only and any(each is not None for each in (checkpoint, backend, suite, videos, limit)):
        raise UsageError("--files-only: measures nothing; leave out what says how to measure")
    named = not (checkpoint is None and backend is None and videos is None)
    if not named and not files_only:
        backend, limit = AUTO, limit or _QUICK
    if suite is not None and backend is None:
        raise UsageError("--suite asks through a backend; name it with --backend")
    if limit is not None and backend is None and videos is None:
        raise UsageError("--limit bounds --backend and --videos; give one of them")
    if backend is not None:
        check_backend(backend)
    opened = open_bundle(bundle_or_default(bundle))
    say("files are intact")
    figures: Figures = {}
    try:
        if backend is not None:
            require_reportable(opened)
    except (BundleError, CheckpointError) as error:
        if named:
            raise
        return _not_measured(opened, error, as_json)
    try:
        for measure in _measures(checkpoint, backend, suite or "synthetic", videos, limit):
            opened, found = measure(opened)
            figures |= found
    except ParityError as error:
        if as_json:
            print_bundle(open_bundle(opened.root, verify=False), figures | error.figures, as_json)
        raise
    except BackendUnavailable as error:
        if named:
            raise
        return _not_measured(opened, error, as_json)
    print_bundle(opened, figures, as_json)


def _not_measured(opened: Bundle, why: Exception, as_json: bool) -> None:
    say(f"parity is not measured: {why}", always=True)
    print_bundle(opened, {}, as_json)


def _measures(
    checkpoint: Path | None,
    backend: str | None,
    suite: str,
    videos: Path | None,
    limit: int | None,
) -> Iterator[Measure]:
    if checkpoint is not None:
        yield partial(checkpoint_figures, checkpoint=checkpoint)
    if backend is not None:
        yield partial(backend_figures, backend=backend, suite=suite, videos=videos, limit=limit)
    elif videos is not None:
        yield partial(flip_figures, folder=videos, limit=limit)
