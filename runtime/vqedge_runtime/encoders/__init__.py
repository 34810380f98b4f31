"""Encoders: frames to codes. One object per backend behind a small Protocol, picked by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vqedge.bundle import Bundle, Manifest
from vqedge.bundle.shapes import may_be
from vqedge.cores import check_threads
from vqedge.engines import MODULES, Flavour
from vqedge.errors import BackendUnavailable, BundleError, UsageError
from vqedge.nearest_codebook import OP_NAME
from vqedge.packages import install_line
from vqedge_runtime.tokens import Codes

AUTO = "auto"  # not a backend: the fastest one, see `vqedge_runtime.encoders.auto`

Frames = npt.NDArray[np.uint8]
Text = npt.NDArray[np.float32]
"""A question, `[d_llm]`, of a bundle whose tokens follow it."""


class Encoder(Protocol):
    """Turns frames into codes."""

    @property
    def name(self) -> str:
        """What runs where, as "onnxruntime CPU fp32"."""

    def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
        """Encode uint8 RGB `[T, size, size, 3]` with at most `budget` codes, or `ADAPTIVE`.

        `text` is the question, of a bundle whose tokens follow it.
        """

    def close(self) -> None:
        """Free everything; twice is fine."""


@dataclass(frozen=True)
class Missing:
    """Why a backend cannot run here, and what would change that; "" where nothing does."""

    why: str
    fix: str


def _encoder_file(bundle: Bundle) -> str:
    return bundle.manifest.encoder.file


@dataclass(frozen=True)
class EncoderBackend:
    """A way to run a bundle's encoder.

    Attributes:
        open: opens it on a verified bundle, with so many threads if it runs on the CPU.
        missing: tells, without loading a model, whether it can run here.
        file: the file of a bundle that it would run here, as the manifest lists it; a
            BackendUnavailable says why there is none.
        auto: `auto` may take it: it loads in about a second and computes what the exporter checked.
        slow_start: its first clip compiles or loads kernels and says nothing of the second.
    """

    open: Callable[[Bundle, int | None], Encoder]
    missing: Callable[[], Missing | None]
    file: Callable[[Bundle], str] = _encoder_file
    auto: bool = True
    slow_start: bool = False


def _fitting(
    encoder: Encoder, clip_shape: Sequence[int | str], bundle: Bundle, path: Path
) -> Encoder:
    """An encoder that takes the frames that the manifest says; a video is decoded into those.

    Raises:
        BundleError: it takes others.
    """
    spec = bundle.manifest.encoder
    wanted = (spec.frames, spec.size, spec.size, 3)
    if not may_be(clip_shape, wanted):
        encoder.close()
        raise BundleError(
            f"{path}: its frames are {tuple(clip_shape)}, the manifest says {wanted}; export again"
        )
    return encoder


def _onnxruntime(
    provider: str, precision: str = "fp32", auto: bool = True, slow_start: bool = False
) -> EncoderBackend:
    def opened(bundle: Bundle, threads: int | None) -> Encoder:
        from vqedge_runtime.encoders.ort import OrtEncoder
        from vqedge_runtime.encoders.providers import PROVIDERS

        path = encoder_path(bundle, precision)
        encoder = OrtEncoder(path, threads, PROVIDERS[provider], precision)
        return _fitting(encoder, encoder.clip_shape, bundle, path)

    def missing() -> Missing | None:
        from vqedge_runtime.encoders.providers import missing_provider

        return missing_provider(provider)

    def file(bundle: Bundle) -> str:
        return _file_in(bundle, precision)

    return EncoderBackend(opened, missing, file, auto, slow_start)


def _openvino() -> EncoderBackend:
    def opened(bundle: Bundle, threads: int | None) -> Encoder:
        from vqedge_runtime.encoders.openvino import OpenVinoEncoder

        path = bundle.path_of("encoder")
        encoder = OpenVinoEncoder(path, threads)
        return _fitting(encoder, encoder.clip_shape, bundle, path)

    def missing() -> Missing | None:
        from vqedge_runtime.encoders.providers import missing_package, missing_provider

        lacking = missing_package("openvino", install_line("openvino"))
        return lacking or missing_provider("CPU")  # ONNX Runtime writes its graph

    return EncoderBackend(opened, missing)


def _engine(flavour: Flavour) -> EncoderBackend:
    def opened(bundle: Bundle, threads: int | None) -> Encoder:
        from vqedge_runtime.encoders.tensorrt import open_engine

        encoder = open_engine(flavour, bundle)
        return _fitting(encoder, encoder.clip_shape, bundle, bundle.root)

    def missing() -> Missing | None:
        from vqedge_runtime.encoders.providers import missing_gpu, missing_package

        module = MODULES[flavour]
        return missing_gpu() or missing_package(module, install_line(module))

    def file(bundle: Bundle) -> str:
        from vqedge_runtime.encoders.tensorrt import engine_here

        return engine_here(flavour, bundle).file

    return EncoderBackend(opened, missing, file, slow_start=True)


ENCODERS: dict[str, EncoderBackend] = {
    "onnxruntime": _onnxruntime("CPU"),
    "onnxruntime-int8": _onnxruntime("CPU", "int8"),
    "onnxruntime-cuda": _onnxruntime("CUDA", slow_start=True),
    "onnxruntime-tensorrt": _onnxruntime("TensorRT", auto=False),
    "onnxruntime-nvtensorrtrtx": _onnxruntime("TensorRT-RTX", auto=False),
    "openvino": _openvino(),
    "tensorrt": _engine("tensorrt"),
    "tensorrt-rtx": _engine("tensorrt-rtx"),
}


def made_question(manifest: Manifest) -> Text | None:
    """What stands for a question where encoders are timed or compared; None where none is read."""
    if not manifest.quantizer.per_question:
        return None
    return np.random.default_rng(0).normal(0.0, 0.1, manifest.llm.width).astype(np.float32)


def inputs_for(frames_thwc: Frames, budget: int, text: Text | None) -> dict[str, npt.NDArray[Any]]:
    """The inputs of an encoder's graph by their names."""
    named: dict[str, npt.NDArray[Any]] = {"frames": frames_thwc}
    named["budget"] = np.array(budget, np.int64)
    return named if text is None else named | {"text": text}


