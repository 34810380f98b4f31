"""`vqedge` in a process of its own, as a user calls it."""

from __future__ import annotations

import subprocess
import sys


def run_vqedge(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Its exit code, stdout and stderr; nothing comes in on stdin."""
    command = [sys.executable, "-m", "vqedge", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
