"""`vqedge doctor`: can this machine answer a question? Every line that can be mended says how."""

from __future__ import annotations

import logging
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vqedge import __version__
from vqedge.base.fetch import cached
from vqedge.base.sources import SOURCES, PackageSource
from vqedge.bundle import Bundle, bundle_or_default, open_bundle
from vqedge.bundle.manifest import MANIFEST_NAME, manifest_from_bytes
from vqedge.bundle.writer import replaceable
from vqedge.commands.output import json_result
from vqedge.cuda import Cuda, has_nvidia_gpu
from vqedge.engines import FLAVOURS, MODULES, Flavour
from vqedge.errors import BackendUnavailable, BundleError, ConfigError, VqedgeError
from vqedge.files import cache_root, disk_fault
from vqedge.packages import install_line, reinstall_line, requirement_of
from vqedge.temporary import temporary_folder

logger = logging.getLogger(__name__)

_MIN_PYTHON = (3, 10)
_MIN_FREE_GB = 1.0
_TINY = "tiny.vqedge"
_MODEL = Path("models/tiny")
_CLONE = "in a clone of the repository: "
_NO_PLACE = "set TMPDIR to a folder that can be written and has room, to try it"
_ABLE = "this machine can answer questions"
_UNABLE = "this machine cannot answer questions yet: do what the lines marked fix say"
_LIBRARIES = {  # packages that bring each, either of them
    "numpy": ("numpy",),
    "av": ("av",),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),  # if both, the first put its files there
    "llama-cpp-python": ("llama-cpp-python",),
}
_MODULES = ("numpy", "av", "onnxruntime")  # of them those to load; llama.cpp has a check of its own
_BFLOAT16 = {"amx_bf16", "avx512_bf16"}  # of x86: instructions that OpenVINO is fast by
_OPTIONAL = {
    "onnx": "only to assemble bundles",
    "torch": "only to train and export",
    "tensorrt": "only to build and run TensorRT engines",
}


@dataclass(frozen=True)
class Finding:
    """One line of the report. A line that is not required never fails the doctor."""

    check: str
    found: str
    needed: str
    ok: bool
    fix: str = ""
    required: bool = True


def run_doctor(bundle: Path | None = None, *, as_json: bool = False) -> bool:
    """Run all checks and print them; True if the default job can run."""
    findings = [finding for check in CHECKS for finding in _findings(check, bundle)]
    healthy = all(finding.ok for finding in findings if finding.required)
    if as_json:
        json_result({"ok": healthy, "checks": list(map(_told_of, findings))})
    else:
        _print_report(findings, healthy)
    return healthy


def _told_of(finding: Finding) -> dict[str, str | bool]:
    """A line of the document: nothing is to be done where all is well."""
    return asdict(finding) | ({"fix": ""} if finding.ok else {})


def _findings(check: Check, bundle: Path | None) -> Iterator[Finding]:
    """A check's lines; of one that itself fails, as on a broken library, a line that says so."""
    try:
        yield from check(bundle)
    except Exception as error:
        logger.debug("%s", check.__name__, exc_info=True)
        name = check.__name__.strip("_").replace("_", " ")
        fix = "mend what the lines above name, then try again"
        found, required = f"{type(error).__name__}: {error}", check not in _OPTIONAL_CHECKS
        yield Finding(name, found, "to be checked", False, fix, required)


def _vqedge(_: Path | None) -> Iterator[Finding]:
    yield Finding("vqedge", __version__, "any", True)


def _python(_: Path | None) -> Iterator[Finding]:
    wanted = ".".join(map(str, _MIN_PYTHON))
    fits = sys.version_info >= _MIN_PYTHON
    yield Finding(
        "python", platform.python_version(), f">= {wanted}", fits, f"install Python {wanted}"
    )


def _libraries(_: Path | None) -> Iterator[Finding]:
    from packaging.requirements import Requirement

    for name, packages in _LIBRARIES.items():
        package = next(filter(_version, packages), name)
        found, taken = _version(package), Requirement(requirement_of(package)).specifier
        fault = _load_fault(name) if found and name in _MODULES else None
        told = ", ".join(filter(None, (found or "missing", fault)))
        fits = found is not None and fault is None and taken.contains(found, prereleases=True)
        fix = "" if fits else _library_fix(package)
        yield Finding(name, told, str(taken) or "installed", fits, fix)
    for name, use in _OPTIONAL.items():
        found = _version(name)
        fix = install_line(name) if name != "tensorrt" or has_nvidia_gpu() else ""
        yield Finding(name, found or "missing", use, found is not None, fix, required=False)


def _library_fix(package: str) -> str:
    """What brings it in a version that vqedge takes, llama.cpp built for this machine."""
    if package != "llama-cpp-python":
        return reinstall_line(package)
    from vqedge_runtime.llm.build_flags import pip_line  # needs NumPy

    return pip_line()


