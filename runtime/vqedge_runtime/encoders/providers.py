"""The execution providers of ONNX Runtime: what each needs, and whether it is here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from vqedge_runtime.encoders import Missing


@dataclass(frozen=True)
class Provider:
    """One execution provider.

    Attributes:
        label: where it runs, for people.
        name: ONNX Runtime's name of it.
        fix: what to install.
        plugin: the module of its library, where it comes as a package of its own.
        options: what it is told.
        then: labels of those that take the nodes it cannot run, before the CPU does.
    """

    label: str
    name: str
    fix: str
    plugin: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    then: tuple[str, ...] = ()


# both packages own the same files
_GPU_PACKAGE = (
    "pip uninstall -y onnxruntime && pip install --force-reinstall --no-deps onnxruntime-gpu"
)
PROVIDERS = {
    row.label: row
    for row in (
        Provider("CPU", "CPUExecutionProvider", "pip install --force-reinstall onnxruntime"),
        Provider(
            "CUDA",
            "CUDAExecutionProvider",
            _GPU_PACKAGE,
            options=(("use_tf32", "0"),),  # on by default; ids are decided in float32
        ),
        Provider(
            "TensorRT",
            "TensorrtExecutionProvider",
            f"pip install 'vqedge[tensorrt]' && {_GPU_PACKAGE}",
            then=("CUDA",),
        ),
        Provider(
            "TensorRT-RTX",
            "NvTensorRTRTXExecutionProvider",
            "pip install onnxruntime-ep-nv-tensorrt-rtx",
            plugin="onnxruntime_ep_nv_tensorrt_rtx",
        ),
    )
}


def missing_package(module: str, fix: str) -> Missing | None:
    """Whether a module is installed."""
    return None if find_spec(module) else Missing(f"{module} is not installed", fix)


def missing_provider(label: str) -> Missing | None:
    """Whether ONNX Runtime is here with this provider; a GPU is not looked for."""
    provider = PROVIDERS[label]
    try:
        ort = import_module("onnxruntime")
        offered = ort.get_available_providers()
    except ModuleNotFoundError:
        return Missing("onnxruntime is not installed", provider.fix)
    except (ImportError, OSError, AttributeError) as error:  # the last: an empty folder
        return Missing(f"onnxruntime does not load ({error})", provider.fix)
    if provider.plugin and (lacking := missing_package(provider.plugin, provider.fix)):
        return lacking
    if provider.plugin:
        found = bool(plugin_devices(provider))
        why = f"{provider.plugin} finds no device that it supports"
    else:
        found = provider.name in offered
        why = f"this onnxruntime {ort.__version__} was built without {provider.name}"
    return None if found else Missing(why, provider.fix)


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