def open_encoder(name: str, bundle: Bundle, threads: int | None = None) -> Encoder:
    """Open an encoder backend by name, or the one that is fastest here.

    Raises:
        UsageError: no such backend, or more threads than there can be.
        BackendUnavailable: it cannot run here or on this bundle.
        BundleError: the file cannot be run, or has changed since the bundle was opened.
    """
    check_threads(threads)
    require_backend(name)
    if name == AUTO:
        from vqedge_runtime.encoders.auto import open_fastest

        return open_fastest(bundle, threads)
    bundle.check_unchanged({ENCODERS[name].file(bundle)})
    return ENCODERS[name].open(bundle, threads)


def opener_ahead(
    name: str, bundle: Bundle, threads: int | None = None
) -> Callable[[], Encoder | None] | None:
    """What opens a backend beside other things, if it can be: the fastest one where it is known.

    None where backends would have to be measured, which what runs beside them would disturb, and
    where opening may take minutes.

    Raises:
        BackendUnavailable: no backend can run here.
    """
    if name == AUTO:
        from vqedge_runtime.encoders.auto import known_fastest

        return known_fastest(bundle, threads)
    return partial(ENCODERS[name].open, bundle, threads) if ENCODERS[name].auto else None


def check_backend(name: str) -> None:
    """Refuse a name that no backend has, whether or not that could run here.

    Raises:
        UsageError: it is neither `auto` nor one of `ENCODERS`.
    """
    if name != AUTO and name not in ENCODERS:
        known = ", ".join((AUTO, *ENCODERS))
        raise UsageError(f"no encoder backend {name!r}; there is: {known}")


def require_backend(name: str) -> None:
    """Refuse a backend that cannot run here, before any work.

    Raises:
        UsageError: no such backend.
        BackendUnavailable: something that it needs is missing.
    """
    check_backend(name)
    if name == AUTO:
        return
    if lacking := ENCODERS[name].missing():
        fix = lacking.fix or "use --backend auto"
        raise BackendUnavailable(f"encoder backend {name}: {lacking.why}; {fix}")


def refusal(path: Path, reader: str, reason: str) -> BundleError | BackendUnavailable:
    """Why a library does not take an encoder's file: mostly the file's fault."""
    if OP_NAME in reason:
        return BackendUnavailable(
            f"{path}: exported with --plugin-node, which only TensorRT runs; "
            "use --backend tensorrt, or export again without it"
        )
    return BundleError(f"{path}: {reader} cannot load it ({reason}); export again")


def encoder_path(bundle: Bundle, precision: str) -> Path:
    """The encoder's file in a precision.

    Raises:
        BackendUnavailable: the bundle has none.
    """
    return bundle.path_of(_file_in(bundle, precision))


def _file_in(bundle: Bundle, precision: str) -> str:
    encoder = bundle.manifest.encoder
    files = {item.precision: item.file for item in encoder.variants}
    files |= {encoder.precision: encoder.file}
    if precision not in files:
        raise BackendUnavailable(
            f"{bundle.root}: holds no encoder in {precision} (only {', '.join(files)}); "
            f"export again with --precision {precision}, or use --backend auto"
        )
    return files[precision]
