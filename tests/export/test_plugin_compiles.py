"""The CUDA sources compile for every supported GPU, and the plugin against TensorRT's headers."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from emulated_kernel import (
    DTYPES,
    EMULATION,
    SOURCES,
    aligned_array,
    compile_for_cpu,
    cuda_include,
    host_compiler,
)

from vqedge.errors import BackendUnavailable
from vqedge.nearest_codebook import OP_NAME, OP_VERSION, Metric, nearest_codebook
from vqedge.packages import folders_of
from vqedge_export.tensorrt.cuda_toolkit import Nvcc, find_nvcc
from vqedge_export.tensorrt.plugin_build import (
    HEADERS,
    KERNEL_SOURCES,
    PLUGIN_SOURCES,
    architecture_flags,
)

HEADERS_VARIABLE = "VQEDGE_TENSORRT_INCLUDE"
COMPILED = "vqedge/compiled_kernel"  # in pytest's cache: what the last one was made of
STRICT = ("--warn-on-spills", "--warn-on-local-memory-usage", "--warning-as-error")  # of ptxas
BEFORE_BLACKWELL = (75, 80, 86, 87, 89, 90)
SUPPORTED = (*BEFORE_BLACKWELL, 100, 101, 110, 120)  # a Thor is 101 to CUDA 12, 110 to CUDA 13
KNOWN_BY_CUDA = {12: BEFORE_BLACKWELL, 13: (*BEFORE_BLACKWELL, 100, 110, 120)}  # at least


@pytest.fixture(scope="module")
def nvcc() -> Nvcc:
    try:
        return find_nvcc()
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def tensorrt_include() -> Path:
    folder = os.environ.get(HEADERS_VARIABLE)
    if not folder:
        pytest.skip(f"{HEADERS_VARIABLE} names no folder with NvInfer.h")
    return Path(folder)


@pytest.mark.slow
def test_the_kernel_compiles_for_every_gpu_and_spills_no_register(
    nvcc: Nvcc, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each from a front end of its own, with the flags of a build on the device."""
    host_compiler()
    wanted = [sm for sm in SUPPORTED if sm in nvcc.sms]
    assert set(wanted) >= set(KNOWN_BY_CUDA[int(nvcc.version.split(".")[0])])
    flags = [
        *("--fatbin", "-std=c++17", "-O3", "--Werror=all-warnings", "--threads=2"),
        f"--ptxas-options={','.join(STRICT)}",
        *architecture_flags(wanted),
    ]
    made_of, cache = digest_of_sources(nvcc.version, *flags), request.config.cache
    if cache and cache.get(COMPILED, None) == made_of:
        pytest.skip("compiled as it is, by an earlier run")
    output, source = tmp_path / "kernel.fatbin", SOURCES / "nearest_codebook.cu"
    command = [nvcc.path, *flags, "-o", output, source]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    assert output.stat().st_size > 0
    if cache:
        cache.set(COMPILED, made_of)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["87", "90a"])
def test_the_assembler_of_cuda_12_says_nothing_of_it(
    nvcc: Nvcc, tmp_path: Path, architecture: str
) -> None:
    """That of JetPack 6.2, and what it says of group products that would wait for one another.

    PyPI has no other part of a CUDA 12 that compiles; so the front end is nvcc's, and the number of
    its PTX is set back, of which the kernel needs nothing newer. `CUDA_HOME=... scripts/test` takes
    a whole CUDA 12 for the test above instead.
    """
    if nvcc.version.startswith("12."):
        pytest.skip("nvcc is of CUDA 12 itself")
    ptx, source = tmp_path / "kernel.ptx", SOURCES / "nearest_codebook.cu"
    flags = ["-std=c++17", "-O3", "-DVQEDGE_SM90A", f"--gpu-architecture=compute_{architecture}"]
    subprocess.run([nvcc.path, "--ptx", *flags, "-o", ptx, source], check=True)
    ptx.write_text(re.sub(r"^\.version .*$", ".version 8.5", ptx.read_text(), count=1, flags=re.M))
    output = tmp_path / "kernel.cubin"
    command = [older_assembler(), "-O3", *STRICT, f"-arch=sm_{architecture}", "-o", output, ptx]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    assert output.stat().st_size > 0


def older_assembler() -> Path:
    """ptxas of the package nvidia-cuda-nvcc-cu12."""
    for folder in folders_of("nvidia"):
        if (found := folder / "cuda_nvcc/bin/ptxas").is_file():
            return found
    pytest.skip("no ptxas of CUDA 12 here; pip install nvidia-cuda-nvcc-cu12")


