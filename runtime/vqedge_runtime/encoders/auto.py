"""The fastest backend of this machine: measured once for a bundle, kept in the cache, announced.

An engine of the bundle that may run here is a candidate as any other. The file `backends.json` in
the cache remembers, by what each backend would run, processor, cores, library and driver versions,
how long each took for a clip. Remove it to measure again; that is done by itself where one failed,
as it does on a GPU that is taken, until it has failed three times. Where the fastest does not open,
the next one is taken, for this time. Of processes that start together one measures, and the others
wait for it: side by side they would measure each other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vqedge.bundle import Bundle
from vqedge.cores import processor_name, usable_cores
from vqedge.cuda import installed_driver, nvidia_device_files
from vqedge.engines import MODULES
from vqedge.errors import BackendUnavailable
from vqedge.files import locked, remove_unfinished, replacing
from vqedge_runtime.cache_folder import cache_folder, cache_name
from vqedge_runtime.encoders import ENCODERS
from vqedge_runtime.encoders.protocol import Encoder, Frames, Text, made_question
from vqedge_runtime.encoders.providers import installed_versions
from vqedge_runtime.tokens import Codes

CANDIDATES = tuple(name for name, backend in ENCODERS.items() if backend.auto)
_ROUNDS = 5
_MOST_S = 2.0  # of a backend's clips
_KEPT = 64  # machines and bundles that the file remembers
_MOST_FAILURES = 3  # of a backend, in a row

_Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
_Count = Annotated[int, Field(ge=1, strict=True)]

logger = logging.getLogger(__name__)


class Measured(BaseModel):
    """Milliseconds a clip by backend, and how many times in a row the others have failed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    clip_ms: dict[str, _Milliseconds]
    failed: dict[str, _Count] = {}

    @property
    def fastest(self) -> str:
        """The backend to take."""
        return self.by_speed[0]

    @property
    def by_speed(self) -> list[str]:
        """Backends that ran, the fastest first."""
        return sorted(self.clip_ms, key=lambda name: self.clip_ms[name])

    @property
    def settled(self) -> bool:
        """Whether no backend that failed is to be tried again."""
        return all(times >= _MOST_FAILURES for times in self.failed.values())


class _Memory(BaseModel):
    model_config = ConfigDict(extra="forbid")

    machines: dict[str, Measured] = {}


class ChosenEncoder:
    """A backend that says why it was chosen."""

    def __init__(self, encoder: Encoder, why: str) -> None:
        self._encoder, self._why = encoder, why

    @property
    def name(self) -> str:
        """What runs where, and why."""
        return f"{self._encoder.name} (auto: {self._why})"

    def encode(self, frames_thwc: Frames, budget: int, text: Text | None = None) -> Codes:
        """As the backend does."""
        return self._encoder.encode(frames_thwc, budget, text)

    def close(self) -> None:
        """Free everything; twice is fine."""
        self._encoder.close()


def open_fastest(bundle: Bundle, threads: int | None = None) -> Encoder:
    """Open the fastest backend, measuring first if this machine has not run this bundle yet.

    Raises:
        BackendUnavailable: none can run.
        BundleError: a file of one has changed since the bundle was opened.
    """
    files = candidates(bundle)
    bundle.check_unchanged(set(files.values()))
    if len(files) == 1:
        return _only(files, bundle, threads)
    known = _remembered(bundle, threads, files)
    opened = _opened(known, bundle, threads) if known is not None and known.settled else None
    if opened is None:
        opened = _opened(_measured_alone(bundle, threads, files, known), bundle, threads)
    if opened is None:
        raise BackendUnavailable(f"no encoder backend opens here: {', '.join(files)}")
    return opened


def known_fastest(
    bundle: Bundle, threads: int | None = None
) -> Callable[[], Encoder | None] | None:
    """What opens the fastest backend without measuring, None if that is not known.

    What it gives is None where no backend opens that was measured.

    Raises:
        BackendUnavailable: none can run.
    """
    files = candidates(bundle)
    if len(files) == 1:
        return partial(_only, files, bundle, threads)
    known = _remembered(bundle, threads, files)
    if known is None or not known.settled:
        return None
    return partial(_opened, known, bundle, threads)


def _only(files: dict[str, str], bundle: Bundle, threads: int | None) -> Encoder:
    (name,) = files
    return ChosenEncoder(ENCODERS[name].open(bundle, threads), "the only one here")


def _opened(measured: Measured, bundle: Bundle, threads: int | None) -> Encoder | None:
    """The fastest that opens: a library may be gone since, or a GPU taken for now."""
    why = [f"fastest of {len(measured.clip_ms) + len(measured.failed)} here"]
    why += [f"{name} failed when measured" for name in measured.failed]
    for name in measured.by_speed:
        try:
            return ChosenEncoder(ENCODERS[name].open(bundle, threads), "; ".join(why))
        except Exception as error:  # whatever a library raises
            logger.warning("%s does not open: %s", name, error)
            why.append(f"{name} does not open")
    return None


def candidates(bundle: Bundle) -> dict[str, str]:
    """Backends to choose from, and the file of the bundle that each would run.

    Raises:
        BackendUnavailable: there is none.
    """
    found = available(bundle, CANDIDATES)
    if not found:
        raise BackendUnavailable(
            "no encoder backend can run here; vqedge doctor says what is missing"
        )
    return found


