"""Finding nvcc and TensorRT, and building into the cache, with stand-ins for both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from emulated_kernel import SOURCES, host_compiler

from vqedge.errors import BackendUnavailable, ExportError, VqedgeError
from vqedge_export.tensorrt import cuda_toolkit, installation, plugin_build
from vqedge_export.tensorrt.cuda_toolkit import device_sm, find_nvcc
from vqedge_export.tensorrt.installation import find_headers, find_tensorrt, header_version
from vqedge_export.tensorrt.plugin_build import (
    architecture_flags,
    kernel_library,
    plugin_from_text,
    plugin_library,
)

_real_wheel_folders = installation._wheel_folders
_real_wheel_candidates = cuda_toolkit._wheel_candidates
_NVCC = """#!/bin/sh
case "$*" in
*--version*) echo "Cuda compilation tools, release {release}, V{release}.85" ;;
*--dryrun*) echo '#$ _HERE_={home}/bin' >&2 ;;
*--list-gpu-code*) printf 'sm_75\\nsm_80\\nsm_87\\nsm_90\\n' ;;
*)
    echo "$*" >> {log}
    {before}
    for last in "$@"; do :; done
    echo library > "${{last#--output-file=}}"
    ;;
esac
"""
# As in TensorRT 10.3: plain numbers. Newer headers define them by other macros.
_PLAIN = "#define NV_TENSORRT_MAJOR {0} //!< major\n#define NV_TENSORRT_MINOR {1}\n"
_INDIRECT = (
    "#define TRT_MAJOR_ENTERPRISE {0}\n#define TRT_MINOR_ENTERPRISE {1}\n"
    "#define NV_TENSORRT_MAJOR TRT_MAJOR_ENTERPRISE //!< TensorRT major version.\n"
    "#define NV_TENSORRT_MINOR TRT_MINOR_ENTERPRISE //!< TensorRT minor version.\n"
)
_REST = "#define NV_TENSORRT_PATCH 0\n#define NV_TENSORRT_BUILD 26\n"


def no_driver() -> Any:
    raise BackendUnavailable("no NVIDIA driver")


@pytest.fixture(autouse=True)
def _nothing_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_cache: Path
) -> None:
    for variable in ("CUDA_HOME", "CUDA_PATH", installation.ROOT_VARIABLE):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(cuda_toolkit, "_DEFAULT_HOME", tmp_path / "nowhere")
    monkeypatch.setattr(cuda_toolkit, "_wheel_candidates", lambda: iter(()))
    monkeypatch.setattr(cuda_toolkit, "Cuda", no_driver)
    monkeypatch.setattr(installation, "_wheel_folders", lambda: iter(()))
    monkeypatch.setattr(installation, "_SYSTEM_ROOTS", (str(tmp_path / "nowhere"),))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


def make_nvcc(home: Path, release: str = "12.6", before: str = "") -> Path:
    (home / "bin").mkdir(parents=True)
    nvcc, log = home / "bin" / "nvcc", home / "calls"
    nvcc.write_text(_NVCC.format(release=release, home=home, log=log, before=before))
    nvcc.chmod(0o755)
    return log


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for nvcc; the file lists how it was called to compile."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    return make_nvcc(tmp_path / "cuda")


def make_headers(root: Path, major: int, minor: int = 3, text: str = _PLAIN) -> Path:
    include = root / "include" / "aarch64-linux-gnu"
    include.mkdir(parents=True)
    (include / "NvInfer.h").write_text("")
    (include / "NvInferVersion.h").write_text(text.format(major, minor) + _REST)
    return include


def make_library(root: Path, number: int) -> Path:
    """A libnvinfer that knows its version and nothing else."""
    folder = root / "lib" / "aarch64-linux-gnu"
    folder.mkdir(parents=True)
    source, library = folder / "version.cpp", folder / "libnvinfer.so.10"
    source.write_text(f'extern "C" int getInferLibVersion() {{ return {number}; }}')
    command = [host_compiler(), "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where TensorRT is looked for, with nothing in it."""
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path / "trt"))
    return tmp_path / "trt"


