"""The crash probe and the build flags it recommends."""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gguf import base_gguf

from vqedge_runtime.llm import build_flags, probe

ROOT = Path(__file__).parents[2]
needs_llama_cpp = pytest.mark.skipif(
    not importlib.util.find_spec("llama_cpp"), reason="llama-cpp-python is not installed"
)


@needs_llama_cpp
def test_the_probe_finds_this_build_good() -> None:
    assert probe.probe_decode(base_gguf()) == probe.ProbeResult(True, "llama.cpp CPU Q4_1")


@needs_llama_cpp
def test_the_probe_reports_a_corrupt_file(tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.gguf"
    corrupt.write_bytes(b"GGUF" + bytes(range(256)) * 8)
    result = probe.probe_decode(corrupt)
    assert not result.ok
    assert result.signal is None
    assert "cannot be loaded" in result.detail
    assert "corrupt.gguf" in result.fix


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("SIGSEGV", None),  # the command that builds it anew
        ("SIGILL", None),
        ("SIGABRT", "export or fetch any.gguf again"),
        ("SIGKILL", "smaller model"),
    ],
)
def test_the_probe_survives_a_process_that_dies(
    name: str, fix: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nkill -{int(signal.Signals[name])} $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    result = probe.probe_decode(tmp_path / "any.gguf")
    assert (result.ok, result.signal) == (False, name)
    assert result.detail == f"llama.cpp died from {name}"
    assert (fix or build_flags.pip_line()) in result.fix


def test_the_probe_tells_a_missing_library_from_a_missing_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('none here')")
    monkeypatch.chdir(tmp_path)  # whose modules are nobody's
    result = probe.probe_decode(tmp_path / "any.gguf")
    assert "any.gguf again" in result.fix
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        result = probe.probe_decode(tmp_path / "any.gguf")
    assert "none here" in result.detail
    assert build_flags.pip_line() in result.fix


def test_the_probe_gives_up_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 20\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    result = probe.probe_decode(tmp_path / "any.gguf", timeout_s=0.2)
    assert (result.ok, result.detail) == (False, "no answer in 0.2 s")


AVX2 = {"sse4_2", "avx", "avx2", "fma", "f16c", "bmi2"}
AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}
EXTRA = {"avx512_vnni", "avx512vbmi", "avx512_bf16"}


@pytest.mark.parametrize(
    ("flags", "on"),
    [
        ({"sse4_2"}, "SSE42"),
        (AVX2, "SSE42 AVX AVX2 FMA F16C BMI2"),
        (AVX2 | AVX512, "SSE42 AVX AVX2 FMA F16C BMI2 AVX512"),
        (AVX2 | AVX512 - {"avx512cd"} | EXTRA, "SSE42 AVX AVX2 FMA F16C BMI2"),
        (
            AVX2 | AVX512 | EXTRA | {"amx_tile", "amx_int8", "amx_bf16"},
            "SSE42 AVX AVX2 FMA F16C BMI2 AVX512 AVX512_VNNI AVX512_VBMI AVX512_BF16",
        ),
    ],
)
def test_build_flags_name_what_the_cpu_has_and_never_amx(flags: set[str], on: str) -> None:
    words = build_flags.cmake_args_for_cpu(flags).split()
    assert words[0] == "-DGGML_NATIVE=OFF"
    assert [w for w in words if w.endswith("=ON")] == [f"-DGGML_{name}=ON" for name in on.split()]
    defaults = {f"-DGGML_{name}" for name in ("SSE42", "AVX", "AVX2", "FMA", "F16C", "BMI2")}
    assert defaults <= {word.partition("=")[0] for word in words}
    assert not any("AMX" in word for word in words)


@pytest.mark.parametrize("machine", ["aarch64", "x86_64"])
def test_build_flags_follow_the_machine(
    machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: avx avx2\n\nprocessor\t: 1\nflags\t\t: avx\n")
    assert build_flags.cpu_flags(cpuinfo) == {"avx", "avx2"}
    assert build_flags.cpu_flags(tmp_path / "none") == set()
    monkeypatch.setattr(build_flags, "cpu_flags", lambda: {"avx"})
    monkeypatch.setattr(platform, "machine", lambda: machine)
    native = build_flags.cmake_args() == "-DGGML_NATIVE=ON"
    assert native == (machine == "aarch64")


def test_build_flags_run_as_a_script_on_a_bare_python() -> None:
    script = Path(build_flags.__file__)
    command = [sys.executable, "-I", "-S", str(script)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == build_flags.cmake_args() + "\n"


def test_the_pip_line_asks_for_what_the_package_needs() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8").split("dependencies = ")[1]
    assert f'"{build_flags.REQUIREMENT}",\n' in project.partition("]")[0]
    assert build_flags.REQUIREMENT in build_flags.pip_line()


@pytest.mark.parametrize(
    ("nvcc", "gpu", "chosen", "added"),
    [
        (True, True, None, " -DGGML_CUDA=on"),
        (False, True, None, ""),
        (True, False, None, ""),
        (False, False, "-DGGML_CUDA=on -DX=1", " -DGGML_CUDA=on -DX=1"),
        (True, True, "-DGGML_CUDA=off", " -DGGML_CUDA=off"),
    ],
)
def test_the_pip_line_builds_for_the_gpu_too(
    nvcc: bool, gpu: bool, chosen: str | None, added: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VQEDGE_CMAKE_ARGS", raising=False)
    if chosen is not None:
        monkeypatch.setenv("VQEDGE_CMAKE_ARGS", chosen)
    monkeypatch.setattr("shutil.which", lambda name: "/cuda/bin/nvcc" if nvcc else None)
    monkeypatch.setattr("vqedge.cuda.has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(build_flags, "cmake_args", lambda: "-DGGML_NATIVE=OFF -DGGML_AVX=ON")
    options = f"CMAKE_ARGS='-DGGML_NATIVE=OFF -DGGML_AVX=ON{added}' pip install"
    assert options in build_flags.pip_line()


def test_the_scripts_build_with_the_options_of_the_cpu_and_the_users_last(tmp_path: Path) -> None:
    def build_options(**environment: str) -> str:
        command = ["sh", "-c", ". scripts/_env.sh; cmake_args", "scripts/some"]
        settings = os.environ | {"VQEDGE_WHEELS": str(tmp_path)} | environment
        return subprocess.check_output(command, cwd=ROOT, env=settings, text=True).strip()

    own = build_flags.cmake_args()
    assert build_options(VQEDGE_CMAKE_ARGS="") == own
    assert build_options(VQEDGE_CMAKE_ARGS="-DGGML_CUDA=on") == f"{own} -DGGML_CUDA=on"
