"""`vqedge inspect` of files that nothing has to run."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data
from safetensors.numpy import save_file
from tiny_bundle import write_bundle

import vqedge.commands.inspect as command
from vqedge.bundle import rewritten
from vqedge.commands.inspect import facts_of
from vqedge.errors import BundleError, CheckpointError


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """A plugin's node, and weights in a file that is not there."""
    weights = helper.make_tensor("w", TensorProto.FLOAT, [2], bytes(8), raw=True)
    set_external_data(weights, "none.bin")
    weights.ClearField("raw_data")
    nodes = [
        helper.make_node("NearestCodebook", ["x", "w"], ["ids"], domain="vqedge"),
        helper.make_node("Cast", ["ids"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["y"], to=TensorProto.INT64),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["clips", 2, None])
    y = helper.make_tensor_value_info("y", TensorProto.INT64, [])
    other = helper.make_tensor("b", TensorProto.FLOAT, [1], [0.0])
    whole = helper.make_graph(nodes, "g", [x], [y], [weights, other])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("vqedge", 1)]
    model = helper.make_model(whole, opset_imports=opsets)
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "a.onnx"


def test_a_graph_that_nothing_here_can_run(graph: Path) -> None:
    assert facts_of(graph) == (
        "onnx",
        {
            "inputs": [{"name": "x", "type": "tensor(uint8)", "shape": ["clips", 2, None]}],
            "outputs": [{"name": "y", "type": "tensor(int64)", "shape": []}],
            "opsets": {"ai.onnx": 18, "vqedge": 1},
            "operators": {"Cast": 2, "vqedge::NearestCodebook": 1},
            "weights": 2,
            "weights_elsewhere": 1,
        },
    )


@pytest.mark.parametrize("content", [b"", b"no graph"])
def test_a_file_that_is_no_graph(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(BundleError, match="not a readable ONNX file"):
        facts_of(tmp_path / "a.onnx")


def test_without_onnx_its_runtime_is_asked(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    value = SimpleNamespace(name="x", type="tensor(uint8)", shape=[1])
    session = SimpleNamespace(get_inputs=lambda: [value], get_outputs=list)
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: session)
    found = {"inputs": [{"name": "x", "type": "tensor(uint8)", "shape": [1]}], "outputs": []}
    assert facts_of(graph) == ("onnx", found)

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(BundleError, match=r"cannot load it \(RuntimeError\); install onnx"):
        facts_of(graph)


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"b": np.zeros((2, 3), np.float16), "a": np.zeros(4, np.int64)}, path)
    kind, facts = facts_of(path)
    assert kind == "safetensors"
    assert sorted(facts["tensors"], key=lambda item: str(item["name"])) == [
        {"name": "a", "type": "I64", "shape": [4]},
        {"name": "b", "type": "F16", "shape": [2, 3]},
    ]
    path.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        facts_of(path)


@pytest.mark.parametrize("as_json", [True, False])
def test_a_report_that_can_be_read_and_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    (tmp_path / "config.json").write_text("[[]]")

    def too_deep(*_: object, **__: object) -> None:
        raise RecursionError  # at which depth depends on Python's version

    monkeypatch.setattr(command, "json_result" if as_json else "result", too_deep)
    with pytest.raises(BundleError, match=f"^{tmp_path}: nested too deeply; make it again"):
        command.run_inspect(tmp_path, as_json=as_json)


NOT_JSON = {
    "cut off": b"{",
    "not UTF-8": b'{"a": "\xff"}',
    "deep": b"[" * 100_000,
    "twice": b'{"a": 1, "a": 1}',
}


@pytest.mark.parametrize("kind", NOT_JSON)
def test_a_parity_report_that_is_not_json(tmp_path: Path, kind: str) -> None:
    bundle = write_bundle(tmp_path / "tiny.vqedge")
    rewritten(bundle, {"parity.json": NOT_JSON[kind]})
    with pytest.raises(BundleError, match=f"^{bundle.root / 'parity.json'}: not JSON"):
        facts_of(bundle.root)


def test_the_files_of_a_checkpoint_are_those_that_it_is_made_of(tmp_path: Path) -> None:
    for name in ("config.json", ".lock", ".vqedge-0123.tmp"):
        (tmp_path / name).write_text("{}")
    assert facts_of(tmp_path) == ("checkpoint", {"config": {}, "files": {"config.json": 2}})


@pytest.mark.parametrize("kind", NOT_JSON)
@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
def test_a_file_of_a_checkpoint_that_is_not_json(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(NOT_JSON[kind])
    with pytest.raises(CheckpointError, match=f"^{tmp_path / name}: not JSON"):
        facts_of(tmp_path)