def digest_of_sources(*others: str) -> str:
    """Of what the kernel is compiled from, and of what else is given."""
    texts = [(SOURCES / name).read_text() for name in (*KERNEL_SOURCES, *HEADERS)]
    return hashlib.sha256("\0".join([*texts, *others]).encode()).hexdigest()


def test_all_sources_are_package_data() -> None:
    """What the build copies and hashes is what there is."""
    named = {*PLUGIN_SOURCES, *HEADERS}
    there = {path.name for path in SOURCES.iterdir()}
    assert there - named == {"CMakeLists.txt", "README.md"}
    assert named <= there


def test_files_stay_readable() -> None:
    for path in (*SOURCES.iterdir(), *EMULATION.iterdir()):
        lines = path.read_text().splitlines()
        assert len(lines) < 400, path.name
        assert path.suffix == ".md" or max(map(len, lines)) <= 100, path.name


def test_the_plugin_has_the_names_that_the_parser_looks_up() -> None:
    """A node without `plugin_version` and `plugin_namespace` means version "1" and no namespace."""
    text = (SOURCES / "nearest_codebook_plugin.h").read_text()
    names = dict(re.findall(r'char const\* (kPlugin\w+) = "(.*)";', text))
    assert names == {
        "kPluginName": OP_NAME,
        "kPluginVersion": str(OP_VERSION),
        "kPluginNamespace": "",
    }


def test_the_plugin_compiles_without_a_warning(tensorrt_include: Path, tmp_path: Path) -> None:
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-c"]
    includes = ["-isystem", str(tensorrt_include), "-isystem", str(cuda_include())]
    source = str(SOURCES / "nearest_codebook_plugin.cpp")
    subprocess.run(
        [host_compiler(), *flags, *includes, source, "-o", str(tmp_path / "plugin.o")], check=True
    )


@pytest.fixture(scope="module")
def plugin(tensorrt_include: Path, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The plugin over the emulated kernel, called as TensorRT calls it."""
    folder = tmp_path_factory.mktemp("plugin")
    compile_for_cpu(folder)
    for name in ("plugin_caller.cpp", "device.cuh"):
        shutil.copy(EMULATION / name, folder)
    includes = ["-isystem", str(tensorrt_include), "-isystem", str(cuda_include())]
    sources = ["nearest_codebook_plugin.cpp", "plugin_caller.cpp", "emulated.so"]
    command = [host_compiler(), "-std=c++17", "-shared", "-fPIC", *includes, *sources]
    origin = "-Wl,-rpath,$ORIGIN"
    subprocess.run([*command, origin, "-o", "plugin.so"], check=True, cwd=folder)
    return ctypes.CDLL(str(folder / "plugin.so"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("metric", [*get_args(Metric), None])
@pytest.mark.parametrize("rows", [0, 9])
def test_the_plugin_survives_a_round_trip_and_computes(
    plugin: ctypes.CDLL, rows: int, metric: Any, dtype: Any
) -> None:
    """Created from a node, cloned, serialised, created again, attached, run. No metric means l2."""
    random = np.random.default_rng(0)
    x = random.normal(size=(rows, 24)).astype(dtype)
    codebook = random.normal(size=(5, 24)).astype(dtype)
    indices, margin = np.full(rows, -7, np.int32), np.full(rows, -7, np.float32)
    space = aligned_array(4096, np.uint8, 16)
    status = plugin.run_plugin(
        *(metric.encode() if metric else None, DTYPES.index(dtype)),
        *(ctypes.c_void_p(a.ctypes.data) for a in (x, codebook)),
        *(ctypes.c_int64(n) for n in (rows, 5, 24)),
        *(ctypes.c_void_p(a.ctypes.data) for a in (indices, margin, space)),
    )
    assert status == 0
    wanted, wanted_margin = nearest_codebook(x, codebook, metric or "l2")
    np.testing.assert_array_equal(indices, wanted)
    np.testing.assert_allclose(margin, wanted_margin, rtol=1e-3, atol=1e-4)


def test_the_plugin_refuses_a_metric_it_does_not_know(plugin: ctypes.CDLL) -> None:
    assert plugin.creates(b"manhattan") == 0
    assert plugin.creates(b"l2") == 1
    assert plugin.creates(b"l2l2") == 0


def test_the_plugin_supports_each_float_type_and_no_other(plugin: ctypes.CDLL) -> None:
    for code in DTYPES:
        assert plugin.supports(DTYPES.index(code), DTYPES.index(code)) == 1
    assert plugin.supports(0, 1) == 0  # rows float32, codes float16
    assert plugin.supports(3, 3) == 0  # int8
