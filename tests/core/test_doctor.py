"""What `vqedge doctor` says of the disk, of TensorRT's driver and tools, the bundle's engine."""

from __future__ import annotations

import errno
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_bundle import write_bundle

from vqedge.commands import doctor
from vqedge.commands.doctor import Finding, run_doctor
from vqedge.engines import FLAVOURS
from vqedge.errors import BackendUnavailable, VideoError
from vqedge.tensorrt import tensorrt_module
from vqedge_export.targets import TARGETS, require_installed
from vqedge_runtime.encoders import auto, require_backend
from vqedge_runtime.llm.build_flags import pip_line

TOOLS = "vqedge_export.tensorrt.plugin_build.plugin_tools"
ENGINE = "vqedge_runtime.encoders.tensorrt.engine_here"


def raising(text: str) -> Any:
    def call(*_: object) -> None:
        raise BackendUnavailable(text)

    return call


def test_the_report_ends_with_a_verdict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wish = Finding("torch", "missing", "only to train", False, "pip install it", required=False)
    no_gpu = Finding("tensorrt", "missing", "only to build", False, required=False)
    fault = Finding("bundle", "none", "an intact bundle", False, "vqedge assemble it")
    found = [wish, no_gpu, Finding("python", "3.11", ">= 3.10", True)]
    monkeypatch.setattr(doctor, "CHECKS", (lambda _: iter(found),))
    wishes = ["only if you want them:", "-- torch: pip install it"]
    assert run_doctor()
    last = capsys.readouterr().out.splitlines()[-3:]
    assert last == [*wishes, "this machine can answer questions"]
    found.append(fault)
    assert not run_doctor()
    *rest, verdict = capsys.readouterr().out.splitlines()[-4:]
    assert rest == ["fix bundle: vqedge assemble it", *wishes]
    assert verdict.startswith("this machine cannot answer questions yet: do what the lines marked ")


def test_the_document_has_a_fix_only_for_what_is_amiss(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [
        Finding("disk", "9 GB", ">= 1 GB", True, "free some", required=False),
        Finding("torch", "missing", "only to train", False, "pip install it", required=False),
    ]
    monkeypatch.setattr(doctor, "CHECKS", (lambda _: iter(found),))
    assert run_doctor(as_json=True)
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [check["fix"] for check in checks] == ["", "pip install it"]


@pytest.mark.parametrize(
    ("count", "told"),
    [
        (0, ""),
        (2, "; onnxruntime-cuda failed when measured"),
        (3, "; onnxruntime-cuda failed 3 times, remove {} to try again"),
    ],
)
def test_what_auto_has_given_up_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_cache: Path, count: int, told: str
) -> None:
    failed = {"onnxruntime-cuda": count} if count else {}
    measured = auto.Measured(clip_ms={"openvino": 12.0}, failed=failed)
    monkeypatch.setattr(auto, "remembered", lambda _: measured)
    found = doctor._auto_choice(write_bundle(tmp_path / "a.vqedge"))
    told = told.format(own_cache / "backends.json")
    assert found == f"openvino (a clip: openvino 12 ms){told}"


def test_a_library_of_a_version_that_is_not_taken_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = ["onnxruntime>=1.20", "onnxruntime-gpu>=1.21; extra == 'gpu'", "av<19,>=17.1"]
    monkeypatch.setattr("vqedge.packages.requires", lambda _: needs)
    found = {"av": "19.0", "onnxruntime": "1.20.1", "numpy": "0.1"}
    monkeypatch.setattr(doctor, "_version", found.get)

    def line(name: str) -> Finding:
        return next(line for line in doctor._libraries(None) if line.check == name)

    def told(name: str) -> tuple[bool, str, str, str]:
        said = line(name)
        return said.ok, said.found, said.needed, said.fix

    fix = "pip install --force-reinstall "
    assert told("av") == (False, "19.0", "<19,>=17.1", f"{fix}'av<19,>=17.1'")
    assert told("onnxruntime")[:3] == (True, "1.20.1", ">=1.20")
    assert told("numpy")[:3] == (True, "0.1", "installed"), "run from sources, which say nothing"
    found["onnxruntime-gpu"] = "1.20.1"
    gpu = (False, "1.20.1", ">=1.21", f"{fix}'onnxruntime-gpu>=1.21'")
    assert told("onnxruntime") == gpu, "its files lie over the other's"
    found["onnxruntime-gpu"] = "1.22.0.dev1"
    assert line("onnxruntime").ok


def test_a_missing_llama_cpp_is_built_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda _: None)
    fixes = {line.check: line.fix for line in doctor._libraries(None)}
    assert fixes["llama-cpp-python"] == pip_line()


@pytest.mark.parametrize("gpu", [True, False])
def test_tensorrt_is_recommended_to_who_has_a_gpu(
    monkeypatch: pytest.MonkeyPatch, gpu: bool
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda _: None)
    monkeypatch.setattr("vqedge.packages._is_jetson", lambda: False)
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: gpu)
    fixes = {line.check: line.fix for line in doctor._libraries(None)}
    assert fixes["tensorrt"] == ("pip install 'vqedge[tensorrt]'" if gpu else "")
    assert fixes["onnx"] == "pip install 'vqedge[assemble]'"


