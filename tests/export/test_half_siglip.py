"""Half precision of a tower without a class token: a tiny SigLIP, to ONNX Runtime and TensorRT."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hf_maker import IMAGE, write_llava

from vqedge.base.weights import encoder_weights
from vqedge.checkpoint import MODEL
from vqedge.model.checkpoint import Checkpoint, open_checkpoint
from vqedge_export.graph import BaseArrays, checkpoint_arrays, copied, filled
from vqedge_export.hf.importing import checkpoint_from_folder
from vqedge_export.onnx_export import stripped_graph
from vqedge_export.records import encoder_record, quantizer_record
from vqedge_export.tensorrt.build import Source, engine_from_onnx
from vqedge_export.tensorrt.options import BuildOptions
from vqedge_export.tensorrt.prepare import engine_outputs, prepare

FRAMES = 4


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("siglip")
    source = write_llava(folder / "source", attention=False)
    made = checkpoint_from_folder(source, folder / "made", mode="codes", frames=FRAMES)
    return open_checkpoint(made.path)


@pytest.fixture(scope="module")
def whole(imported: Checkpoint) -> onnx.ModelProto:
    weights = encoder_weights(imported.config.encoder, imported.path)
    base = BaseArrays(imported.config.encoder.source, weights.path)
    own = checkpoint_arrays(imported.path / MODEL)
    return filled(stripped_graph(imported, weights.path), own, base)


@pytest.fixture(scope="module")
def half(whole: onnx.ModelProto) -> onnx.ModelProto:
    return prepare(copied(whole), "fp16")


def run(model: onnx.ModelProto, budget: int) -> dict[str, Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    frames = np.random.default_rng(1).integers(0, 256, (FRAMES, IMAGE, IMAGE, 3), dtype=np.uint8)
    names = [item.name for item in session.get_outputs()]
    feeds = {"frames": frames, "budget": np.array(budget, np.int64)}
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("budget", [4, 16])
def test_float16_turns_few_ids(whole: onnx.ModelProto, half: onnx.ModelProto, budget: int) -> None:
    wanted, found = run(whole, budget), run(half, budget)
    differs = wanted["index_map"] != found["index_map"]
    print(f"{differs.sum()} of {differs.size} ids differ")
    assert differs.mean() < 0.05
    assert len(np.unique(wanted["index_map"])) == budget, "nothing to compare"
    assert not np.array_equal(wanted["margin"], found["margin"]), "float16 changes something"


def test_the_row_that_comes_and_goes_changes_no_bit(half: onnx.ModelProto) -> None:
    without = copied(half)
    maker = {name: node for node in without.graph.node for name in node.output}
    (pad,) = [node for node in without.graph.node if node.op_type == "Pad"]
    (cut,) = [node for node in without.graph.node if pad.output[0] in node.input]
    (cast,) = [node for node in without.graph.node if cut.output[0] in node.input]
    assert (cut.op_type, cast.op_type) == ("Slice", "Cast")
    assert maker[pad.input[0]].op_type == "Add", "the end of the tower"
    cast.input[0] = pad.input[0]
    wanted, found = run(without, 8), run(half, 8)
    for name, value in wanted.items():
        assert np.array_equal(value, found[name]), name


@pytest.mark.slow
@pytest.mark.tensorrt
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt-rtx-cu13 is not installed (Linux x86-64 has it in the dev extra)",
)
def test_tensorrt_rtx_builds_it_in_float16(
    imported: Checkpoint, whole: onnx.ModelProto, tmp_path: Path, own_cache: Path
) -> None:
    path = tmp_path / "encoder.onnx"
    onnx.save(whole, path)
    encoder = encoder_record(whole, imported.config, path.name)
    own = checkpoint_arrays(imported.path / MODEL)
    source = Source(path, encoder, quantizer_record(whole, imported.config, own))
    engine, record = engine_from_onnx(source, "tensorrt-rtx", BuildOptions(capabilities=("8.6",)))
    assert record.precision == "fp16" and record.outputs == engine_outputs(encoder)
    assert engine.stat().st_size > path.stat().st_size // 2
