"""The processor: its name, and how many of its cores this process may use."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from pathlib import Path


def usable_cores() -> int:
    """Cores of this process's affinity mask where the system has one, else all of them."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """The processor's name where the system tells it, else its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
