"""The processor: its name, and how many of its cores this process may use."""

from __future__ import annotations

import math
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from vqedge.errors import UsageError

MOST_THREADS: Final = 512  # as many as llama.cpp is built for, its GGML_MAX_N_THREADS


def usable_cores() -> int:
    """Cores of this process's affinity mask where the system has one, else all of them.

    No more than the quota of CPU time of a container or service lets run at once: threads beyond it
    would be stopped while others wait for them.
    """
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(cores, quota_cores() or cores)


def check_threads(threads: int | None, name: str = "threads") -> None:
    """Refuse so many threads that they bring a machine down, or none; None is nobody's wish.

    Args:
        threads: that somebody asks for.
        name: of the option that says so.

    Raises:
        UsageError: so.
    """
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise UsageError(f"{name} {threads}: give 1 to {MOST_THREADS}, or leave it out")


def quota_cores(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> int | None:
    """Cores that the smallest quota amounts to, rounded up; None where there is none.

    Args:
        root: of the control groups.
        own: the file that says in which of them this process is; those above it count as well.
    """
    if quotas := [cores for group in _groups(root, own) if (cores := _quota_of(group))]:
        return min(quotas)
    with suppress(OSError, ValueError):  # the first version of control groups
        files = [root / "cpu" / f"cpu.cfs_{name}_us" for name in ("quota", "period")]
        limit, period_us = (int(file.read_text(encoding="utf-8")) for file in files)
        return max(1, math.ceil(limit / period_us)) if limit > 0 else None
    return None


def _groups(root: Path, own: Path) -> list[Path]:
    """The folder of this process's control group and those above it, of the second version."""
    path = Path()
    with suppress(OSError, UnicodeDecodeError):
        for line in own.read_text(encoding="utf-8").splitlines():
            if line.startswith("0::/") and ".." not in line:  # ..: outside of what it may see
                path = Path(line.removeprefix("0::/"))
    return [root / path, *(root / parent for parent in path.parents)]


def _quota_of(group: Path) -> int | None:
    with suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
    return None


def processor_name() -> str:
    """The processor's name where the system tells it, else its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
