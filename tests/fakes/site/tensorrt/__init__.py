"""`import tensorrt` in a building process under test: FAKE_TENSORRT says version and mischief."""

from __future__ import annotations

import os
import signal
import sys

from fake_tensorrt import FakeTensorRT

_version, _, _mischief = os.environ["FAKE_TENSORRT"].partition(" ")
if _mischief == "missing":
    raise ImportError("libnvinfer.so.10: cannot open shared object file")
_fake = FakeTensorRT(_version, rtx=__name__ == "tensorrt_rtx")
if _mischief == "abort":
    print("Assertion failed: kernel\nsecond line", file=sys.stderr, flush=True)
    _fake.dies_now_if_told = lambda: os.kill(os.getpid(), signal.SIGABRT)
sys.modules[__name__] = _fake  # type: ignore[assignment]
