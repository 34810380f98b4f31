"""`vqedge check --backend`: one encoder backend against ONNX Runtime, for the parity report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vqedge.budget import ADAPTIVE
from vqedge.bundle import Bundle, Manifest, rewritten
from vqedge.checkpoint import PARITY
from vqedge.data.seeds import PARITY_SEED
from vqedge.errors import ParityError

if TYPE_CHECKING:
    from vqedge_runtime.encoders import Encoder, Frames

_CLIPS = 12
_REFERENCE = "onnxruntime"


def backend_figures(bundle: Bundle, backend: str) -> tuple[Bundle, dict[str, Any]]:
    """Measure a backend on this machine and write the figures into the bundle's parity report.

    Raises:
        ParityError: its index maps are others; the report says how far.
        BackendUnavailable: it cannot run here.
        BundleError: the bundle cannot be written.
    """
    from vqedge_export.report import MOST_MAPS_DIFFER, with_backend
    from vqedge_runtime.bridge import open_bridge
    from vqedge_runtime.compare import compared
    from vqedge_runtime.encoders import open_encoder

    with ExitStack() as stack:
        opened: list[Encoder] = []
        for name in (_REFERENCE, backend):
            opened.append(open_encoder(name, bundle))
            stack.callback(opened[-1].close)
        bridge = open_bridge(bundle.path_of("bridge"))
        stack.callback(bridge.close)
        figures = compared(opened[0], opened[1], bridge, _clips(bundle.manifest))
    report = with_backend(bundle, backend, asdict(figures))
    changed = rewritten(bundle, {PARITY: report.to_json().encode()})
    if not figures.maps_differ <= MOST_MAPS_DIFFER:
        raise ParityError(
            f"{figures.backend}: maps_differ {figures.maps_differ:.4g}, at most "
            f"{MOST_MAPS_DIFFER:g} allowed; {PARITY} has the figures, use another backend"
        )
    return changed, {backend: asdict(figures)}


def _clips(manifest: Manifest) -> Iterator[tuple[Frames, int]]:
    """Generated clips; the bundle's budgets take turns."""
    from vqedge.data.render import frames_from_scene
    from vqedge.data.world import scene_from_seed

    quantizer, spec = manifest.quantizer, manifest.encoder
    budgets = [quantizer.codes, quantizer.default_budget]
    if quantizer.adaptive_error is not None:
        budgets.append(ADAPTIVE)
    for index in range(_CLIPS):
        scene = scene_from_seed(PARITY_SEED, index)
        yield frames_from_scene(scene, spec.frames, spec.size), budgets[index % len(budgets)]
