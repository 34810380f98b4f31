"""What `vqedge check` measures on this machine: each into the bundle's parity report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vqedge.budget import ADAPTIVE
from vqedge.bundle import Bundle, Manifest, rewritten
from vqedge.checkpoint import PARITY
from vqedge.data.seeds import PARITY_SEED
from vqedge.errors import ParityError

if TYPE_CHECKING:
    from vqedge_export.report import ParityReport
    from vqedge_runtime.compare import BackendFigures
    from vqedge_runtime.encoders import Encoder, Frames

Figures = dict[str, Any]

_CLIPS = 12
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


def backend_figures(bundle: Bundle, backend: str) -> tuple[Bundle, Figures]:
    """Measure an encoder backend against ONNX Runtime.

    Raises:
        ParityError: its index maps are others, or where those cannot differ its tokens; the report
            says how far.
        BackendUnavailable: it cannot run here.
        BundleError: the bundle cannot be written.
    """
    from vqedge_export.report import BackendParity, report_of
    from vqedge_runtime.bridge import open_bridge
    from vqedge_runtime.compare import compared
    from vqedge_runtime.encoders import made_question, open_encoder

    with ExitStack() as stack:
        opened: list[Encoder] = []
        for name in (_REFERENCE, backend):
            opened.append(open_encoder(name, bundle))
            stack.callback(opened[-1].close)
        bridge = open_bridge(bundle.path_of("bridge"))
        stack.callback(bridge.close)
        text = made_question(bundle.manifest)
        found = compared(opened[0], opened[1], bridge, _clips(bundle.manifest), text)
    known, row = report_of(bundle), asdict(found)
    if (key := engine_key(bundle, backend)) is not None:
        row["engine"] = key
    backends = known.backends | {backend: BackendParity.model_validate(row)}
    changed = _reported(bundle, known.model_copy(update={"backends": backends}))
    figures = {"backends": {backend: row}}
    if fault := _fault(found, text is not None):
        raise ParityError(
            f"{found.backend}: {fault}; {PARITY} has the figures, use another backend", figures
        )
    return changed, figures


def _fault(found: BackendFigures, per_question: bool) -> str:
    """What a backend gets too wrong, if anything; maps of windows are the same in any case."""
    from vqedge_export.report import LEAST_TOKEN_COSINE, MOST_MAPS_DIFFER

    if not found.maps_differ <= MOST_MAPS_DIFFER:
        return f"maps_differ {found.maps_differ:.4g}, at most {MOST_MAPS_DIFFER:g} allowed"
    if per_question and not found.token_cosine_mean >= LEAST_TOKEN_COSINE:
        return (
            f"token_cosine_mean {found.token_cosine_mean:.4g}, at least "
            f"{LEAST_TOKEN_COSINE:g} wanted"
        )
    return ""


def engine_key(bundle: Bundle, backend: str) -> str | None:
    """Which engine of a bundle a backend runs here; None if it is no engine's, or `auto`."""
    from vqedge_runtime.encoders import ENCODERS

    file = ENCODERS[backend].file(bundle) if backend in ENCODERS else None
    return next((item.key for item in bundle.manifest.engines if item.file == file), None)


def flip_figures(bundle: Bundle, folder: Path, limit: int | None) -> tuple[Bundle, Figures]:
    """Measure the lighter encoders on a folder of clips, see `vqedge.commands.flips`.

    Raises:
        ConfigError: the folder has no video, or there is nothing to compare.
        BundleError: the bundle cannot be written.
    """
    from vqedge.commands.flips import flips_of
    from vqedge_export.report import report_of

    found = flips_of(bundle, folder, limit)
    changed = _reported(bundle, report_of(bundle).model_copy(update={"flips": found}))
    return changed, {"flips": {name: row.model_dump() for name, row in found.items()}}


def _reported(bundle: Bundle, report: ParityReport) -> Bundle:
    """The bundle with this report in it."""
    return rewritten(bundle, {PARITY: report.to_json().encode()})


def _clips(manifest: Manifest) -> Iterator[tuple[Frames, int]]:
    """Generated clips; the bundle's budgets take turns."""
    from vqedge.data.generated import generated_frames

    quantizer, spec = manifest.quantizer, manifest.encoder
    budgets = [quantizer.codes, quantizer.default_budget]
    if quantizer.adaptive_error is not None:
        budgets.append(ADAPTIVE)
    for index in range(_CLIPS):
        frames = generated_frames(PARITY_SEED, index, spec.frames, spec.size)
        yield frames, budgets[index % len(budgets)]
