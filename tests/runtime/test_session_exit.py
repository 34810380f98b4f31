"""How a process ends in which a thread encodes that nobody waits for, and one that it forked."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tiny_bundle import write_bundle

SCRIPT = """
import os, sys, threading, time
from pathlib import Path
import numpy as np
from vqedge.bundle import open_bundle
from vqedge_runtime import VideoQA
from vqedge_runtime.bridge.fake import FakeBridge
from vqedge_runtime.encoders.fake import FakeEncoder
from vqedge_runtime.llm import FakeLanguageModel

def told(text):
    os.write(1, (text + "\\n").encode())

class Slow(FakeEncoder):
    def encode(self, *args):
        began.set()
        time.sleep(0.3)
        told("encoded")
        return super().encode(*args)

    def close(self):
        told("closed")

def opens():
    began.set()
    time.sleep(600)

began = threading.Event()
manifest = open_bundle(Path(sys.argv[1])).manifest
slow = opens if sys.argv[2] == "opening" else Slow(32, 576)
qa = VideoQA(slow, FakeBridge(576), FakeLanguageModel(), manifest)
frames = np.zeros((8, 224, 224, 3), np.uint8)
threading.Thread(target=qa.encode_frames, args=(frames,), daemon=True).start()
began.wait()
if sys.argv[2] == "forked" and (child := os.fork()):  # which has the lock, and not its thread
    os.waitpid(child, 0)
    told("waited")
    os._exit(0)
"""


def told_by(tmp_path: Path, how: str) -> list[str]:
    bundle = write_bundle(tmp_path / "tiny.vqedge").root
    command = [sys.executable, "-c", SCRIPT, str(bundle), how]
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return done.stdout.split()


def test_the_encoder_is_closed_when_the_thread_is_done(tmp_path: Path) -> None:
    assert told_by(tmp_path, "alone") == ["encoded", "closed"]


def test_nobody_waits_for_an_encoder_that_is_being_opened(tmp_path: Path) -> None:
    assert told_by(tmp_path, "opening") == []


def test_a_forked_process_waits_for_no_thread_that_stayed_behind(tmp_path: Path) -> None:
    assert "waited" in told_by(tmp_path, "forked")
