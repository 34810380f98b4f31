"""The ctypes layer over the CUDA driver, against a driver that records its calls."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import pytest

from vqedge.cuda import _SIGNATURES, Cuda, has_nvidia_gpu, installed_driver
from vqedge.errors import BackendUnavailable

HANDLE = 0x7F00_1234_5678  # over 32 bits: a cut handle would show


class FakeDriver:
    """C functions made of Python ones: arguments pass through ctypes both ways, as with libcuda."""

    def __init__(self, **failing: int) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.current: int | None = None  # the calling thread's context
        for name, types in _SIGNATURES.items():
            work = self._work(name, failing.get(name, 0))
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *types)(work))

    def _work(self, name: str, status: int) -> Any:
        def work(*arguments: Any) -> int:
            plain = tuple(item for item in arguments if not hasattr(item, "contents"))
            self.calls.append((name, plain))
            if name == "cuCtxSetCurrent":
                (self.current,) = plain
            for item in arguments:
                if status == 0 and hasattr(item, "contents"):
                    item[0] = self._result(name, plain)
            return status

        return work

    def _result(self, name: str, arguments: tuple[Any, ...]) -> Any:
        if name == "cuGetErrorName":
            return b"CUDA_ERROR_OUT_OF_MEMORY"
        if name == "cuDeviceGetAttribute":
            return {75: 8, 76: 7}[arguments[0]]
        if name == "cuDriverGetVersion":
            return 12060
        if name == "cuDeviceGetName":
            return b"G"
        if name == "cuCtxGetCurrent":
            return self.current
        return 0 if name == "cuDeviceGet" else HANDLE


def test_the_compute_capability_is_read_from_two_attributes() -> None:
    assert Cuda(FakeDriver()).compute_capability == "8.7"


def test_the_driver_says_the_newest_cuda_that_it_knows() -> None:
    assert Cuda(FakeDriver()).driver_version == (12, 6)


def test_the_driver_tells_its_version_before_it_is_woken() -> None:
    driver = FakeDriver()
    assert installed_driver(driver) == (12, 6)
    assert [name for name, _ in driver.calls] == ["cuDriverGetVersion"]
    assert installed_driver(FakeDriver(cuDriverGetVersion=34)) is None, "a stub of the library"


@pytest.mark.parametrize(("files", "driver"), [([], None), (["/dev/nvidia0"], None), ([], (13, 0))])
def test_a_gpu_is_told_by_its_files_or_in_wsl_by_its_driver(
    monkeypatch: pytest.MonkeyPatch, files: list[str], driver: tuple[int, int] | None
) -> None:
    monkeypatch.setattr("vqedge.cuda.nvidia_device_files", lambda: files)
    monkeypatch.setattr("vqedge.cuda.installed_driver", lambda: driver)
    assert has_nvidia_gpu() == bool(files or driver)


def test_kernels_are_made_for_a_model_of_gpu_and_a_driver() -> None:
    assert Cuda(FakeDriver()).identity == "G, SM 8.7, CUDA 12.6"


def test_handles_keep_their_64_bits() -> None:
    cuda = Cuda(FakeDriver())
    cuda.use()
    assert cuda.new_stream() == HANDLE
    assert cuda.new_device_memory(10) == HANDLE
    assert cuda.new_pinned_memory(10) == HANDLE
    assert cuda.end_capture(HANDLE) == HANDLE


def test_a_context_is_retained_once_and_released_once() -> None:
    driver = FakeDriver()
    cuda = Cuda(driver)
    cuda.use()
    cuda.use()
    cuda.close()
    cuda.close()
    names = [name for name, _ in driver.calls]
    assert names.count("cuDevicePrimaryCtxRetain") == 1
    assert names.count("cuDevicePrimaryCtxRelease_v2") == 1


@pytest.mark.parametrize("others", [None, HANDLE + 1])
def test_a_released_context_is_no_longer_the_threads_and_anothers_stays(others: int | None) -> None:
    """The driver leaves it there, and what comes next in this thread would fail."""
    driver = FakeDriver()
    cuda = Cuda(driver)
    cuda.use()
    assert driver.current == HANDLE
    driver.current = others or HANDLE
    cuda.close()
    assert driver.current == others
    assert driver.calls[-1][0] == "cuDevicePrimaryCtxRelease_v2"


def test_a_captured_graph_is_freed_even_if_it_cannot_be_instantiated() -> None:
    driver = FakeDriver(cuGraphInstantiateWithFlags=2)
    with pytest.raises(BackendUnavailable, match="cuGraphInstantiateWithFlags failed with"):
        Cuda(driver).end_capture(HANDLE)
    assert [name for name, _ in driver.calls][-1] == "cuGraphDestroy"


def test_copies_name_their_arguments_in_the_drivers_order() -> None:
    driver = FakeDriver()
    cuda = Cuda(driver)
    cuda.copy_to_device(device=1, host=2, size_bytes=3, stream=4)
    cuda.copy_to_host(host=1, device=2, size_bytes=3, stream=4)
    assert driver.calls[-2:] == [
        ("cuMemcpyHtoDAsync_v2", (1, 2, 3, 4)),
        ("cuMemcpyDtoHAsync_v2", (1, 2, 3, 4)),
    ]


def test_an_error_is_one_line_with_the_drivers_own_name_for_it() -> None:
    cuda = Cuda(FakeDriver(cuMemAlloc_v2=2))
    with pytest.raises(BackendUnavailable) as caught:
        cuda.new_device_memory(1 << 40)
    assert "cuMemAlloc_v2 failed with CUDA_ERROR_OUT_OF_MEMORY" in str(caught.value)
    assert str(caught.value).endswith("or use --backend auto")
    with pytest.raises(BackendUnavailable, match="cuInit failed with error 100"):
        Cuda(FakeDriver(cuInit=100, cuGetErrorName=1))


def test_a_machine_without_a_driver_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(sys.modules["vqedge.cuda"].ctypes, "CDLL", missing)
    with pytest.raises(BackendUnavailable, match=r"no NVIDIA driver .* use --backend auto$"):
        Cuda()
    assert installed_driver() is None


def test_a_driver_from_before_graphs_is_too_old() -> None:
    driver = FakeDriver()
    del driver.cuGraphInstantiateWithFlags  # type: ignore[attr-defined]
    with pytest.raises(
        BackendUnavailable, match=r"no cuGraphInstantiateWithFlags; .* --backend auto$"
    ):
        Cuda(driver)
