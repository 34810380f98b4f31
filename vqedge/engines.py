"""TensorRT engines: what identifies one, where it may run, and the cache they are kept in.

An engine is native code for one TensorRT, one kind of GPU and one graph. `misfit` is the only judge
of whether it may be loaded; whoever builds and whoever runs ask it alike.

    <cache>/engines/<key>.engine, <key>.json    built engines and what `EngineRecord` says of them
    <cache>/plugins/<sha256>.so                 plugin libraries that engines refer to
    <cache>/timing/<flavour>-<version>-<sm>     TensorRT's own measurements of kernels
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from vqedge.bundle import Bundle, EngineRecord
from vqedge.errors import BackendUnavailable
from vqedge.files import cache_root, file_sha256, remove_unfinished, replacing, surplus

Flavour = Literal["tensorrt", "tensorrt-rtx"]
EnginePrecision = Literal["fp32", "fp16", "int8"]
Typing = Literal["strong", "weak"]
Device = Literal["gpu", "dla"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
ENGINE_PRECISIONS: tuple[EnginePrecision, ...] = get_args(EnginePrecision)
TYPINGS: tuple[Typing, ...] = get_args(Typing)
DEVICES: tuple[Device, ...] = get_args(Device)
MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
LEAST_TENSORRT = (10, 3)
_RECIPE = 3  # of making engines from encoder.onnx; raise it and cached engines are built again
_AMPERE = (8, 0)
_KEPT_ENGINES = 16  # in the cache
JETSONS = ("7.2", "8.7", "10.1", "11.0")  # Xavier, Orin, Thor by CUDA 12 and by CUDA 13


@dataclass(frozen=True)
class EngineHost:
    """Where an engine is to run."""

    flavour: Flavour
    version: str  # as TensorRT says it, "10.3.0"
    compute_capability: str  # as "8.7"


@dataclass(frozen=True)
class EngineIdentity:
    """Everything that makes two engines different."""

    flavour: Flavour
    version: str
    compute_capability: str  # one, or several as "8.6,8.9"
    precision: EnginePrecision
    onnx_sha256: str
    plugin_sha256: str | None
    options: str  # of the builder, in one spelling

    @property
    def key(self) -> str:
        """The engine's name: readable, and different as soon as anything is."""
        text = json.dumps(asdict(self) | {"recipe": _RECIPE}, sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        capabilities = self.compute_capability.replace(".", "").replace(",", "+")
        return f"{self.flavour}-{self.version}-sm{capabilities}-{self.precision}-{digest}"


def misfit(record: EngineRecord, host: EngineHost, onnx_sha256: str) -> str | None:
    """Why an engine must not run here, or None if it may."""
    if record.tensorrt_flavour != host.flavour:
        return f"made by {record.tensorrt_flavour}, not {host.flavour}"
    if record.onnx_sha256 != onnx_sha256:
        return "stale: made from another encoder.onnx"
    if not _version_fits(record, host.version):
        return (
            f"made by {record.tensorrt_flavour} {record.tensorrt_version}, here is {host.version}"
        )
    if not _capability_fits(record, host.compute_capability):
        return f"made for SM {record.compute_capability}, this GPU is {host.compute_capability}"
    return None


def fitting_engine(bundle: Bundle, host: EngineHost) -> EngineRecord:
    """The bundle's engine for this machine.

    Raises:
        BackendUnavailable: it has none; says why each of its engines cannot run.
    """
    onnx_sha256 = encoder_sha256(bundle)
    reasons = []
    for record in bundle.manifest.engines:
        reason = misfit(record, host, onnx_sha256)
        if reason is None:
            return record
        if record.tensorrt_flavour == host.flavour:
            reasons.append(f"{record.file} is {reason}")
    here = f"{host.flavour} {host.version} on SM {host.compute_capability}"
    why = "; ".join(reasons) or f"it holds none of {host.flavour}"
    raise BackendUnavailable(
        f"{bundle.root}: no engine for {here}: {why}; "
        f"run: vqedge build {bundle.root} --target {host.flavour}"
    )


def encoder_sha256(bundle: Bundle) -> str:
    """The sha256 of the bundle's encoder, as the manifest lists it."""
    name = bundle.manifest.encoder.file
    return next(file.sha256 for file in bundle.manifest.files if file.path == name)


def version_of(text: str) -> tuple[int, ...]:
    """The leading numbers of a version, as (10, 3, 0)."""
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


class CachedEngine(BaseModel):
    """The note beside an engine in the cache."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    record: EngineRecord
    sha256: str


def cached_engine(key: str) -> tuple[Path, EngineRecord] | None:
    """An engine from the cache, if it is there whole and unchanged."""
    path = _cache_path(key)
    record = engine_from_note(path)
    if record is None or record.key != key:
        return None
    with suppress(OSError):  # another's cache, to read only
        os.utime(path)  # in use: the others are the first to go
    return path, record


def engine_from_note(path: Path) -> EngineRecord | None:
    """What the note beside an engine says of it, if it is the engine the note was written for."""
    try:
        note = path.with_suffix(".json").read_text(encoding="utf-8")
        cached = CachedEngine.model_validate_json(note)
        return cached.record if file_sha256(path) == cached.sha256 else None
    except (OSError, ValueError):
        return None


def cache_engine(built: Path, record: EngineRecord) -> Path:
    """Copy a built engine into the cache, which keeps those that were used last.

    Raises:
        OSError: the cache folder cannot be written.
    """
    path = _cache_path(record.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_unfinished(path.parent)
    cached = CachedEngine(record=record, sha256=file_sha256(built))
    with replacing(path) as temporary:
        shutil.copyfile(built, temporary)  # the cache may be on another file system
    with replacing(path.with_suffix(".json")) as temporary:
        temporary.write_text(cached.model_dump_json(indent=2) + "\n", encoding="utf-8")
    for old in surplus(path.parent.glob("*.engine"), _KEPT_ENGINES, keep=path):
        old.with_suffix(".json").unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return path


def cached_plugin(sha256: str) -> Path:
    """The plugin library that an engine was built with.

    Raises:
        BackendUnavailable: this machine does not have it.
    """
    path = plugin_path(sha256)
    if not path.is_file() or file_sha256(path) != sha256:
        raise BackendUnavailable(
            f"the engine needs the plugin library {path}, which is missing or altered; copy it "
            "from the machine that built the engine, or build here: "
            "vqedge build BUNDLE --target tensorrt"
        )
    return path


def plugin_path(sha256: str) -> Path:
    """Where the plugin library of this hash is kept, if it is."""
    return plugin_folder() / f"{sha256}.so"


def plugin_folder() -> Path:
    """Where plugin libraries are kept, named by their sha256."""
    return cache_root() / "plugins"


def timing_cache(host: EngineHost) -> Path:
    """Where TensorRT keeps what it measured on this kind of GPU."""
    capability = host.compute_capability.replace(".", "")
    return cache_root() / "timing" / f"{host.flavour}-{host.version}-sm{capability}"


def _cache_path(key: str) -> Path:
    return cache_root() / "engines" / f"{key}.engine"


def _version_fits(record: EngineRecord, here: str) -> bool:
    if record.tensorrt_version == here:
        return True
    made, found = version_of(record.tensorrt_version), version_of(here)
    return record.version_compatible and made[:1] == found[:1] and made <= found


def _capability_fits(record: EngineRecord, here: str) -> bool:
    if here in record.compute_capability.split(","):
        return True
    return record.hardware_compatible and here not in JETSONS and version_of(here) >= _AMPERE
