"""How to build llama-cpp-python for this machine. As a script it needs the standard library only.

llama.cpp's own choice (`GGML_NATIVE=ON`) turns AMX on where the CPU has it, and its AMX code dies
from SIGSEGV on quantised weights (ggml-org/llama.cpp#20824). So on x86 every instruction set is
named, AMX never. With `GGML_NATIVE=OFF` some sets default to ON: those are switched off where the
CPU lacks them.

    python build_flags.py      prints the value for CMAKE_ARGS
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
from pathlib import Path

REQUIREMENT = "llama-cpp-python>=0.3.36,<0.4"
_NATIVE = "-DGGML_NATIVE=ON"
_X86 = ("x86_64", "amd64", "i686", "i386")

# ggml option: the flags of /proc/cpuinfo it needs, all of them
_ON_BY_DEFAULT = {
    "GGML_SSE42": {"sse4_2"},
    "GGML_AVX": {"avx"},
    "GGML_AVX2": {"avx2"},
    "GGML_FMA": {"fma"},
    "GGML_F16C": {"f16c"},
    "GGML_BMI2": {"bmi2"},
}
_OFF_BY_DEFAULT = {
    "GGML_AVX512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"},
    "GGML_AVX512_VNNI": {"avx512_vnni"},
    "GGML_AVX512_VBMI": {"avx512vbmi"},
    "GGML_AVX512_BF16": {"avx512_bf16"},
}
_SPELLINGS = {"avx512_vbmi": "avx512vbmi"}


def cmake_args_for_cpu(flags: set[str]) -> str:
    """CMake options for an x86 CPU, AMX left out.

    Args:
        flags: as in the `flags` line of /proc/cpuinfo.

    Returns:
        options separated by spaces, fit for the environment variable CMAKE_ARGS.
    """
    has = {_SPELLINGS.get(flag, flag) for flag in flags}
    switches = {option: needs <= has for option, needs in _ON_BY_DEFAULT.items()}
    wide = _OFF_BY_DEFAULT["GGML_AVX512"] <= has
    switches |= {option: True for option, needs in _OFF_BY_DEFAULT.items() if wide and needs <= has}
    words = [f"-D{option}={'ON' if on else 'OFF'}" for option, on in switches.items()]
    return " ".join(["-DGGML_NATIVE=OFF", *words])


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The CPU's instruction sets, empty where the system does not list them."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    lines = (line.partition(":") for line in text.splitlines())
    return next((set(value.split()) for name, _, value in lines if name.strip() == "flags"), set())


def cmake_args() -> str:
    """CMake options for the CPU of this machine; off Linux and off x86 llama.cpp's own choice."""
    flags = cpu_flags() if platform.machine().lower() in _X86 else set()
    return cmake_args_for_cpu(flags) if flags else _NATIVE


def pip_line() -> str:
    """The shell command that builds llama-cpp-python for this CPU and GPU and puts it in place."""
    from vqedge.packages import pip_command  # is not there where this file runs as a script

    pip = pip_command()
    options = " ".join(filter(None, (cmake_args(), _gpu_args())))
    return (
        f"{pip} uninstall -y llama-cpp-python && CMAKE_ARGS={shlex.quote(options)} "
        f"{pip} install --no-cache-dir --no-binary llama-cpp-python '{REQUIREMENT}'"
    )


def _gpu_args() -> str:
    """What the user chose, as the scripts take it, or CUDA where it can be compiled and run."""
    from vqedge.cuda import has_nvidia_gpu  # nor is this

    cuda = "-DGGML_CUDA=on" if shutil.which("nvcc") and has_nvidia_gpu() else ""
    return os.environ.get("VQEDGE_CMAKE_ARGS", cuda)


if __name__ == "__main__":
    sys.stdout.write(cmake_args() + "\n")
