"""A graph that takes other frames than the manifest says is refused before any clip is encoded."""

from __future__ import annotations

import re

import pytest
from onnx import TensorProto, helper

from vqedge.bundle import Bundle, rewritten
from vqedge.errors import BundleError
from vqedge_runtime.encoders import open_encoder

SHAPE = (8, 224, 224, 3)


def with_graph(bundle: Bundle, name: str, shape: tuple[int | str, ...]) -> Bundle:
    """A bundle whose encoder is a graph that takes frames and does nothing with them."""
    frames = helper.make_tensor_value_info(name, TensorProto.UINT8, shape)
    told = helper.make_tensor_value_info("index_map", TensorProto.INT64, [4])
    nodes = [helper.make_node("Shape", [name], ["index_map"])]
    graph = helper.make_graph(nodes, "none", [frames], [told])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    return rewritten(bundle, {"encoder.onnx": model.SerializeToString()})


@pytest.mark.parametrize("shape", [SHAPE, ("t", *SHAPE[1:])])
def test_the_manifests_frames_are_taken(bundle: Bundle, shape: tuple[int | str, ...]) -> None:
    open_encoder("onnxruntime", with_graph(bundle, "frames", shape)).close()


OTHERS = {"fewer": (7, *SHAPE[1:]), "larger": (8, 448, 448, 3), "flat": SHAPE[:3]}


@pytest.mark.parametrize("name", OTHERS)
def test_other_frames_are_refused(bundle: Bundle, name: str) -> None:
    shape = OTHERS[name]
    told = rf"encoder\.onnx: its frames are {re.escape(str(shape))}, the manifest says "
    with pytest.raises(BundleError, match=rf"{told}{re.escape(str(SHAPE))}; export again"):
        open_encoder("onnxruntime", with_graph(bundle, "frames", shape))


def test_a_graph_without_frames_is_refused(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"its frames are \(\), the manifest says"):
        open_encoder("onnxruntime", with_graph(bundle, "pictures", SHAPE))
