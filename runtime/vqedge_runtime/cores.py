"""How many CPU cores this process may use."""

from __future__ import annotations

import os
import sys


def usable_cores() -> int:
    """Cores of this process's affinity mask where the system has one, else all of them."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