def _openvino(_: Path | None) -> Iterator[Finding]:
    from vqedge_runtime.llm.build_flags import cpu_flags

    found = _version("openvino")
    fast = bool(_BFLOAT16 & cpu_flags())
    needed = "recommended: this CPU has bfloat16" if fast else "only to try another encoder"
    fix = install_line("openvino")
    yield Finding("openvino", found or "missing", needed, found is not None, fix, required=False)


def _backends(bundle: Path | None) -> Iterator[Finding]:
    """Every encoder backend, and which one `auto` takes."""
    from vqedge_runtime.encoders import ENCODERS

    for name, backend in ENCODERS.items():
        lacking = backend.missing()
        found, fix = ("found", "") if lacking is None else (f"missing: {lacking.why}", lacking.fix)
        yield Finding(f"encoder {name}", found, "one of them", lacking is None, fix, required=False)
    with suppress(VqedgeError):
        opened = open_bundle(bundle_or_default(bundle), verify=False)
        yield Finding("encoder auto", _auto_choice(opened), "one of them", True, required=False)


def _auto_choice(bundle: Bundle) -> str:
    from vqedge_runtime.encoders.auto import candidates, memory_file, remembered

    measured = remembered(bundle)
    if measured is None:
        return f"not measured yet: one of {', '.join(candidates(bundle))}"
    times = ", ".join(f"{name} {ms:.0f} ms" for name, ms in measured.clip_ms.items())
    told = f"{measured.fastest} (a clip: {times})"
    if not measured.settled:
        return "; ".join((told, *(f"{name} failed when measured" for name in measured.failed)))
    failed = (f"; {name} failed {count} times" for name, count in measured.failed.items())
    again = f", remove {memory_file()} to try again" if measured.failed else ""
    return told + "".join(failed) + again


def _nvidia_driver(_: Path | None) -> Iterator[Finding]:
    """With its GPU; that there is none, only where a TensorRT waits for one."""
    needed = "only to run engines"
    try:
        cuda = Cuda()
        major, minor = cuda.driver_version
        found = f"CUDA {major}.{minor}, a GPU of SM {cuda.compute_capability}"
        yield Finding("NVIDIA driver", found, needed, True, required=False)
    except BackendUnavailable as error:
        if _flavours():
            found, fix = _told(error, "; ")
            fix = fix.partition(", or use --backend")[0]  # the report tells of all that are here
            yield Finding("NVIDIA driver", found, needed, False, fix, required=False)


def _plugin(_: Path | None) -> Iterator[Finding]:
    """What `vqedge build` would compile its plugin with, for a TensorRT that takes one."""
    from vqedge_export.tensorrt.plugin_build import plugin_tools

    if "tensorrt" not in _flavours():
        return
    needed = "only to compile the plugin; engines work without"
    try:
        tensorrt, nvcc, sms = plugin_tools()
    except BackendUnavailable as error:
        found, fix = _told(error, " Fix: ")
        yield Finding("TensorRT plugin", found, needed, False, fix, required=False)
        return
    found = f"nvcc {nvcc.version} for SM {sms[0]}, headers of TensorRT {tensorrt.version}"
    yield Finding("TensorRT plugin", found, needed, True, required=False)


def _engine(bundle: Path | None) -> Iterator[Finding]:
    """The bundle's engine for each TensorRT that is installed, where there is a GPU to run it."""
    from vqedge_runtime.encoders.tensorrt import engine_here

    if not has_nvidia_gpu():
        return
    with suppress(VqedgeError):
        opened = open_bundle(bundle_or_default(bundle), verify=False)
        for flavour in _flavours():
            fix = ""
            try:
                found, fits = engine_here(flavour, opened).file, True
            except VqedgeError as error:
                (found, fix), fits = _told(error, "; run: ", "; "), False
            needed = f"only for --backend {flavour}"
            yield Finding(f"engine {flavour}", found, needed, fits, fix, required=False)


def _told(error: VqedgeError, *before_fix: str) -> tuple[str, str]:
    """What is wrong, and what to do."""
    text = str(error)
    mark = next((mark for mark in before_fix if mark in text), "\0")
    wrong, _, fix = text.partition(mark)
    return wrong, fix


def _flavours() -> list[Flavour]:
    return [flavour for flavour in FLAVOURS if find_spec(MODULES[flavour])]


def _disk(_: Path | None) -> Iterator[Finding]:
    folder = cache_root()
    there = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
    free_gb = shutil.disk_usage(there).free / 1e9
    found, needed = f"{free_gb:.1f} GB free", f">= {_MIN_FREE_GB:g} GB, to fetch or assemble"
    fix = "free some space, or set VQEDGE_CACHE to another disk"
    yield Finding("disk", found, needed, free_gb >= _MIN_FREE_GB, fix, required=False)


