"""What `vqedge check` measures on this machine: each into the bundle's parity report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqedge.budget import ADAPTIVE
from vqedge.bundle import Bundle, Manifest, rewritten
from vqedge.checkpoint import PARITY
from vqedge.commands.frames import frames_in_folder, require_frames
from vqedge.commands.output import say
from vqedge.data.seeds import PARITY_SEED
from vqedge.errors import BackendUnavailable, BundleError, ParityError

if TYPE_CHECKING:
    from vqedge_export.report import AnswerParity, ParityReport
    from vqedge_runtime import VideoQA
    from vqedge_runtime.compare import BackendFigures
    from vqedge_runtime.encoders.protocol import Frames

Figures = dict[str, Any]

_CLIPS = 12
_QUESTIONS = 200
_REFERENCE = "onnxruntime"


def checkpoint_figures(bundle: Bundle, checkpoint: Path) -> tuple[Bundle, Figures]:
    """Measure a bundle against the checkpoint it came from.

    Raises:
        ParityError: a figure is outside its tolerance; the report has them all.
        CheckpointError: the checkpoint is incomplete.
        BundleError: the bundle cannot be written.
    """
    from vqedge_export.pipeline import measured_report
    from vqedge_export.report import TOLERANCES
    from vqedge_runtime.llm import open_llama_cpp

    report = measured_report(checkpoint, bundle, open_llama_cpp)
    changed = _reported(bundle, report)
    figures = report.model_dump(mode="json", exclude={"backends", "flips"})
    if faults := report.faults(TOLERANCES[report.quantization]):
        raise ParityError(
            f"{bundle.root}: does not compute what the checkpoint computes: {'; '.join(faults)}; "
            f"{PARITY} has the figures, export it again",
            figures,
        )
    return changed, figures


def backend_figures(
    bundle: Bundle, backend: str, *, suite: str, videos: Path | None, limit: int | None
) -> tuple[Bundle, Figures]:
    """Measure an encoder backend against ONNX Runtime, in tokens and in answers; say what it is.

    Args:
        bundle: holds the encoders.
        backend: what is measured.
        suite: whose questions are asked.
        videos: a folder of clips; generated ones if not given.
        limit: most clips, and most questions.

    Raises:
        ParityError: its index maps or tokens are others, or it gets fewer answers right; the report
            says how far.
        BackendUnavailable: it cannot run here.
        UsageError: no such backend or suite.
        ConfigError: the folder has no video, or the suite names a `.vqt`.
        DatasetError: the suite cannot be read.
        BundleError: the bundle cannot be written.
        CheckpointError: its report is of another version.
    """
    from vqedge.commands.check_answers import answers_compared
    from vqedge.data.suites import suite_items
    from vqedge_export.report import BackendParity, report_of
    from vqedge_runtime.compare import compared
    from vqedge_runtime.encoders.protocol import made_question

    items = suite_items(suite, limit or _QUESTIONS, videos)
    require_frames(items, f"--backend {backend}", "encode")
    known = report_of(bundle)
    with _sessions(bundle, backend) as (reference, other):
        _require_reference(reference)
        clips, text = _clips(bundle.manifest, videos, limit), made_question(bundle.manifest)
        found = compared(reference.encoder, other.encoder, reference.bridge, clips, text)
        say(tokens_told(found, "videos" if videos else "generated clips"))
        answers = answers_compared(reference, other, suite, items)
        say(answers_told(answers))
    row = BackendParity(
        **asdict(found),
        clips_of="videos" if videos else "generated",
        engine=engine_key(bundle, backend),
        answers=answers,
    )
    backends = known.backends | {backend: row}
    changed = _reported(bundle, known.model_copy(update={"backends": backends}))
    figures = {"backends": {backend: row.model_dump(mode="json")}}
    if faults := _faults(found, answers):
        raise ParityError(
            f"{row.backend}: {'; '.join(faults)}; {PARITY} has the figures, use another backend",
            figures,
        )
    return changed, figures


def require_reportable(bundle: Bundle) -> None:
    """See that a report could be kept, before what takes minutes.

    Raises:
        BundleError: the bundle cannot be written.
        CheckpointError: its report is of another version.
    """
    from vqedge_export.report import report_from_file

    report_from_file(bundle.root / PARITY)
    beside = bundle.root.resolve().parent
    if not os.access(beside, os.W_OK):
        raise BundleError(
            f"{bundle.root}: no report can be written, as {beside} takes no files; copy the bundle "
            "to where it can be changed"
        )


def _require_reference(session: VideoQA) -> None:
    try:
        session.encoder  # noqa: B018 - it is opened
    except BackendUnavailable as error:
        why = str(error).partition("; ")[0]  # what to do there is about asking
        raise BackendUnavailable(
            f"{why}; so there is nothing to compare with: --checkpoint measures without it"
        ) from error


@contextmanager
def _sessions(bundle: Bundle, backend: str) -> Iterator[tuple[VideoQA, VideoQA]]:
    """The reference and a backend, with one bridge and one language model."""
    from vqedge_runtime import VideoQA
    from vqedge_runtime.encoders import open_encoder, require_backend

    require_backend(backend)
    opens = partial(open_encoder, backend, bundle)
    with (
        VideoQA.open(bundle.root, encoder=_REFERENCE) as qa,
        VideoQA(opens, qa.bridge, qa.llm, bundle.manifest) as other,
    ):
        yield qa, other


def tokens_told(found: BackendFigures, what: str) -> str:
    """A line on what a backend makes of `what`, as `generated clips`."""
    cosine = found.token_cosine_patches
    cosine = found.token_cosine_mean if cosine is None else cosine
    ids, safe = f"{found.ids_differ:.2%} of ids differ", f"{found.safe_ids_differ:.2%}"
    # where no clip is the same k-means started elsewhere, and numbers alone tell nothing
    ids = f"{ids}, {safe} at a safe margin; " if found.clips_same else ""
    return (
        f"{found.backend} against {found.reference} on {found.clips} {what}: "
        f"{found.clips_same} the same; {ids}{found.maps_differ:.2%} of patches on another part of "
        f"the map, codes matched; token cosine {cosine:.4f}"
    )


def answers_told(answers: AnswerParity) -> str:
    """A line on what it changes of the answers."""
    told = (
        f"{answers.same} of {answers.questions} answers to {answers.suite} are the same; "
        f"{answers.accuracy:.1%} right, {answers.accuracy_reference:.1%} of the reference"
    )
    if answers.too_few:
        clips = "1 clip is" if answers.clips == 1 else f"{answers.clips} clips are"
        return f"{told}; {clips} too few to tell a loss: raise --limit"
    if answers.accuracy < answers.accuracy_reference:
        return f"{told}, a loss that has a chance of {answers.chance_of_loss:.2g} among equals"
    return told


def _faults(found: BackendFigures, answers: AnswerParity) -> list[str]:
    """What a backend gets too wrong; maps of grids and windows are the same in any case."""
    from vqedge_export.report import (
        LEAST_CHANCE_OF_LOSS,
        LEAST_TOKEN_COSINE,
        MOST_MAPS_DIFFER,
    )

    faults = []
    if not found.maps_differ <= MOST_MAPS_DIFFER:
        faults.append(f"maps_differ {found.maps_differ:.4g}, at most {MOST_MAPS_DIFFER:g} allowed")
    cosine = found.token_cosine_patches
    if cosine is not None and not cosine >= LEAST_TOKEN_COSINE:
        faults.append(f"token_cosine_patches {cosine:.4g}, at least {LEAST_TOKEN_COSINE:g} wanted")
    if not answers.chance_of_loss >= LEAST_CHANCE_OF_LOSS:
        faults.append(
            f"{answers.accuracy:.1%} of the answers to {answers.suite} right instead of "
            f"{answers.accuracy_reference:.1%}, which has a chance of "
            f"{answers.chance_of_loss:.2g} among equals"
        )
    return faults


def engine_key(bundle: Bundle, backend: str) -> str | None:
    """Which engine of a bundle a backend runs here; None if it is no engine's, or `auto`."""
    from vqedge_runtime.encoders import ENCODERS

    file = ENCODERS[backend].file(bundle) if backend in ENCODERS else None
    return next((item.key for item in bundle.manifest.engines if item.file == file), None)


