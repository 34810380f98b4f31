"""Files whose names are beyond ASCII, and a locale that is not of UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from vqedge.errors import BundleError
from vqedge_runtime.encoders.ort import open_session

OPENING = """
import sys
from pathlib import Path
from vqedge_runtime.encoders.ort import open_session
print(open_session(Path(sys.argv[1]), 1).get_inputs()[0].name)
"""


def graph_in(folder: str | bytes, tmp_path: Path) -> Path:
    value = helper.make_tensor_value_info("frames", TensorProto.UINT8, [1])
    graph = helper.make_graph([], "none", [value], [value])
    opset = [helper.make_opsetid("", 17)]
    path = tmp_path / os.fsdecode(folder) / "encoder.onnx"
    path.parent.mkdir()
    path.write_bytes(
        helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
    )
    return path


@pytest.mark.parametrize("folder", ["plain", "dír 视频"])
def test_a_file_is_opened_whatever_the_locale_is(tmp_path: Path, folder: str) -> None:
    """In ASCII's, Python has other letters for the bytes of a name."""
    env = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-X", "utf8=0", "-c", OPENING, str(graph_in(folder, tmp_path))]
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout) == (0, "frames\n"), found.stderr


def test_a_name_that_is_not_utf8_is_told(tmp_path: Path) -> None:
    path = graph_in(b"d\xedr", tmp_path)
    with pytest.raises(BundleError, match=r"its name is not UTF-8.*; rename the folder"):
        open_session(path, 1)
