"""The CUDA compiler of this machine, the compute capability of its GPU, and what its driver takes.

All are found without PyTorch and without TensorRT: a Jetson has neither in the environment that
exports.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vqedge.cuda import Cuda
from vqedge.errors import BackendUnavailable
from vqedge.packages import folders_of, pip_command

_HOME_VARIABLES = ("CUDA_HOME", "CUDA_PATH")
_DEFAULT_HOME = Path("/usr/local/cuda")


@dataclass(frozen=True)
class Nvcc:
    """A CUDA compiler."""

    path: Path
    version: str  # "13.0.88"
    sms: tuple[int, ...]  # the architectures it can compile for: 75, 80, ...

    @property
    def home(self) -> Path:
        """The toolkit's folder: `bin`, `include`, `lib` or `lib64`."""
        return self.path.parent.parent

    @property
    def library_folders(self) -> tuple[Path, ...]:
        """Where libcudart is: nvcc does not search the folder that the PyPI packages use."""
        return tuple(self.home / name for name in ("lib64", "lib") if (self.home / name).is_dir())


def find_nvcc() -> Nvcc:
    """The first compiler of `CUDA_HOME`, `PATH`, `/usr/local/cuda` and the PyPI packages.

    Raises:
        BackendUnavailable: there is none, or it does not run.
    """
    for path in _candidates():
        if path.is_file() and os.access(path, os.X_OK):
            return _nvcc_at(path.resolve())
    raise BackendUnavailable(
        "no CUDA compiler (nvcc) in CUDA_HOME, PATH or /usr/local/cuda. "
        "Fix: install the CUDA toolkit (on a Jetson: apt-get install nvidia-jetpack), "
        f"or {pip_command()} install nvidia-cuda-nvcc nvidia-cuda-cccl"
    )


def device_sm() -> int:
    """The compute capability of the first GPU, 87 for 8.7.

    Raises:
        BackendUnavailable: no driver or no GPU.
    """
    try:
        major, minor = Cuda().compute_capability.split(".")
    except BackendUnavailable as error:
        raise BackendUnavailable(
            f"{error}. Fix: run on the device, or name its compute capability (87 for an Orin, "
            "110 for a Thor)"
        ) from error
    return int(major) * 10 + int(minor)


def require_driver_for(nvcc: Nvcc) -> None:
    """Refuse a compiler of a later CUDA than the driver's: what it makes would not start.

    Majors are compared, a driver of 12.2 runs what 12.9 compiled. Without a GPU nothing is: the
    library is for another machine.

    Raises:
        BackendUnavailable: the driver is too old.
    """
    try:
        driver, minor = Cuda().driver_version
    except BackendUnavailable:
        return
    if driver < int(nvcc.version.split(".")[0]):
        raise BackendUnavailable(
            f"the GPU's driver runs CUDA {driver}.{minor}, nvcc {nvcc.version} at {nvcc.path} "
            f"compiles for a later one. Fix: update the driver, or set CUDA_HOME to a toolkit of "
            f"CUDA {driver}"
        )


def _candidates() -> Iterator[Path]:
    for variable in _HOME_VARIABLES:
        if home := os.environ.get(variable):
            yield Path(home) / "bin" / "nvcc"
    if on_path := shutil.which("nvcc"):
        yield Path(on_path)
    yield _DEFAULT_HOME / "bin" / "nvcc"
    yield from _wheel_candidates()


def _wheel_candidates() -> Iterator[Path]:
    """nvidia-cuda-nvcc puts its files into `nvidia/cu13/bin`, next to those of its companions."""
    for folder in folders_of("nvidia"):
        yield from sorted(folder.glob("cu*/bin/nvcc"), reverse=True)


def _nvcc_at(path: Path) -> Nvcc:
    release = re.search(r"V(\d+\.\d+\.\d+)", _output(path, "--version"))
    real = re.search(
        r"^#\$ _HERE_=(.+)$", _output(path, "--dryrun", "-c", "-x", "cu", "none.cu"), re.M
    )
    sms = tuple(int(sm) for sm in re.findall(r"sm_(\d+)\b", _output(path, "--list-gpu-code")))
    if release is None or not sms:
        raise BackendUnavailable(f"{path} does not tell its version. {_REINSTALL}")
    return Nvcc(Path(real[1]) / path.name if real else path, release[1], sms)


_REINSTALL = "Fix: install the CUDA toolkit again, or set CUDA_HOME to another one"


def _output(path: Path, *arguments: str) -> str:
    try:
        run = subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendUnavailable(f"{path} does not run: {error}. {_REINSTALL}") from error
    return run.stdout + run.stderr
