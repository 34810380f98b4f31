"""Models whose weights lie in a file of their own: the same models, in less memory."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vqedge.errors import ExportError
from vqedge_export import light
from vqedge_export.layers import VIT
from vqedge_export.light import light_copy, save_apart


def model_of(weight: np.ndarray) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name=f"{VIT}fc/MatMul")
    row = helper.make_node("Reshape", ["y", "shape"], ["z"])
    graph = helper.make_graph(
        [node, row],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(weight)])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["all"])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([-1]), "shape")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_weights_are_beside_the_model_and_shapes_in_it(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    model = model_of(weight)
    before = model.SerializeToString(deterministic=True)
    apart = save_apart(model, tmp_path / "m.onnx")
    assert model.SerializeToString(deterministic=True) == before
    assert (tmp_path / "m.onnx").stat().st_size < weight.nbytes / 4
    assert (tmp_path / "m.weights").stat().st_size == weight.nbytes
    inside = [item.name for item in apart.graph.initializer if not item.external_data]
    assert inside == ["shape"], "TensorRT and ONNX Runtime read it where they read the graph"
    read = onnx.load(str(tmp_path / "m.onnx"))
    for tensor in read.graph.initializer:
        tensor.ClearField("data_location")  # that it was apart
    assert read.graph == model.graph and read.opset_import == model.opset_import


def test_a_full_disk_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))  # as of a write
    monkeypatch.setattr(light, "_put_apart", full)
    model = model_of(np.zeros((64, 32), np.float32))
    with pytest.raises(ExportError, match=rf"{tmp_path}: the weights, 0 MB, .*No space .*TMPDIR"):
        save_apart(model, tmp_path / "m.onnx")


def test_a_session_outlives_the_file_it_was_opened_from() -> None:
    weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    with light_copy(model_of(weight)) as copy:
        folder, session = copy.path.parent, copy.session()
    assert not folder.exists()
    rows = np.ones((3, 64), np.float32)
    (found,) = session.run(["z"], {"x": rows})
    np.testing.assert_allclose(found, (rows @ weight).ravel(), rtol=1e-4, atol=1e-5)


_MEGABYTES = """
from pathlib import Path
import numpy as np
from onnx import TensorProto, helper, numpy_helper
from vqedge_export.layers import VIT
from vqedge_export.tensorrt.calibration import measured_channels
from vqedge_export.tensorrt.half import halved

def most_megabytes():
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1]
    return int(status.split()[0]) // 1024
"""
_MEASURE = """
LAYERS, ROWS, WIDTH = 40, 32_768, 64  # 8 MB a tensor
names = [f"x{place}" for place in range(LAYERS + 1)]
nodes = [
    helper.make_node("Cast", ["frames"], ["pixels"], to=TensorProto.FLOAT),
    helper.make_node("Reshape", ["pixels", "shape"], ["x0"]),
    *(
        helper.make_node("MatMul", [names[i], "w"], [names[i + 1]], name=f"{VIT}{i}/MatMul")
        for i in range(LAYERS)
    ),
]
inputs = [
    helper.make_tensor_value_info("frames", TensorProto.UINT8, [ROWS * WIDTH]),
    helper.make_tensor_value_info("budget", TensorProto.INT64, []),
]
weights = {"w": np.eye(WIDTH, dtype=np.float32), "shape": np.array([-1, WIDTH])}
tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
output = helper.make_tensor_value_info(names[-1], TensorProto.FLOAT, [ROWS, WIDTH])
graph = helper.make_graph(nodes, "layers", inputs, [output], tensors)
opset = [helper.make_opsetid("", 18)]
model = helper.make_model(graph, opset_imports=opset, ir_version=8)
before = most_megabytes()
found = measured_channels(model, [np.ones(ROWS * WIDTH, np.uint8)])
assert len(found) == LAYERS and all((item.largest == 1).all() for item in found.values())
print(most_megabytes() - before)
"""


_HALVE = """
COUNT, WIDTH = 16, 2048  # 16 MB a weight
nodes = [helper.make_node("Conv", ["pixels", "patch"], ["x0"], name=f"{VIT}patch/Conv")]
for i in range(COUNT):
    nodes.append(helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"{VIT}{i}"))
nodes.append(helper.make_node("Identity", [f"x{COUNT}"], ["features"]))
patch = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "patch")
model = helper.make_model(helper.make_graph(nodes, "layers", [], [], [patch]))
for i in range(COUNT):
    weight = model.graph.initializer.add(
        name=f"w{i}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH]
    )
    weight.raw_data = np.full(WIDTH * WIDTH, i + 1, np.float32).tobytes()
before = most_megabytes()
halved(model)
kinds = {item.data_type for item in model.graph.initializer}
assert kinds == {TensorProto.FLOAT16, TensorProto.INT64}
print(most_megabytes() - before)
"""


def megabytes_of(script: str) -> int:
    """What a script adds to the memory of its process, at most."""
    command = [sys.executable, "-c", _MEGABYTES + script]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    print(f"{run.stdout.strip()} MB")
    return int(run.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells the memory used")
def test_halving_makes_no_second_copy_of_the_weights() -> None:
    """256 MB in float32: their halves, and the same as a part of the model."""
    assert megabytes_of(_HALVE) < 400


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells the memory used")
def test_measuring_layers_keeps_none_of_their_inputs() -> None:
    """All at once are 320 MB here, and 9 GB for a clip of a large tower."""
    assert megabytes_of(_MEASURE) < 160