@pytest.fixture
def tensorrt(root: Path) -> Path:
    make_headers(root, 10)
    make_library(root, 100300)
    return root


# ---- the compiler


@pytest.mark.usefixtures("calls")
def test_nvcc_is_found_and_asked(tmp_path: Path) -> None:
    nvcc = find_nvcc()
    assert nvcc.path == tmp_path / "cuda/bin/nvcc"
    assert (nvcc.version, nvcc.sms) == ("12.6.85", (75, 80, 87, 90))


def test_a_script_on_the_path_leads_to_the_toolkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_nvcc(tmp_path / "cuda")
    (tmp_path / "wrapper").mkdir()
    script = tmp_path / "wrapper" / "nvcc"
    script.write_text(f'#!/bin/sh\nexec {tmp_path}/cuda/bin/nvcc "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/wrapper:/usr/bin:/bin")
    assert find_nvcc().home == tmp_path / "cuda"


def test_no_nvcc_says_what_to_install() -> None:
    with pytest.raises(BackendUnavailable, match=r"nvcc.*Fix: install the CUDA toolkit"):
        find_nvcc()


@pytest.mark.parametrize("body", ["#!/bin/sh\nexit 3\n", "#!/bin/sh\necho hello\n", "no program"])
def test_a_broken_nvcc_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    make_nvcc(tmp_path)
    (tmp_path / "bin/nvcc").write_text(body)
    with pytest.raises(BackendUnavailable, match=r"bin/nvcc.*Fix:"):
        find_nvcc()


def test_no_gpu_says_how_to_go_on() -> None:
    try:
        assert device_sm() >= 50
    except BackendUnavailable as error:
        assert "Fix: run on the device, or name its compute capability" in str(error)


def test_ptx_is_of_the_newest_architecture_and_never_of_a_turing() -> None:
    assert architecture_flags([90, 80]) == [
        "--generate-code=arch=compute_80,code=sm_80",
        "--generate-code=arch=compute_90a,code=sm_90a",
        "--generate-code=arch=compute_90,code=compute_90",
        "-DVQEDGE_SM90A",
    ]
    assert architecture_flags([75]) == ["--generate-code=arch=compute_75,code=sm_75"]


# ---- TensorRT


@pytest.mark.parametrize("text", [_PLAIN, _INDIRECT], ids=["plain", "indirect"])
def test_headers_tell_their_version(root: Path, text: str) -> None:
    include = make_headers(root, 10, 13, text)
    assert find_headers() == include
    assert header_version(include) == "10.13.0.26"


def test_headers_and_library_of_one_major(tensorrt: Path) -> None:
    found = find_tensorrt()
    assert found.version == "10.3.0.26" and found.include.is_relative_to(tensorrt)


def test_without_a_root_the_system_is_searched(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    include = make_headers(root, 10)
    monkeypatch.setattr(installation, "_SYSTEM_ROOTS", (str(root),))
    monkeypatch.setenv("TENSORRT_ROOT", "")
    assert find_headers() == include


@pytest.mark.usefixtures("root")
def test_no_headers_say_where_they_come_from() -> None:
    with pytest.raises(BackendUnavailable, match=r"NvInfer\.h.*Fix: apt-get.*TENSORRT_ROOT"):
        find_tensorrt()


def test_no_library_says_what_to_install(root: Path) -> None:
    make_headers(root, 10)
    with pytest.raises(BackendUnavailable, match=r"no libnvinfer\.so.*Fix: apt-get"):
        find_tensorrt()


@pytest.mark.parametrize(("number", "said"), [(110100, "11.1.0"), (8602, "8.6.2")])
def test_different_majors_are_refused(root: Path, number: int, said: str) -> None:
    make_headers(root, 10)
    make_library(root, number)
    with pytest.raises(BackendUnavailable, match=rf"10\.3\.0\.26.* is {said}\. Fix:"):
        find_tensorrt()


@pytest.mark.usefixtures("tensorrt")
def test_headers_are_compared_with_what_python_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wheel of another major beside packages whose headers and library agree."""
    wheel = make_library(tmp_path / "wheel", 110100).parent
    monkeypatch.setattr(installation, "_wheel_folders", lambda: iter([wheel]))
    with pytest.raises(BackendUnavailable, match=rf"10\.3\.0\.26.*{wheel}.* is 11\.1\.0\. Fix:"):
        find_tensorrt()


def test_tensorrt_8_is_too_old(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"8\.3\.0\.26, the plugin needs 10.*Fix:"):
        header_version(make_headers(tmp_path, 8))


@pytest.mark.parametrize("text", ["", "#define NV_TENSORRT_MAJOR NV_TENSORRT_MAJOR\n"])
def test_headers_without_a_version_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(BackendUnavailable, match=r"defines no version.*Fix:"):
        header_version(make_headers(tmp_path, 10, text=text))


def test_a_library_that_is_none_is_named(root: Path) -> None:
    make_headers(root, 10)
    (root / "lib").mkdir()
    (root / "lib" / "libnvinfer.so.10").write_text("no library")
    with pytest.raises(BackendUnavailable, match=r"libnvinfer\.so\.10 cannot be loaded.*Fix:"):
        find_tensorrt()


def test_wheels_are_found_without_being_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "nvidia/cu99/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("")
    libraries = tmp_path / "tensorrt_libs"
    libraries.mkdir()
    for package in (tmp_path / "nvidia", libraries):
        (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
        monkeypatch.delitem(sys.modules, package.name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert list(_real_wheel_folders()) == [libraries]
    assert list(_real_wheel_candidates()) == [nvcc]


# ---- building


@pytest.mark.usefixtures("tensorrt")
def test_the_plugin_is_built_once(calls: Path) -> None:
    first = plugin_library([87])
    assert first.read_text() == "library\n"
    assert first.parent.name.startswith("10.3.0.26-sm87-")
    assert plugin_library([87]) == first
    (command,) = calls.read_text().splitlines()
    for part in ("sm_87", "nearest_codebook.cu", "nearest_codebook_plugin.cpp", "--shared"):
        assert part in command
    assert sorted(path.name for path in first.parent.iterdir()) == sorted([first.name, "lock"])


def test_a_library_is_on_the_disk_before_it_has_its_name(
    calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[tuple[str, int]] = []

    def flush(path: Path) -> None:
        assert path.read_text() == "library\n"
        flushed.append((path.name, len(list(path.parents[1].glob("*.so")))))

    monkeypatch.setattr(plugin_build, "flush", flush)
    library = kernel_library([80])
    assert flushed == [(library.name, 0)]
    library.write_bytes(b"")  # of a build without `flush`
    assert kernel_library([80]).read_text() == "library\n"


@pytest.mark.usefixtures("calls")
def test_the_kernel_alone_needs_no_tensorrt() -> None:
    assert kernel_library([80, 90]).parent.name.startswith("kernel-sm80-90-")


@pytest.mark.usefixtures("calls", "tensorrt")
def test_another_version_of_anything_is_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = [plugin_library([87]), plugin_library([90])]
    make_nvcc(tmp_path / "newer", "13.0")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "newer"))
    libraries.append(plugin_library([87]))
    make_headers(tmp_path / "other", 10, 7)
    make_library(tmp_path / "other", 100700)
    monkeypatch.setenv("TENSORRT_ROOT", str(tmp_path / "other"))
    libraries.append(plugin_library([87]))
    monkeypatch.setattr(plugin_build, "_FLAGS", (*plugin_build._FLAGS, "-lineinfo"))
    libraries.append(plugin_library([87]))
    assert len(set(libraries)) == 5


@pytest.mark.parametrize("sms", [[120], [70], [87, 120]])
@pytest.mark.usefixtures("calls")
def test_an_architecture_that_nvcc_does_not_know_is_refused(sms: list[int]) -> None:
    with pytest.raises(BackendUnavailable, match=r"nvcc 12\.6\.85.*cannot.*sm_(120|70).*Fix:"):
        kernel_library(sms)


@pytest.mark.parametrize(("driver", "fits"), [((12, 2), True), ((13, 0), True), ((11, 8), False)])
def test_a_driver_runs_what_a_compiler_of_its_major_or_an_earlier_one_makes(
    calls: Path, monkeypatch: pytest.MonkeyPatch, driver: Any, fits: bool
) -> None:
    """The compiler is of 12.6; what a later major makes fails in every run of the plugin."""
    monkeypatch.setattr(cuda_toolkit, "Cuda", lambda: SimpleNamespace(driver_version=driver))
    if fits:
        assert kernel_library([87]).is_file()
        return
    told = r"driver runs CUDA 11\.8, nvcc 12\.6\.85.*Fix: update.*CUDA_HOME to a toolkit of CUDA 11"
    with pytest.raises(BackendUnavailable, match=told):
        kernel_library([87])
    assert not calls.exists(), "refused before anything is compiled"


@pytest.mark.usefixtures("calls", "tensorrt")
def test_an_old_driver_leaves_the_plugin_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cuda_toolkit, "Cuda", lambda: SimpleNamespace(driver_version=(11, 8)))
    assert plugin_from_text("auto", [87]) is None
    assert "the graph's own function instead of the plugin: the GPU's driver" in caplog.text


def test_a_failed_compilation_shows_its_end_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_nvcc(tmp_path / "cuda", before='echo "no host compiler"; exit 1')
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    with pytest.raises(ExportError, match=r"(?s)no host compiler.*Fix:"):
        kernel_library([80])
    left = [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert left == ["lock"]


@pytest.mark.usefixtures("calls")
def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(VqedgeError, match=r"cache.*Fix: set VQEDGE_CACHE"):
        kernel_library([80])


@pytest.mark.slow
def test_the_real_compiler_builds_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real headers and a real nvcc; the library says which creator it has."""
    include = os.environ.get("VQEDGE_TENSORRT_INCLUDE")
    if not include:
        pytest.skip("VQEDGE_TENSORRT_INCLUDE names no folder with NvInfer.h")
    monkeypatch.undo()
    try:
        sm = find_nvcc().sms[-1]
    except BackendUnavailable as error:
        pytest.skip(str(error))
    root = tmp_path / "trt"
    root.mkdir()
    (root / "include").symlink_to(include)
    major, minor, *_ = header_version(Path(include)).split(".")
    make_library(root, int(major) * 10_000 + int(minor) * 100)
    monkeypatch.setenv("TENSORRT_ROOT", str(root))
    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path / "cache"))
    library = plugin_library([sm])
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(library)], capture_output=True, text=True, check=True
    )
    names = {line.split()[-1] for line in listing.stdout.splitlines()}
    assert {"getCreators", "setLoggerFinder", "vqedge_nearest_codebook"} <= names
    assert not any(name.startswith("cuda") for name in names)


