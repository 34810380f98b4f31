"""CUDA, cuDNN and TensorRT for ONNX Runtime's own providers, which look for them in the system.

Those that pip installed are found once something has loaded them into the process.
"""

from __future__ import annotations

import io
import logging
import re
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path
from threading import get_ident
from typing import Any, TextIO, cast

import onnxruntime as ort

from vqedge.cuda import installed_driver
from vqedge.errors import BackendUnavailable
from vqedge.packages import pip_command
from vqedge.tensorrt import tensorrt_module
from vqedge_runtime.encoders.providers import CUDA_PACKAGES, Provider

_WRITTEN_IN = Path("capi", "libonnxruntime_providers_tensorrt.so")  # 1 MB, CUDA's own has 280
_LINKED = re.compile(rb"lib(cudart|cudnn|nvinfer)\.so\.(\d+)")
_LIBRARIES = {"cudart": "CUDA", "cudnn": "cuDNN", "nvinfer": "TensorRT"}

logger = logging.getLogger(__name__)


def load_libraries(provider: Provider) -> None:
    """Load what pip has of a provider's libraries; the provider looks for the others itself."""
    if provider.libraries:
        _load_cuda()
    if "TensorRT" in provider.libraries:
        try:
            tensorrt_module("tensorrt")  # its package brings the libraries
        except BackendUnavailable as error:
            logger.info("%s", error)


@cache
def _load_cuda() -> None:
    """Once: what is there stays loaded, and what is missing takes a search of all folders."""
    if not hasattr(ort, "preload_dlls"):  # before 1.21
        return
    said = io.StringIO()
    with redirect_stdout(cast(TextIO, _OthersOutput(said))):
        ort.preload_dlls()
    for line in said.getvalue().splitlines():
        logger.info("onnxruntime: %s", line)


class _OthersOutput:
    """Standard output, but for the thread that makes this: what it prints goes elsewhere."""

    def __init__(self, elsewhere: TextIO) -> None:
        self._output, self._elsewhere, self._thread = sys.stdout, elsewhere, get_ident()

    def write(self, text: str) -> int:
        stream = self._elsewhere if get_ident() == self._thread else self._output
        return stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._output, name)


def advice(provider: Provider) -> str:
    """What to look at where a provider does not start."""
    if not provider.libraries:
        return "check the driver and its libraries"
    majors = linked_majors()
    cuda, driver = majors.get("CUDA"), installed_driver()
    if cuda and driver and driver[0] < int(cuda):
        known = ".".join(map(str, driver))
        return (
            f"it was built for CUDA {cuda}, and the driver knows {known}: update the driver, or "
            "take an older onnxruntime-gpu (docs/tensorrt.md)"
        )
    needed = ", ".join(f"{name} {majors.get(name, '')}".strip() for name in provider.libraries)
    packages = [f"'{CUDA_PACKAGES}'"]
    if "TensorRT" in provider.libraries and majors.keys() >= {"CUDA", "TensorRT"}:
        packages.append(f"'tensorrt-cu{cuda}=={majors['TensorRT']}.*'")
    line = f"{pip_command()} install {' '.join(packages)}"
    return f"check the driver and the libraries of {needed} ({line})"


def linked_majors() -> dict[str, str]:
    """Major versions that this ONNX Runtime was built for, as {"CUDA": "13"}; those it tells."""
    told = getattr(ort, "cuda_version", "").partition(".")[0]
    majors = {"CUDA": told} if told else {}
    try:
        names = (Path(ort.__file__).parent / _WRITTEN_IN).read_bytes()
    except OSError:  # built without TensorRT
        return majors
    found = _LINKED.findall(names)
    return majors | {_LIBRARIES[name.decode()]: major.decode() for name, major in found}