def jetson_by_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vqedge.packages._TEGRA", tmp_path)


def jetson_by_kernel(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr("platform.release", lambda: "5.15.148-tegra")


@pytest.mark.parametrize("jetson", [jetson_by_file, jetson_by_kernel])
def test_a_jetson_takes_its_own_tensorrt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jetson: Any
) -> None:
    """Another in front of it could not use its GPU (docs/jetson.md)."""
    jetson(monkeypatch, tmp_path)
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr("vqedge_runtime.encoders.providers.missing_gpu", lambda: None)
    monkeypatch.setattr("vqedge_runtime.encoders.providers.find_spec", lambda _: None)
    monkeypatch.setattr("vqedge_export.targets.find_spec", lambda _: None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setattr(doctor, "_version", lambda _: None)
    told = [line.fix for line in doctor._libraries(None) if line.check == "tensorrt"]
    for call in (
        lambda: require_backend("tensorrt"),
        lambda: tensorrt_module("tensorrt"),
        lambda: require_installed([TARGETS["tensorrt"]]),
    ):
        with pytest.raises(BackendUnavailable) as caught:
            call()
        told.append(str(caught.value))
    assert len(told) == 4
    assert all("--system-site-packages" in line and "pip" not in line for line in told), told


@pytest.mark.parametrize("gpu", [True, False])
def test_an_engine_backend_is_found_only_where_there_is_a_gpu_for_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: bool
) -> None:
    providers = "vqedge_runtime.encoders.providers"
    monkeypatch.setattr(f"{providers}.has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(f"{providers}.installed_driver", lambda: (12, 6))
    monkeypatch.setattr(f"{providers}.find_spec", lambda _: "installed")
    told = {line.check: line for line in lines(doctor._backends, tmp_path / "none.vqedge")}
    for name in FLAVOURS:
        line = told[f"encoder {name}"]
        found = "found" if gpu else "missing: no NVIDIA GPU here"
        assert (line.ok, line.found, line.fix) == (gpu, found, "")
    assert told["encoder onnxruntime"].ok


@pytest.fixture
def flavours(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The TensorRT that are installed, to be filled."""
    installed: list[str] = []
    monkeypatch.setattr(doctor, "_flavours", lambda: installed)
    return installed


def lines(check: Any, bundle: Path | None = None) -> list[Finding]:
    """A check's lines; none of them may make the doctor fail."""
    found = list(check(bundle))
    assert not any(line.required for line in found)
    return found


def test_the_driver_is_told_with_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(compute_capability="8.7", driver_version=(12, 6))
    monkeypatch.setattr(doctor, "Cuda", lambda: gpu)
    (line,) = lines(doctor._nvidia_driver)
    assert line.ok and line.found == "CUDA 12.6, a GPU of SM 8.7"


def test_no_driver_is_told_only_where_a_tensorrt_waits_for_it(
    monkeypatch: pytest.MonkeyPatch, flavours: list[str]
) -> None:
    monkeypatch.setattr(doctor, "Cuda", raising("no NVIDIA driver; install one"))
    assert not lines(doctor._nvidia_driver)
    flavours.append("tensorrt-rtx")
    for told in ("install one", "install one, or use --backend auto"):
        monkeypatch.setattr(doctor, "Cuda", raising(f"no NVIDIA driver; {told}"))
        (line,) = lines(doctor._nvidia_driver)
        assert (line.ok, line.found, line.fix) == (False, "no NVIDIA driver", "install one")


def test_the_plugins_tools_are_told_where_a_tensorrt_takes_it(
    monkeypatch: pytest.MonkeyPatch, flavours: list[str]
) -> None:
    tools = SimpleNamespace(version="10.3.0.26"), SimpleNamespace(version="12.6.85"), (87,)
    monkeypatch.setattr(TOOLS, lambda: tools)
    flavours.append("tensorrt-rtx")
    assert not lines(doctor._plugin), "it has no plugins"
    flavours.append("tensorrt")
    (line,) = lines(doctor._plugin)
    assert line.ok and line.found == "nvcc 12.6.85 for SM 87, headers of TensorRT 10.3.0.26"
    monkeypatch.setattr(TOOLS, raising("no CUDA compiler. Fix: install the CUDA toolkit"))
    (line,) = lines(doctor._plugin)
    assert (line.ok, line.found) == (False, "no CUDA compiler.")
    assert line.fix == "install the CUDA toolkit"


def test_the_bundles_engine_is_told_or_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, flavours: list[str], tmp_path: Path
) -> None:
    bundle = write_bundle(tmp_path / "tiny.vqedge").root
    assert not lines(doctor._engine, bundle), "no TensorRT"
    flavours.append("tensorrt")
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: False)
    assert not lines(doctor._engine, bundle), "no GPU to run one"
    monkeypatch.setattr(doctor, "has_nvidia_gpu", lambda: True)
    (line,) = lines(doctor._engine, bundle)
    assert not line.ok and "holds no engine of tensorrt" in line.found
    assert line.fix == f"vqedge build {bundle} --target tensorrt"
    monkeypatch.setattr(ENGINE, raising("made for SM 8.6; run: vqedge build it"))
    (line,) = lines(doctor._engine, bundle)
    assert (line.found, line.fix) == ("made for SM 8.6", "vqedge build it")
    monkeypatch.setattr(ENGINE, raising("no NVIDIA driver; install one"))
    (line,) = lines(doctor._engine, bundle)
    assert (line.found, line.fix) == ("no NVIDIA driver", "install one")
    monkeypatch.setattr(ENGINE, lambda *_: SimpleNamespace(file="engines/a.engine"))
    (line,) = lines(doctor._engine, bundle)
    assert line.ok and line.found == "engines/a.engine"
    assert not lines(doctor._engine, tmp_path / "none.vqedge")


