"""An engine for a bundle: prepare the graph, build in a process of its own, describe the result."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx

from vqedge.bundle import EncoderRecord, EngineRecord, ProfileRecord, QuantizerRecord, TensorRecord
from vqedge.data.seeds import PARITY_SEED
from vqedge.engines import (
    EngineHost,
    EngineIdentity,
    Flavour,
    cache_engine,
    cached_engine,
    plugin_path,
    timing_cache,
)
from vqedge.errors import BackendUnavailable, ExportError
from vqedge.files import file_sha256, replacing
from vqedge.modules import module_command
from vqedge.temporary import temporary_folder
from vqedge_export.graph import copied
from vqedge_export.light import save_apart
from vqedge_export.tensorrt.calibration import (
    CALIBRATION_CLIPS,
    CALIBRATION_SEED,
    CHECK_CLIPS,
    RANGE_CLIPS,
    Frames,
    digest_of,
    generated_clips,
    measured_channels,
    require_half_range,
    require_nearest_kept,
)
from vqedge_export.tensorrt.job import Job, Outcome
from vqedge_export.tensorrt.options import BuildOptions, Offer, require_possible, targets_of
from vqedge_export.tensorrt.prepare import engine_outputs, prepare, settle_op

logger = logging.getLogger(__name__)

ENGINES, PREPARED = "engines", "prepared.onnx"
_WORKER = "vqedge_export.tensorrt.worker"
_LAST_LINES, _TELL_SECONDS = 3, 30.0


@dataclass(frozen=True)
class Source:
    """What an engine is made from.

    Attributes:
        onnx: the bundle's encoder, float32.
        encoder: what the manifest says of it.
        quantizer: what the manifest says of the quantizer.
        calibration: clips for int8 beside the generated ones, uint8 `[T, size, size, 3]` each.
    """

    onnx: Path
    encoder: EncoderRecord
    quantizer: QuantizerRecord
    calibration: tuple[Frames, ...] = ()

    def calibration_clips(self) -> Sequence[Frames]:
        """The clips that int8 is calibrated on: two or three alone miss the largest values."""
        usual = generated_clips(self.encoder, CALIBRATION_SEED, CALIBRATION_CLIPS)
        return [*usual, *self.calibration]


def engine_from_onnx(
    source: Source, flavour: Flavour, options: BuildOptions, plugin: Path | None = None
) -> tuple[Path, EngineRecord]:
    """Build an engine, or take the same one from the cache.

    Args:
        source: the bundle's encoder, and what to calibrate on.
        flavour: which TensorRT.
        options: precision, GPUs, and what the builder is told.
        plugin: library with the NearestCodebook plugin; the graph's own function without.

    Returns:
        where the engine is in the cache, and its record for the manifest.

    Raises:
        BackendUnavailable: TensorRT is not installed.
        ExportError: it cannot do what is asked, or failed.
        ParityError: int8 does not keep the ids.
        ConfigError: there is no place for temporary files.
    """
    offer = offer_of(flavour)
    require_possible(options, offer, plugin is not None)
    capabilities = targets_of(options, offer)
    clips = source.calibration_clips() if options.precision == "int8" else ()
    calibration = digest_of(clips) if clips else None
    kept = _kept(plugin)
    identity = EngineIdentity(
        flavour=flavour,
        version=offer.version,
        compute_capability=",".join(capabilities),
        precision=options.precision,
        onnx_sha256=file_sha256(source.onnx),
        plugin_sha256=kept.stem if kept else None,
        options=options.spelled(calibration),
    )
    if (cached := cached_engine(identity.key)) is not None:
        logger.info("engine %s is in the cache", identity.key)
        return cached
    with temporary_folder() as folder:
        _write_graph(folder / PREPARED, source, options, clips, plugin is not None)
        job = _job(source, offer, options, capabilities, kept, folder)
        with _still_building(identity.key):
            outcome = run_job(job)
        record = _record(identity, options, outcome, job.profiles)
        assert job.engine is not None, "the job has one"
        logger.info("built %s in %.0f s", identity.key, outcome.seconds)
        return cache_engine(job.engine, record), record


def require_buildable(flavour: Flavour, options: BuildOptions) -> None:
    """Refuse what the installed TensorRT cannot build here, before anything else is done for it.

    Raises:
        BackendUnavailable: it is not installed.
        ExportError: it cannot do what is asked.
    """
    offer = offer_of(flavour)
    require_possible(options, offer, plugin=False)
    targets_of(options, offer)


def offer_of(flavour: Flavour) -> Offer:
    """What the installed TensorRT of a flavour can do here.

    Raises:
        BackendUnavailable: it is not installed.
        ExportError: it crashes when it is loaded.
    """
    offer = run_job(Job(flavour=flavour)).offer
    assert offer is not None, "no fault and no offer"
    return offer


def run_job(job: Job) -> Outcome:
    """Run the building process.

    Raises:
        BackendUnavailable: TensorRT is not installed.
        ExportError: it refused, or the process died; says from what.
        ConfigError: there is no place for temporary files.
    """
    with temporary_folder() as folder:
        told, answer = folder / "job.json", folder / "outcome.json"
        told.write_text(job.model_dump_json(), encoding="utf-8")
        status, last_lines = _watched(module_command(_WORKER, str(told), str(answer)))
        if status != 0 or not answer.is_file():
            raise ExportError(f"{job.flavour}: {_cause_of_death(status, last_lines)}")
        outcome = Outcome.model_validate_json(answer.read_text(encoding="utf-8"))
    if outcome.fault is not None:
        raise (BackendUnavailable if outcome.unavailable else ExportError)(outcome.fault)
    return outcome


def _watched(command: Sequence[str]) -> tuple[int, Sequence[str]]:
    """Run a process, and log what it says as it says it; its exit status and last lines."""
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        assert process.stderr is not None, "it is a pipe"
        try:
            for line in filter(None, map(str.strip, process.stderr)):
                logger.info("%s", line)
                last.append(line)
        except BaseException:
            process.kill()
            raise
    return process.returncode, last


@contextmanager
def _still_building(name: str) -> Iterator[None]:
    """Say so now and then: on a Jetson it takes minutes."""
    logger.warning("building %s", name)
    began, done = time.monotonic(), threading.Event()

    def tell() -> None:
        while not done.wait(_TELL_SECONDS):
            logger.warning("building for %.0f s", time.monotonic() - began)

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()


def _cause_of_death(status: int, last_lines: Sequence[str]) -> str:
    """In one line; on Linux a negative exit status is a signal."""
    cause = f"died of {signal.Signals(-status).name}" if status < 0 else f"failed ({status})"
    words = " | ".join(last_lines) or "it said nothing"
    hint = "out of memory?" if status == -signal.SIGKILL else "see docs/tensorrt.md"
    return f"the building process {cause}; {hint}; last words: {words}"


def _write_graph(
    path: Path, source: Source, options: BuildOptions, clips: Sequence[Frames], plugin: bool
) -> None:
    """The graph to build; nothing of it stays in memory, which is the builder's now."""
    full = onnx.load(str(source.onnx))
    settle_op(full, plugin=False)  # ONNX Runtime is to run it, whatever it was exported for
    if options.precision != "fp32":
        usual = clips or generated_clips(source.encoder, CALIBRATION_SEED, RANGE_CLIPS)
        require_half_range(full, usual[-RANGE_CLIPS:])
    if clips:
        ready = _calibrated(full, source, clips)
    else:
        ready = prepare(full, options.precision, weak=options.typing == "weak")
    settle_op(ready, plugin)
    save_apart(ready, path)


