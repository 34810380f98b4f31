"""Encoders: frames to codes. One object per backend behind a small Protocol, picked by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vqedge.bundle import Bundle
from vqedge.bundle.shapes import may_be
from vqedge.cores import check_threads
from vqedge.engines import MODULES, Flavour
from vqedge.errors import BackendUnavailable, BundleError, UsageError
from vqedge.packages import install_line
from vqedge_runtime.encoders.protocol import Encoder, Missing

AUTO = "auto"  # not a backend: the fastest one, see `vqedge_runtime.encoders.auto`


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