def _video(_: Path | None) -> Iterator[Finding]:
    """Write and read a clip with the FFmpeg libraries that are there.

    Without a place to write it, nothing is known of them; answers need no such place.
    """
    try:
        from vqedge.data.demo import write_demo
        from vqedge_runtime.video import clip_from_path

        with temporary_folder() as folder:
            path = folder / "doctor.mp4"
            write_demo(path)
            frames = len(clip_from_path(path, 8, 224).frames_thwc)
    except (VqedgeError, ImportError, OSError, ValueError) as error:
        tried = not isinstance(error, ConfigError) and disk_fault(error) is None
        fix = reinstall_line("av") if tried else _NO_PLACE
        yield Finding("video decoding", str(error), "H.264", False, fix, required=tried)
        return
    yield Finding("video decoding", f"{frames} frames of a generated clip", "H.264", True)


def _bundle(bundle: Path | None) -> Iterator[Finding]:
    root = Path(_TINY)
    try:
        root = bundle_or_default(bundle)
        opened = open_bundle(root)
    except BundleError as error:
        yield Finding("bundle", str(error), "an intact bundle", False, _bundle_fix(root))
        return
    yield Finding("bundle", str(opened.root), "an intact bundle", True)


def _bundle_fix(root: Path) -> str:
    """What makes it; of a damaged one, what mends it where there is no clone, too."""
    made = f"vqedge assemble {_MODEL} -o {shlex.quote(str(root))}"
    if not os.path.lexists(root):
        here = "" if _MODEL.is_dir() else f"copy a bundle here and name it, or {_CLONE}"
        return here + made
    if not replaceable(root):
        return f"give a bundle, or make one {_CLONE}vqedge assemble {_MODEL} -o NAME.vqedge"
    again = "copy the bundle again, or "
    if root.name != _TINY:
        return again + "export it again"
    return f"{again}make it {_CLONE}{made} --overwrite"


def _llama_cpp(bundle: Path | None) -> Iterator[Finding]:
    """One real decode in a subprocess: a build that does not fit the CPU dies from a signal."""
    from vqedge_runtime.llm.probe import probe_decode

    model = _some_gguf(bundle)
    if model is None:
        yield Finding(
            "llama.cpp decode",
            "no model to try",
            "an answer",
            False,
            "vqedge fetch",
            required=False,
        )
        return
    outcome = probe_decode(model)
    found = f"{outcome.signal}: {outcome.detail}" if outcome.signal else outcome.detail
    yield Finding("llama.cpp decode", found, "an answer", outcome.ok, outcome.fix)


def _some_gguf(bundle: Path | None) -> Path | None:
    """The bundle's, whatever is wrong with its other files, or the one in the cache."""
    with suppress(VqedgeError, OSError):
        root = bundle_or_default(bundle)
        manifest = manifest_from_bytes((root / MANIFEST_NAME).read_bytes())
        path = root / manifest.llm.file
        sizes = {file.path: file.size_bytes for file in manifest.files}
        if path.stat().st_size == sizes[manifest.llm.file]:
            return path
    weights = cached("smollm2-135m-instruct")
    return weights.path if weights else None


def _base_weights(_: Path | None) -> Iterator[Finding]:
    for name, source in SOURCES.items():
        if isinstance(source, PackageSource):
            there = cached(name) is not None
            found = "in the cache" if there else "missing"
            yield Finding(
                name, found, "only to assemble or export", there, "vqedge fetch", required=False
            )


Check = Callable[[Path | None], Iterator[Finding]]
CHECKS: tuple[Check, ...] = (
    _vqedge,
    _python,
    _libraries,
    _openvino,
    _backends,
    _nvidia_driver,
    _plugin,
    _engine,
    _disk,
    _video,
    _base_weights,
    _bundle,
    _llama_cpp,
)
# an answer needs nothing of them
_OPTIONAL_CHECKS = (_openvino, _backends, _nvidia_driver, _plugin, _engine, _disk, _base_weights)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _load_fault(module: str) -> str | None:
    """Why a module does not load; a half-removed one does, but has nothing in it."""
    try:
        import_module(module).__version__  # noqa: B018 - that it is there
    except Exception as error:
        return f"does not load: {error}"
    return None


def _print_report(findings: list[Finding], healthy: bool) -> None:
    """What was found; what to do, a line each that can be copied whole; whether that is needed."""
    table = Table("check", "found", "needed")
    for finding in findings:
        cells = (escape(text) for text in (finding.found, finding.needed))
        table.add_row(f"{_mark(finding)} {escape(finding.check)}", *cells)
    console = Console()
    console.print(table)
    told = [finding for finding in findings if not finding.ok and finding.fix]
    lines = [_fix_line(finding) for finding in told if finding.required]
    if wishes := [_fix_line(finding) for finding in told if not finding.required]:
        lines += ["only if you want them:", *wishes]
    for line in (*lines, _ABLE if healthy else _UNABLE):
        console.print(line, soft_wrap=True, highlight=False)


def _fix_line(finding: Finding) -> str:
    return f"{_mark(finding)} {escape(finding.check)}: {escape(finding.fix)}"


def _mark(finding: Finding) -> str:
    if finding.ok:
        return "[green]ok[/]"
    return "[red]fix[/]" if finding.required else "[yellow]--[/]"
