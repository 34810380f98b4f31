"""Does llama.cpp run here? One answer from a GGUF file in a process of its own.

A build that does not fit the CPU dies from a signal: SIGSEGV with AMX, SIGILL with an instruction
set that is not there. Here that is a result, not the end of the caller.

    python -m vqedge_runtime.llm.probe LLM.gguf
"""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqedge.errors import BackendUnavailable, VqedgeError
from vqedge.modules import module_command
from vqedge_runtime.llm import DecodingOptions, VideoRows, open_llama_cpp
from vqedge_runtime.llm.build_flags import pip_line

_BAD_FILE, _BAD_BUILD = 3, 4  # exit codes; Python itself ends with 1 or 2


@dataclass(frozen=True)
class ProbeResult:
    """How the trial ended.

    Attributes:
        ok: the model answered.
        detail: what ran, or what went wrong.
        signal: the signal that killed it, as "SIGSEGV", else None.
        fix: what to do about it, empty if ok.
    """

    ok: bool
    detail: str
    signal: str | None = None
    fix: str = ""


def probe_decode(path: Path, timeout_s: float = 120.0) -> ProbeResult:
    """Let a GGUF file answer in a subprocess.

    Args:
        path: the file.
        timeout_s: give up after this long.
    """
    try:
        run = subprocess.run(
            module_command(__name__, str(path)),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        detail = f"no answer in {timeout_s:g} s"
        return ProbeResult(False, detail, fix="try again when less is running, or a smaller model")
    if run.returncode == 0:
        return ProbeResult(True, run.stdout.strip())
    return _failure(run.returncode, run.stderr.strip(), path)


def _failure(code: int, complaint: str, path: Path) -> ProbeResult:
    """What a process that ended with this code says about build and file."""
    name = _signal_name(-code)
    last = complaint.splitlines()[-1] if complaint else f"exit code {code}"
    detail = f"llama.cpp died from {name}" if name else last
    if name == "SIGKILL":
        return ProbeResult(False, detail, name, "out of memory, likely: try a smaller model")
    if name == "SIGABRT" or code == _BAD_FILE:
        return ProbeResult(False, detail, name, f"export or fetch {path.name} again")
    return ProbeResult(False, detail, name, f"build llama.cpp for this CPU: {pip_line()}")


def _signal_name(number: int) -> str | None:
    try:
        return signal.Signals(number).name
    except ValueError:
        return None


def _answer_once(path: Path) -> str:
    """Read rows and text, generate, and say what ran."""
    with open_llama_cpp(path, threads=1, context=256) as llm:
        rows = np.full((32, llm.width), 0.01, np.float32)
        llm.ask(VideoRows(rows), "Is anything moving?", DecodingOptions(max_tokens=2))
        return llm.name


def _main(arguments: list[str]) -> int:
    try:
        sys.stdout.write(_answer_once(Path(arguments[0])) + "\n")
    except VqedgeError as error:
        sys.stderr.write(f"{error}\n")
        return _BAD_BUILD if isinstance(error, BackendUnavailable) else _BAD_FILE
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