def available(bundle: Bundle, names: Iterable[str]) -> dict[str, str]:
    """Backends among `names` that are installed, each with the bundle's file that it would run."""
    found = {}
    flavours = (item.tensorrt_flavour for item in bundle.manifest.engines)
    built: dict[str, str] = {flavour: MODULES[flavour] for flavour in flavours}
    for name in names:
        lacking = ENCODERS[name].missing()
        if lacking is not None:
            if name in built and find_spec(built[name]):  # its TensorRT is here, no GPU for it
                logger.warning("%s is left out: %s", name, lacking.why)
            continue
        try:
            found[name] = ENCODERS[name].file(bundle)
        except BackendUnavailable as error:
            level = logging.WARNING if name in built else logging.INFO  # somebody waited for it
            logger.log(level, "%s is left out: %s", name, error)
    return found


def remembered(bundle: Bundle) -> Measured | None:
    """What was measured before, on this machine as it is now, with all its cores."""
    return _remembered(bundle, None, candidates(bundle))


def _remembered(bundle: Bundle, threads: int | None, files: dict[str, str]) -> Measured | None:
    found = _memory().machines.get(_key(bundle, threads, files))
    usable = found and found.clip_ms and found.clip_ms.keys() | found.failed.keys() == files.keys()
    return found if usable else None


def _measured_alone(
    bundle: Bundle, threads: int | None, files: dict[str, str], known: Measured | None
) -> Measured:
    """What another process measured while this one waited for it, or what this one measures."""
    with _one_at_a_time():
        now = _remembered(bundle, threads, files)
        if now is not None and now != known:
            return now
        return _measured_now(bundle, threads, files, known)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Wait for whoever measures; where the cache cannot be written or locked, for nobody."""
    with ExitStack() as stack:
        with suppress(OSError):
            cache_folder().mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(cache_folder() / "backends.lock", _tell_of_waiting))
        yield


def _tell_of_waiting() -> None:
    logger.warning("waiting for another process that measures encoder backends")


def _measured_now(
    bundle: Bundle, threads: int | None, files: dict[str, str], known: Measured | None
) -> Measured:
    before, times = (known.failed, "again") if known else ({}, "once")
    logger.warning("measuring %s on this machine, %s", ", ".join(files), times)
    clip_ms, failed, why = {}, {}, ""
    for name in files:
        try:
            clip_ms[name] = clip_ms_of(name, bundle, threads)
        except Exception as error:  # whatever a library raises costs its own place only
            logger.warning("%s does not run: %s", name, error)
            failed[name] = before.get(name, 0) + 1
            why = f"{name}: {error}"
    if not clip_ms:
        raise BackendUnavailable(f"no encoder backend runs here; {why}")
    measured = Measured(clip_ms=clip_ms, failed=failed)
    _remember(_key(bundle, threads, files), measured)
    return measured


def clip_ms_of(name: str, bundle: Bundle, threads: int | None) -> float:
    """Shortest time of a backend for one clip, after a first one that does not count.

    Of a large model on a CPU, whose first clip takes seconds, that one counts, and there are no
    more.
    """
    spec = bundle.manifest.encoder
    shape = (spec.frames, spec.size, spec.size, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    budget, text = bundle.manifest.quantizer.default_budget, made_question(bundle.manifest)
    times: list[float] = []
    unmeasured = int(ENCODERS[name].slow_start)
    with closing(ENCODERS[name].open(bundle, threads)) as encoder:
        while len(times) <= _ROUNDS and sum(times[unmeasured:]) < _MOST_S:
            began = time.perf_counter()
            encoder.encode(frames, budget, text)
            times.append(time.perf_counter() - began)
    return round(1e3 * min(times[1:] or times), 3)


def _key(bundle: Bundle, threads: int | None, files: dict[str, str]) -> str:
    hashes = {file.path: file.sha256 for file in bundle.manifest.files}
    would_run = {name: hashes[file] for name, file in files.items()}
    processor = [processor_name(), platform.machine(), threads or usable_cores()]
    facts = [would_run, processor, _gpus(), installed_versions()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _gpus() -> list[str]:
    """What there is of NVIDIA's, so that one that comes, goes or gets a new driver is measured."""
    return [
        *nvidia_device_files(),
        os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        str(installed_driver()),
    ]


def memory_file() -> Path:
    """Where what was measured is remembered; an OSError where nobody knows."""
    return cache_folder() / "backends.json"


def _memory() -> _Memory:
    """What the file holds; nothing if it is missing or was written by another version."""
    with suppress(OSError, ValidationError):
        return _Memory.model_validate_json(memory_file().read_bytes())
    return _Memory()


def _remember(key: str, measured: Measured) -> None:
    """Add to the file; a cache that cannot be written costs every start time, and is told."""
    machines = [*_memory().machines.items(), (key, measured)][-_KEPT:]
    try:
        memory_file().parent.mkdir(parents=True, exist_ok=True)
        remove_unfinished(memory_file().parent)
        with replacing(memory_file()) as temporary:
            text = _Memory(machines=dict(machines)).model_dump_json(indent=2)
            temporary.write_text(text + "\n", encoding="utf-8")
    except OSError:
        logger.warning(
            "%s: cannot be written, so that every start measures again; name another folder in "
            "VQEDGE_CACHE",
            cache_name(),
        )