def flip_figures(bundle: Bundle, folder: Path, limit: int | None) -> tuple[Bundle, Figures]:
    """Measure the lighter encoders on a folder of clips, see `vqedge.commands.check_flips`.

    Raises:
        ConfigError: the folder has no video, or there is nothing to compare.
        BundleError: the bundle cannot be written.
    """
    from vqedge.commands.check_flips import flips_of
    from vqedge_export.report import report_of

    known = report_of(bundle)
    found = flips_of(bundle, folder, limit)
    changed = _reported(bundle, known.model_copy(update={"flips": found}))
    return changed, {"flips": {name: row.model_dump() for name, row in found.items()}}


def _reported(bundle: Bundle, report: ParityReport) -> Bundle:
    """The bundle with this report in it."""
    return rewritten(bundle, {PARITY: report.to_json().encode()})


def _clips(
    manifest: Manifest, videos: Path | None, limit: int | None
) -> Iterator[tuple[Frames, int]]:
    """Clips of a folder, or generated ones; the bundle's budgets take turns."""
    quantizer = manifest.quantizer
    budgets = [quantizer.codes, quantizer.default_budget]
    if quantizer.adaptive_error is not None:
        budgets.append(ADAPTIVE)
    clips = _generated(manifest, limit)
    if videos is not None:
        clips = frames_in_folder(videos, manifest.encoder, limit)
    return zip(clips, cycle(budgets))


def _generated(manifest: Manifest, limit: int | None) -> Iterator[Frames]:
    from vqedge.data.generated import generated_frames

    for index in range(min(limit or _CLIPS, _CLIPS)):
        yield generated_frames(PARITY_SEED, index, manifest.encoder.frames, manifest.encoder.size)
