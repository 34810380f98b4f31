"""What to install where a library is missing or broken."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

_BASE = {  # what vqedge always needs, by the module's name
    "av": "av",
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "packaging": "packaging",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic",
    "rich": "rich",
    "typer": "typer",
    "typing_extensions": "typing-extensions",
    "yaml": "pyyaml",
}
_EXTRAS = {
    "gguf": "assemble",
    "ml_dtypes": "assemble",
    "onnx": "assemble",
    "openvino": "openvino",
    "PIL": "viz",
    "safetensors": "assemble",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
}


_TEGRA = Path("/etc/nv_tegra_release")


def folders_of(module: str) -> Iterator[Path]:
    """Where the files of a package are, without importing it; none if it is not installed."""
    spec = importlib.util.find_spec(module)
    yield from map(Path, (spec.submodule_search_locations or ()) if spec else ())


def install_line(module: str) -> str:
    """The command that brings a module, as "onnx.helper", or mends it; what to do on a Jetson."""
    name = module.partition(".")[0]
    if name == "tensorrt" and _is_jetson():
        return "take JetPack's: make the environment with --system-site-packages (docs/jetson.md)"
    if name in _BASE:
        return reinstall_line(_BASE[name])
    return f"{pip_command()} install 'vqedge[{_EXTRAS.get(name, 'export')}]'"


def pip_command() -> str:
    """What calls the pip of this Python in a shell; another's would install elsewhere."""
    if _pip_is_ours():
        return "pip"
    python = shlex.quote(sys.executable or "python3")
    if pip_folders():
        return f"{python} -m pip"
    if shutil.which("uv") and sys.prefix != sys.base_prefix:
        return f"VIRTUAL_ENV={shlex.quote(sys.prefix)} uv pip"
    return f"{python} -m ensurepip && {python} -m pip"


def pip_folders() -> list[str]:
    """Folders of this Python's pip, if it has one, never of one in the current folder.

    Only its path is searched. To `importlib.util.find_spec("pip")`, setuptools' hook answers by
    keeping its own distutils from this process (pypa/pip#8761, Python 3.11), and PyTorch's
    compiler can import setuptools no more.
    """
    path = [entry for entry in sys.path if os.path.realpath(entry) != os.getcwd()]
    found = PathFinder.find_spec("pip", path)
    return (found.submodule_search_locations if found else None) or []


def _pip_is_ours() -> bool:
    """Whether `pip` in a shell is that of this virtual environment, which then is active."""
    found = shutil.which("pip")
    if found is None or sys.prefix == sys.base_prefix:  # a system's may be of another Python
        return False
    return os.path.realpath(os.path.dirname(found)) == os.path.realpath(Path(sys.prefix, "bin"))


def _is_jetson() -> bool:
    """In a container, too, which sees the kernel only."""
    return _TEGRA.exists() or "tegra" in platform.release()


def reinstall_line(package: str) -> str:
    """The command that installs a package over itself, in a version that vqedge takes."""
    return f"{pip_command()} install --force-reinstall '{requirement_of(package)}'"


def requirement_of(package: str) -> str:
    """A package with the versions that vqedge takes, as "numpy>=2.0"."""
    try:
        lines = requires("vqedge") or []
    except PackageNotFoundError:  # run from its sources
        lines = []
    named = (line.partition(";")[0] for line in lines if re.match(rf"{package}(?![\w-])", line))
    return next(named, package)