def test_the_sources_are_in_the_package() -> None:
    assert (SOURCES / "nearest_codebook.cu").is_file()


def test_the_plugin_as_the_command_line_asks_for_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    library = tmp_path / "mine.so"
    library.touch()
    assert plugin_from_text(str(library)) == library
    assert plugin_from_text("none") is None and not caplog.messages
    assert plugin_from_text("auto") is None, "nothing to compile with here"
    assert "the graph's own function instead of the plugin" in caplog.text
    assert "Fix:" in caplog.text
    with pytest.raises(BackendUnavailable, match="no such file"):
        plugin_from_text(str(tmp_path / "yours.so"))


def test_a_portable_plugin_is_for_all_gpus_of_the_compiler_and_a_failure_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compiled(sms: Any) -> Path:
        if sms is None:
            raise ExportError("g++ is missing. Fix: install it")
        return Path("-".join(map(str, sms)))

    known = SimpleNamespace(sms=(70, 75, 80, 87, 120))
    monkeypatch.setattr(plugin_build, "find_nvcc", lambda: known)
    monkeypatch.setattr(plugin_build, "plugin_library", compiled)
    assert plugin_from_text("auto", [89], portable=True) == Path("80-87-120")
    assert plugin_from_text("auto") is None and "g++ is missing" in caplog.text
