"""The kernel compiled for this machine's GPU, and a table of what was compared."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from gpu_table import Table

from vqedge.errors import BackendUnavailable
from vqedge.model.nearest_codebook_cuda import Kernel
from vqedge_export.tensorrt.plugin_build import kernel_library

_TABLE = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    """Built anew each session, whose cache is empty."""
    index = "VQEDGE_TORCH_INDEX=URL, the one that pytorch.org gives for this CUDA,"
    if torch.version.cuda is None:
        pytest.skip(
            f"PyTorch {torch.__version__} is built for the CPU; {index} brings one for GPUs"
        )
    with warnings.catch_warnings(record=True) as told:  # that the driver is too old is a warning
        warnings.simplefilter("always")
        sees_gpu = torch.cuda.is_available()
    if not sees_gpu:
        why = f": {told[0].message}; {index} brings one for this driver" if told else ""
        pytest.skip(f"PyTorch {torch.__version__} sees no NVIDIA GPU{why}")
    try:
        library = kernel_library()
    except BackendUnavailable as error:  # no compiler
        pytest.skip(str(error))
    return Kernel(library)  # what was just compiled has to load


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    """Rows put here are printed at the end of the run."""
    yield request.config.stash.setdefault(_TABLE, Table())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    table = config.stash.get(_TABLE, None)
    if table is not None and table.rows:
        terminalreporter.section(f"NearestCodebook on {torch.cuda.get_device_name()}")
        terminalreporter.write_line(table.text())
