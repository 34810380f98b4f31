"""Nothing tells anybody that a video was asked about: two libraries would, unless told not to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
import sys
from vqedge_runtime import VideoQA

with VideoQA.open(sys.argv[1], encoder=sys.argv[2]) as qa:
    qa.ask(qa.encode(sys.argv[3]), "What color is the circle?")
"""


@pytest.mark.parametrize("encoder", ["onnxruntime", "openvino"])
def test_an_ask_leaves_no_ids_or_events_at_home(
    encoder: str, bundle: Path, demo_clip: Path, tmp_path: Path
) -> None:
    pytest.importorskip(encoder, reason=f"{encoder} is not installed")
    home, cache = tmp_path / "home", tmp_path / "cache"
    home.mkdir()
    of_others = ("ORT_DISABLE_TELEMETRY", "CI", "TF_BUILD", "JENKINS_URL")  # they keep silent, too
    kept = {name: value for name, value in os.environ.items() if name not in of_others}
    subprocess.run(
        [sys.executable, "-c", ASK, bundle, encoder, demo_clip],
        env=kept | {"HOME": str(home), "XDG_CACHE_HOME": str(home), "VQEDGE_CACHE": str(cache)},
        check=True,
    )
    assert list(home.rglob("*")) == []