def test_the_fix_of_a_damaged_bundle_replaces_that_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no clone, too: a device has a wheel and the bundle."""
    monkeypatch.chdir(tmp_path)
    clone = "in a clone of the repository: "
    for name in ("tiny.vqedge", "my own.vqedge"):
        root = tmp_path / name
        (line,) = doctor._bundle(root)
        made = shlex.join(["vqedge", "assemble", "models/tiny", "-o", str(root)])
        assert line.fix == f"copy a bundle here and name it, or {clone}{made}"
        with monkeypatch.context() as patch:
            patch.chdir(Path(__file__).parents[2])
            (line,) = doctor._bundle(root)
        assert line.fix == made
        write_bundle(root)
        (line,) = doctor._bundle(root)
        assert line.ok
        (root / "encoder.onnx").write_bytes(b"damaged")
        (line,) = doctor._bundle(root)
        again = f"make it {clone}{made} --overwrite" if name == "tiny.vqedge" else "export it again"
        assert line.fix == f"copy the bundle again, or {again}"
    (tmp_path / "clip.mp4").touch()
    for other in (tmp_path, tmp_path / "clip.mp4"):  # --overwrite would be refused
        (line,) = doctor._bundle(other)
        assert line.fix.endswith("models/tiny -o NAME.vqedge")


def test_a_bundles_language_model_is_tried_whatever_is_wrong_with_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "cached", lambda _: None)
    root = write_bundle(tmp_path / "tiny.vqedge").root
    (root / "encoder.onnx").unlink()
    assert doctor._some_gguf(root) == root / "llm.gguf"
    (root / "llm.gguf").write_bytes(b"GGUF")
    assert doctor._some_gguf(root) is None
    (root / "llm.gguf").unlink()
    assert doctor._some_gguf(root) is None


@pytest.mark.parametrize(
    ("check", "broken", "required"),
    [
        (doctor._openvino, "vqedge.commands.doctor._version", False),
        (doctor._backends, "vqedge.commands.doctor.open_bundle", False),
        (doctor._nvidia_driver, "vqedge.commands.doctor.Cuda", False),
        (doctor._disk, "shutil.disk_usage", False),
        (doctor._base_weights, "vqedge.commands.doctor.cached", False),
        (doctor._bundle, "vqedge.commands.doctor.open_bundle", True),
        (doctor._video, "vqedge.data.demo.write_demo", True),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_check_that_fails_itself_fails_the_doctor_only_if_answers_need_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, check: Any, broken: str, required: bool
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(broken, fails)
    *_, line = doctor._findings(check, tmp_path / "a.vqedge")
    assert (line.found, line.ok, line.required) == ("RuntimeError: broken", False, required)


@pytest.mark.parametrize(
    ("error", "tried", "fix"),
    [
        (OSError(errno.ENOSPC, "No space left", "doctor.mp4"), False, "set TMPDIR"),
        (VideoError("doctor.mp4: is damaged"), True, "--force-reinstall"),
        (OSError(errno.EINVAL, "Invalid argument", "doctor.mp4"), True, "--force-reinstall"),
    ],
)
def test_a_clip_that_cannot_be_written_is_no_fault_of_pyav(
    monkeypatch: pytest.MonkeyPatch, error: Exception, tried: bool, fix: str
) -> None:
    def fails(_: Path) -> None:
        raise error

    monkeypatch.setattr("vqedge.data.demo.write_demo", fails)
    (line,) = doctor._video(None)
    assert (line.ok, line.required, line.found) == (False, tried, str(error))
    assert fix in line.fix


def test_the_disk_of_a_cache_that_cannot_be_looked_into_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VQEDGE_CACHE", str(tmp_path / ("a" * 300)))
    (line,) = doctor._findings(doctor._disk, None)
    assert line.found.endswith(" GB free")


@pytest.mark.parametrize(("free", "told"), [(0.9e9, "0.9 GB free"), (12e9, "12.0 GB free")])
def test_a_full_disk_is_told_where_answering_needs_no_room(
    monkeypatch: pytest.MonkeyPatch, free: float, told: str
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    (line,) = lines(doctor._disk)
    assert (line.ok, line.found) == (free >= 1e9, told)
    assert line.needed == ">= 1 GB, to fetch or assemble"
