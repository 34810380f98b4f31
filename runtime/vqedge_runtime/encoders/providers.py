"""The execution providers of ONNX Runtime: what each needs, and whether it is here."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from vqedge.cuda import has_nvidia_gpu, installed_driver
from vqedge.errors import first_line
from vqedge.packages import install_line, pip_command
from vqedge.tensorrt import TF32_VARIABLE
from vqedge_runtime.encoders.protocol import Missing

_PACKAGES = (  # that run encoders
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "onnxruntime-ep-nv-tensorrt-rtx-cu12",
    "openvino",
    "tensorrt",
    "tensorrt-cu12",
    "tensorrt-cu13",
    "tensorrt-rtx",
    "tensorrt-rtx-cu12",
    "tensorrt-rtx-cu13",
)


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        label: where it runs, for people.
        name: ONNX Runtime's name of it.
        installs: what pip is told, to bring it beside ONNX Runtime or in its place.
        plugin: the module of its library, where it comes as a package of its own.
        options: what it is told.
        then: labels of those that take the nodes it cannot run, before the CPU does.
        keeping: what it is told besides, to keep what it compiles in a folder.
        may_round: whether it takes TF32 for float32, unless `NVIDIA_TF32_OVERRIDE` forbids that.
        libraries: what it loads that no package of ONNX Runtime's holds.
    """

    label: str
    name: str
    installs: tuple[str, ...] = ()
    plugin: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    then: tuple[str, ...] = ()
    keeping: Callable[[str], dict[str, str]] | None = None
    may_round: bool = False
    libraries: tuple[str, ...] = ()

    @property
    def fix(self) -> str:
        """The commands that bring it; "" where nothing is to be installed."""
        pip = pip_command()
        return " && ".join(f"{pip} install {told}" for told in self.installs)


def _engines_in(folder: str) -> dict[str, str]:
    return {"trt_engine_cache_enable": "True", "trt_engine_cache_path": folder}


def _kernels_in(folder: str) -> dict[str, str]:
    return {"nv_runtime_cache_path": folder}


_WITH_WHEELS = ("x86_64", "AMD64")  # what the packages of GPU providers are made for
CUDA_PACKAGES = "onnxruntime-gpu[cuda,cudnn]>=1.21"
# Its files take the place of onnxruntime's, which stays installed: a line that fails, without a
# wheel or a network, changes nothing, and what requires onnxruntime later does not bring it back.
_GPU_PACKAGE = (f"'{CUDA_PACKAGES}'", "--force-reinstall --no-deps onnxruntime-gpu")
# No ONNX Runtime was built for TensorRT 11, and none for CUDA 13 is there for Python 3.10.
_TENSORRT = f"'tensorrt-cu{12 if sys.version_info < (3, 11) else 13}<11'"
PROVIDERS = {
    row.label: row
    for row in (
        Provider("CPU", "CPUExecutionProvider"),
        Provider(
            "CUDA",
            "CUDAExecutionProvider",
            _GPU_PACKAGE,
            options=(("use_tf32", "0"),),  # on by default; ids are decided in float32
            libraries=("CUDA", "cuDNN"),
        ),
        Provider(
            "TensorRT",
            "TensorrtExecutionProvider",
            (_TENSORRT, *_GPU_PACKAGE),
            then=("CUDA",),
            keeping=_engines_in,
            may_round=True,
            libraries=("CUDA", "cuDNN", "TensorRT"),
        ),
        Provider(
            "TensorRT-RTX",
            "NvTensorRTRTXExecutionProvider",
            ("onnxruntime-ep-nv-tensorrt-rtx",),
            plugin="onnxruntime_ep_nv_tensorrt_rtx",
            keeping=_kernels_in,
            may_round=True,
        ),
    )
}


def installed_versions() -> dict[str, str]:
    """Versions of the packages that run encoders, by name."""
    found = {}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def tf32_setting() -> str:
    """What the environment says of TF32: "0" forbids it, which no option of a provider does.

    It is not set here: engines of this process that were built without it would not run any more.
    """
    return os.environ.get(TF32_VARIABLE, "")


def missing_package(module: str, fix: str) -> Missing | None:
    """Whether a module is installed."""
    return None if find_spec(module) else Missing(f"{module} is not installed", fix)


def missing_provider(label: str) -> Missing | None:
    """Whether ONNX Runtime is here with this provider, and the GPU that it is for."""
    provider = PROVIDERS[label]
    if label != "CPU" and (lacking := missing_gpu()):
        return lacking
    fault = _fault_of_onnxruntime()
    return _lacking(provider) if fault is None else Missing(fault, _fix_with(provider))


def missing_gpu() -> Missing | None:
    """Whether there is a GPU of NVIDIA's with a driver, told without waking it.

    Asked before any package: without them none would help.
    """
    if not has_nvidia_gpu():
        return Missing("no NVIDIA GPU here", "")
    if installed_driver() is None:
        fix = "install NVIDIA's driver, or give it to the container"
        return Missing("no working NVIDIA driver here (libcuda.so.1)", fix)
    return None


def _fault_of_onnxruntime() -> str | None:
    try:
        import_module("onnxruntime").get_available_providers()
    except ModuleNotFoundError:
        return "onnxruntime is not installed"
    except (ImportError, OSError, AttributeError) as error:  # the last: an empty folder
        return f"onnxruntime does not load ({error})"
    return None


def _fix_with(provider: Provider) -> str:
    """What brings ONNX Runtime, with the provider where one package has both."""
    both = platform.machine() in _WITH_WHEELS and not provider.plugin
    return (provider.fix if both else "") or install_line("onnxruntime")


def _lacking(provider: Provider) -> Missing | None:
    """What a provider lacks beside ONNX Runtime."""
    why = _why_missing(provider)
    if why is None:
        return None
    if platform.machine() not in _WITH_WHEELS:
        return Missing(f"{why}, and there is no wheel for {platform.machine()}", "")
    return Missing(why, provider.fix)


def _why_missing(provider: Provider) -> str | None:
    import onnxruntime as ort

    if not provider.plugin:
        found = provider.name in ort.get_available_providers()
        why = f"this onnxruntime {ort.__version__} was built without {provider.name}"
        return None if found else why
    if lacking := missing_package(provider.plugin, provider.fix):
        return lacking.why
    try:
        found = bool(plugin_devices(provider))
    except Exception as error:  # whatever its library or ONNX Runtime raises
        return f"{provider.plugin} does not load ({first_line(error)})"
    return None if found else f"{provider.plugin} finds no device that it supports"


def plugin_devices(provider: Provider) -> list[Any]:
    """The devices that a provider's plugin offers; registers its library with ONNX Runtime."""
    import onnxruntime as ort

    assert provider.plugin
    if not _offered(provider.name):
        library = import_module(provider.plugin).get_library_path()
        ort.register_execution_provider_library(provider.name, library)
    return _offered(provider.name)


def _offered(name: str) -> list[Any]:
    import onnxruntime as ort

    return [device for device in ort.get_ep_devices() if device.ep_name == name]
