"""The libraries of ONNX Runtime's providers for GPUs: loaded before a session, named where missing.

ONNX Runtime's own loading is replaced: whether it helps, a machine with a GPU would show.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from vqedge.errors import BackendUnavailable
from vqedge_runtime.encoders import gpu_libraries, ort
from vqedge_runtime.encoders.providers import PROVIDERS


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, own_cache: Path) -> Iterator[list[str]]:
    """What happened, in order, on a machine whose providers start."""
    happened: list[str] = []

    class Session:
        def __init__(self, _: str, __: Any, providers: list[Any], **___: Any) -> None:
            happened.append("session")
            self._names = [name for name, _ in providers]

        def get_providers(self) -> list[str]:
            return self._names

    def module(name: str) -> None:
        happened.append(name)
        raise BackendUnavailable(f"{name} cannot be loaded")

    names = [provider.name for provider in PROVIDERS.values()]
    monkeypatch.setattr(ort.ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort.ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "_facts", lambda *_: [])  # of a GPU
    monkeypatch.setattr(gpu_libraries, "tensorrt_module", module)
    monkeypatch.setattr(ort.ort, "preload_dlls", partial(happened.append, "CUDA"), raising=False)
    gpu_libraries._load_cuda.cache_clear()
    yield happened
    gpu_libraries._load_cuda.cache_clear()


def opened(label: str) -> None:
    ort.open_session(Path("encoder.onnx"), 1, PROVIDERS[label])


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ("CPU", ["session", "session"]),
        ("CUDA", ["CUDA", "session", "session"]),
        ("TensorRT", ["CUDA", "tensorrt", "session", "tensorrt", "session"]),
    ],
)
def test_a_providers_libraries_are_loaded_before_its_session(
    loaded: list[str], label: str, wanted: list[str]
) -> None:
    """CUDA's once; TensorRT's by a module, which may be missing where the system has them."""
    opened(label)
    opened(label)
    assert loaded == wanted


def test_an_onnx_runtime_that_cannot_load_them_looks_for_them_itself(
    loaded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(ort.ort, "preload_dlls")
    opened("CUDA")
    assert loaded == ["session"]


def test_what_onnx_runtime_prints_is_logged_and_what_other_threads_print_is_printed(
    loaded: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def loads() -> None:
        print("Failed to load libcublas.so.13")
        answering = Thread(target=lambda: print('{"answer": "red"}', flush=True))
        answering.start()
        answering.join()

    monkeypatch.setattr(ort.ort, "preload_dlls", loads)
    with caplog.at_level(logging.INFO):
        opened("CUDA")
    assert capsys.readouterr().out == '{"answer": "red"}\n'
    assert "onnxruntime: Failed to load libcublas.so.13" in caplog.messages


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file by which an ONNX Runtime for CUDA 13 tells what it was linked with."""
    monkeypatch.setattr(ort.ort, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(ort.ort, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(gpu_libraries, "installed_driver", lambda: (13, 0))
    (tmp_path / "capi").mkdir()
    return tmp_path / "capi" / "libonnxruntime_providers_tensorrt.so"


LINKED = b"\0libcudart.so.13\0libcudnn.so.9\0libnvinfer.so.10\0libnvonnxparser.so.10\0"
EXTRAS = "'onnxruntime-gpu[cuda,cudnn]>=1.21'"


@pytest.mark.parametrize(
    ("label", "linked", "needed"),
    [
        ("CUDA", LINKED, f"CUDA 13, cuDNN 9 (pip install {EXTRAS})"),
        ("CUDA", None, f"CUDA 13, cuDNN (pip install {EXTRAS})"),
        (
            "TensorRT",
            LINKED,
            f"CUDA 13, cuDNN 9, TensorRT 10 (pip install {EXTRAS} 'tensorrt-cu13==10.*')",
        ),
    ],
)
def test_a_provider_that_does_not_start_names_the_libraries_it_was_built_for(
    built: Path, label: str, linked: bytes | None, needed: str
) -> None:
    if linked is not None:
        built.write_bytes(linked)
    refused = str(ort._refusal(Path("encoder.onnx"), PROVIDERS[label], "it failed"))
    start = f"onnxruntime {label} does not start on this machine (it failed); "
    advised = f"check the driver and the libraries of {needed}, or use --backend auto"
    assert refused == start + advised


def test_a_driver_older_than_onnx_runtimes_cuda_is_said(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_libraries, "installed_driver", lambda: (12, 6))
    told = gpu_libraries.advice(PROVIDERS["CUDA"])
    assert told.startswith("it was built for CUDA 13, and the driver knows 12.6: update the driver")


def test_the_plugin_brings_its_own() -> None:
    assert gpu_libraries.advice(PROVIDERS["TensorRT-RTX"]) == "check the driver and its libraries"
