"""How much memory a process holds of its own, for tests that leak none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


def anonymous_mb() -> float:
    """Now, not at most, and without mapped files, whose pages come and go; Linux tells it."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("no /proc/self/statm here")
    resident, shared = map(int, statm.read_text().split()[1:3])
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 1e6