def _calibrated(full: onnx.ModelProto, source: Source, clips: Sequence[Frames]) -> onnx.ModelProto:
    """The graph in int8, if it keeps the ids."""
    own = len(source.calibration)
    told = f"and {own} videos" if own else "only; --calibrate FOLDER adds videos of yours"
    logger.info("calibrating int8 on %d generated clips %s", len(clips) - own, told)
    channels = measured_channels(full, clips)
    lowered = prepare(copied(full), "int8", channels=channels)
    unseen = generated_clips(source.encoder, PARITY_SEED, CHECK_CLIPS)
    figures = require_nearest_kept(full, lowered, unseen, source.quantizer.default_budget)
    logger.info("int8: %.2f%% of patches nearest another code", 100 * figures.nearest_differ)
    return lowered


def _job(
    source: Source,
    offer: Offer,
    options: BuildOptions,
    capabilities: tuple[str, ...],
    plugin: Path | None,
    folder: Path,
) -> Job:
    host = EngineHost(offer.flavour, offer.version, offer.compute_capability or "")
    return Job(
        flavour=offer.flavour,
        options=options,
        capabilities=capabilities,
        onnx=folder / PREPARED,
        engine=folder / "built.engine",
        inputs=source.encoder.inputs,
        outputs=engine_outputs(source.encoder),
        profiles=_profiles(source.encoder),
        plugin=plugin,
        timing_cache=timing_cache(host),
        verbose=logging.getLogger().isEnabledFor(logging.INFO),  # this package's own is always on
    )


def _kept(plugin: Path | None) -> Path | None:
    """The plugin where the runtime looks for it, whole: engines refer to it by its sha256."""
    if plugin is None:
        return None
    sha256 = file_sha256(plugin)
    kept = plugin_path(sha256)
    if not kept.is_file() or file_sha256(kept) != sha256:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary:
            shutil.copyfile(plugin, temporary)
    return kept


def _profiles(encoder: EncoderRecord) -> tuple[ProfileRecord, ...]:
    """Ranges for inputs with free dimensions: from one frame to what the bundle was made for."""
    free = [item for item in encoder.inputs if any(isinstance(size, str) for size in item.shape)]
    return tuple(_profile(item, encoder) for item in free)


def _profile(tensor: TensorRecord, encoder: EncoderRecord) -> ProfileRecord:
    usual = (encoder.frames, encoder.size, encoder.size, 3)
    if len(tensor.shape) != len(usual):
        raise ExportError(f"{tensor.name}: free dimensions in a tensor that is no frames")
    pairs = list(zip(tensor.shape, usual, strict=True))
    least = tuple(1 if isinstance(size, str) else size for size, _ in pairs)
    most = tuple(known if isinstance(size, str) else size for size, known in pairs)
    return ProfileRecord(input=tensor.name, min=least, opt=most, max=most)


def _record(
    identity: EngineIdentity,
    options: BuildOptions,
    outcome: Outcome,
    profiles: tuple[ProfileRecord, ...],
) -> EngineRecord:
    return EngineRecord(
        key=identity.key,
        file=f"{ENGINES}/{identity.key}.engine",
        tensorrt_flavour=identity.flavour,
        tensorrt_version=identity.version,
        compute_capability=identity.compute_capability,
        plugin_sha256=identity.plugin_sha256,
        onnx_sha256=identity.onnx_sha256,
        precision=identity.precision,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        inputs=outcome.inputs,
        outputs=outcome.outputs,
        profiles=profiles,
    )
