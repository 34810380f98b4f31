"""Does llama.cpp run here? One answer from a GGUF file in a process of its own.

A build that does not fit the CPU dies from a signal: SIGSEGV with AMX, SIGILL with an instruction
set that is not there. Here that is a result, not the end of the caller.

    python -m vqedge_runtime.llm.probe LLM.gguf
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vqedge.errors import VqedgeError
from vqedge_runtime.llm import DecodingOptions, VideoRows, open_llama_cpp
from vqedge_runtime.llm.build_flags import pip_line


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
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__, str(path)]
    quiet = os.environ | {"GGML_NO_BACKTRACE": "1"}  # or an abort waits for a debugger
    try:
        run = subprocess.run(
            command, env=quiet, capture_output=True, text=True, errors="replace", timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return ProbeResult(
            False, f"no answer in {timeout_s:g} s", fix="try fewer or smaller models at once"
        )
    return _result_from_run(run.returncode, run.stdout.strip(), run.stderr.strip(), path)


def _result_from_run(code: int, said: str, complaint: str, path: Path) -> ProbeResult:
    if code == 0:
        return ProbeResult(True, said)
    last = complaint.splitlines()[-1] if complaint else f"exit code {code}"
    name = _signal_name(-code)
    if name is None and code == 1:
        return ProbeResult(
            False, last, fix=f"export or fetch {path.name} again, then: vqedge doctor"
        )
    detail = f"llama.cpp died from {name}" if name else last
    return ProbeResult(False, detail, name, fix=f"build it for this CPU: {pip_line()}")


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
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
