"""The kernel under compute-sanitizer: no access out of bounds, no race, no unset memory."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vqedge.cuda import Cuda
from vqedge.errors import BackendUnavailable
from vqedge_export.tensorrt.cuda_toolkit import find_nvcc
from vqedge_export.tensorrt.plugin_build import kernel_library

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
SCRIPT = Path(__file__).with_name("sanitized_kernel.py")


@pytest.fixture(scope="module")
def library() -> Path:
    """The kernel, compiled for the GPU here."""
    try:
        Cuda()
        return kernel_library()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def sanitizer(library: Path) -> str:
    """From the PATH, or the toolkit that compiled the kernel."""
    found = shutil.which("compute-sanitizer", path=str(find_nvcc().home / "bin"))
    found = found or shutil.which("compute-sanitizer")
    if found is None:
        pytest.skip("no compute-sanitizer beside nvcc or in PATH: it comes with the CUDA toolkit")
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_the_sanitizer_finds_nothing(library: Path, sanitizer: str, tool: str) -> None:
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable]
    done = subprocess.run([*command, str(SCRIPT), str(library)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
