"""Compile the NearestCodebook plugin on the machine that will run it, once, into the user's cache.

    <cache>/plugins/<key>/libvqedge_nearest_codebook_plugin.so     for TensorRT
    <cache>/plugins/<key>/libvqedge_nearest_codebook.so            the kernel alone, for PyTorch

`key` is a hash over the sources, the compiler's flags and version, and TensorRT's version: a change
of any gives a new library, and an engine built with the old one keeps it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

from vqedge.errors import BackendUnavailable, ExportError
from vqedge.files import cache_root, flush, locked
from vqedge_export.tensorrt.cuda_toolkit import (
    Nvcc,
    device_sm,
    find_nvcc,
    require_driver_for,
)
from vqedge_export.tensorrt.installation import TensorRT, find_tensorrt

KERNEL_SOURCES = ("nearest_codebook.cu",)
PLUGIN_SOURCES = (*KERNEL_SOURCES, "nearest_codebook_plugin.cpp")
HEADERS = (
    "best.cuh",
    "device.cuh",
    "fma_kernel.cuh",
    "hopper_kernel.cuh",
    "nearest_codebook.h",
    "nearest_codebook_plugin.h",
    "problem.cuh",
    "tensor_kernel.cuh",
)
KERNEL_LIBRARY = "libvqedge_nearest_codebook.so"
PLUGIN_LIBRARY = "libvqedge_nearest_codebook_plugin.so"
AUTO_PLUGIN, NO_PLUGIN = "auto", "none"
MIN_SM = 75
_MIN_PTX_SM = 80
_HOPPER_SM = 90  # its own instructions want `sm_90a`, which is for this GPU alone
_DEFAULT_INCLUDES = (Path("/usr/include"), Path("/usr/local/include"))  # in their own order
_FLAGS = (
    "-std=c++17",
    "-O3",
    "--shared",
    "--compiler-options=-fPIC,-fvisibility=hidden",
    "--cudart=static",
)
_BUILD_TIMEOUT_S = 1800
_OUTPUT_LINES = 12

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """One library to build."""

    name: str
    sources: tuple[str, ...]
    nvcc: Nvcc
    sms: tuple[int, ...]
    include: Path | None = None  # TensorRT's headers
    tensorrt: str = ""


def plugin_library(sms: Sequence[int] | None = None) -> Path:
    """The TensorRT plugin, compiled now if the cache has none for these versions.

    Load it with `IPluginRegistry.load_library` (Python: `get_plugin_registry().load_library(str)`).

    Args:
        sms: compute capabilities to compile for, 87 for 8.7; without them, this machine's GPU.

    Raises:
        BackendUnavailable: no compiler, no TensorRT headers or library, majors that differ, a
            driver older than the compiler, no GPU to take the capability from, or one that the
            compiler does not know.
        ExportError: the compiler fails, or the cache cannot be written.
    """
    tensorrt, nvcc, wanted = plugin_tools(sms)
    job = _Job(PLUGIN_LIBRARY, PLUGIN_SOURCES, nvcc, wanted, tensorrt.include, tensorrt.version)
    return _cached(job)


def plugin_tools(sms: Sequence[int] | None = None) -> tuple[TensorRT, Nvcc, tuple[int, ...]]:
    """What the plugin is compiled with, and for which GPUs; nothing is compiled.

    For arguments and errors, see `plugin_library`.
    """
    return (find_tensorrt(), *_compiler_for(sms))


def plugin_from_text(
    text: str, sms: Sequence[int] | None = None, portable: bool = False
) -> Path | None:
    """The plugin as `--plugin` asks for it.

    Args:
        text: "auto" for one compiled here, or none with a warning if this machine cannot; "none";
            or the path of a library.
        sms: see `plugin_library`.
        portable: for every GPU from SM 8.0 on that the compiler knows, instead of `sms`.

    Raises:
        BackendUnavailable: no such file.
    """
    if text == NO_PLUGIN:
        return None
    if text == AUTO_PLUGIN:
        try:
            return plugin_library(_portable_sms() if portable else sms)
        except (BackendUnavailable, ExportError) as error:
            logger.warning("the graph's own function instead of the plugin: %s", error)
            return None
    path = Path(text)
    if not path.is_file():
        raise BackendUnavailable(f"--plugin {text}: no such file. Fix: give auto, or none")
    return path


def _portable_sms() -> list[int]:
    return [sm for sm in find_nvcc().sms if sm >= _MIN_PTX_SM]


def kernel_library(sms: Sequence[int] | None = None) -> Path:
    """The kernel and its C entry, without TensorRT. Arguments and errors: `plugin_library`."""
    nvcc, wanted = _compiler_for(sms)
    return _cached(_Job(KERNEL_LIBRARY, KERNEL_SOURCES, nvcc, wanted))


def architecture_flags(sms: Sequence[int]) -> list[str]:
    """Flags of nvcc for machine code of each architecture, and PTX of the newest for later ones.

    No PTX of a Turing: what it lacks would be lacking on later GPUs too.
    """
    newest = max(sms)
    names = [f"{sm}a" if sm == _HOPPER_SM else str(sm) for sm in sorted(sms)]
    flags = [f"--generate-code=arch=compute_{name},code=sm_{name}" for name in names]
    if newest >= _MIN_PTX_SM:
        flags.append(f"--generate-code=arch=compute_{newest},code=compute_{newest}")
    return [*flags, "-DVQEDGE_SM90A"] if _HOPPER_SM in sms else flags


def _compiler_for(sms: Sequence[int] | None) -> tuple[Nvcc, tuple[int, ...]]:
    nvcc = find_nvcc()
    require_driver_for(nvcc)
    wanted = tuple(sorted(set(sms))) if sms else (device_sm(),)
    unknown = [sm for sm in wanted if sm not in nvcc.sms or sm < MIN_SM]
    if unknown:
        raise BackendUnavailable(
            f"nvcc {nvcc.version} at {nvcc.path} cannot compile the kernel for sm_{unknown[0]}, "
            f"only for {', '.join(str(sm) for sm in nvcc.sms if sm >= MIN_SM)}. "
            f"Fix: install a CUDA toolkit that knows it, or ask for another architecture"
        )
    return nvcc, wanted


def _cached(job: _Job) -> Path:
    with as_file(files(__package__) / "plugin") as sources:
        flags = _flags(job)
        folder = cache_root() / "plugins" / _key(job, sources, flags)
        target = folder / job.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock"):
                if not (target.is_file() and target.stat().st_size):  # empty after a power cut
                    _build(job, sources, flags, target)
        except OSError as error:
            raise ExportError(
                f"{error.filename or folder}: {error.strerror or error}. "
                f"Fix: set VQEDGE_CACHE to a folder you can write to"
            ) from error
    return target


def _flags(job: _Job) -> list[str]:
    found = job.include is not None and job.include not in _DEFAULT_INCLUDES
    includes = ["-isystem", str(job.include)] if found else []
    folders = [f"--library-path={folder}" for folder in job.nvcc.library_folders]
    return [*_FLAGS, *architecture_flags(job.sms), *includes, *folders]


def _key(job: _Job, sources: Path, flags: list[str]) -> str:
    """Folder name: readable first, then a hash over all that decides what the library does."""
    digest = hashlib.sha256()
    for part in (job.name, job.nvcc.version, job.tensorrt, *flags):
        digest.update(part.encode() + b"\0")
    for name in sorted((*job.sources, *HEADERS)):
        digest.update(name.encode() + b"\0" + (sources / name).read_bytes() + b"\0")
    sms = "-".join(map(str, job.sms))
    return f"{job.tensorrt or 'kernel'}-sm{sms}-{digest.hexdigest()[:16]}"


def _build(job: _Job, sources: Path, flags: list[str], target: Path) -> None:
    """Compile beside the target and rename: a killed build or a power cut leaves no library."""
    logger.info("compiling %s with nvcc %s for sm %s", job.name, job.nvcc.version, job.sms)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as folder:
        built = Path(folder) / job.name
        inputs = [str(sources / name) for name in job.sources]
        _run([str(job.nvcc.path), *flags, *inputs, f"--output-file={built}"], Path(folder))
        flush(built)
        built.replace(target)


def _run(command: list[str], folder: Path) -> None:
    try:
        run = subprocess.run(
            command,
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_BUILD_TIMEOUT_S,
            env=os.environ | {"TMPDIR": str(folder)},
        )
    except subprocess.TimeoutExpired as error:
        raise ExportError(
            f"{command[0]} did not finish in {_BUILD_TIMEOUT_S} s. "
            f"Fix: free memory (compiling takes about 1 GB) and try again"
        ) from error
    if run.returncode:
        tail = "\n".join(run.stdout.splitlines()[-_OUTPUT_LINES:])
        raise ExportError(
            f"{' '.join(command)} failed:\n{tail}\n"
            f"Fix: install a C++ compiler that this nvcc accepts (g++), and see the lines above"
        )
