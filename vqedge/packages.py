"""What to install where a library is missing or broken."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

_BASE = {  # what vqedge always needs, by the module's name
    "av": "av",
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
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


def install_line(module: str) -> str:
    """The command that brings a module, as "onnx.helper", or mends it; what to do on a Jetson."""
    name = module.partition(".")[0]
    if name == "tensorrt" and _is_jetson():
        return "take JetPack's: make the environment with --system-site-packages (docs/jetson.md)"
    if name in _BASE:
        return reinstall_line(_BASE[name])
    return f"pip install 'vqedge[{_EXTRAS.get(name, 'export')}]'"


def _is_jetson() -> bool:
    """In a container, too, which sees the kernel only."""
    return _TEGRA.exists() or "tegra" in platform.release()


def reinstall_line(package: str) -> str:
    """The command that installs a package over itself, in a version that vqedge takes."""
    try:
        wanted = requires("vqedge") or []
    except PackageNotFoundError:  # run from its sources
        wanted = []
    named = [line for line in wanted if re.match(rf"{package}(?![\w-])", line)]
    return f"pip install --force-reinstall '{(named or [package])[0]}'"
