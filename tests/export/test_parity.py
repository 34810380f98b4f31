"""Parity of the encoder: nothing to report about a good export, and what a bad one looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_export import LEVELS, BothArrays

from vqedge.agreement import row_cosines
from vqedge.budget import ADAPTIVE
from vqedge.config import AttentionConfig, EncoderConfig, LlmConfig, ModelConfig, QuantizerConfig
from vqedge.errors import BackendUnavailable
from vqedge.model.checkpoint import Checkpoint
from vqedge.model.encoder import ClipQuantizer, EncodedClip, VideoEncoder
from vqedge.model.official import OfficialBridge
from vqedge.model.quantizer import Assignment, Quantized
from vqedge.model.vit import ViT
from vqedge_export.flips import OnnxReader
from vqedge_export.graph import filled, save_model
from vqedge_export.parity import _Deployed, _Found, _Patches, _wanted, encoder_parity
from vqedge_runtime.encoders.ort import OrtEncoder


def test_parity_of_a_good_export(checkpoint: Checkpoint, model: bytes, tmp_path: Path) -> None:
    (tmp_path / "encoder.onnx").write_bytes(model)
    found = encoder_parity(checkpoint, tmp_path / "encoder.onnx", 3)
    assert (found.encoder.clips, found.encoder.patches) == (3, 3 * 2 * 16 * 16)
    assert found.encoder.ids_differ == found.encoder.safe_ids_differ == 0
    assert found.encoder.token_cosine > 0.9999
    used = [len(rows) for rows in found.rows]
    assert used[:2] == [64, 32] and 1 < used[2] < 64, "all codes, the default, the adaptive budget"
    if checkpoint.config.quantizer.kind == "codebook":
        assert found.codebook is not None and found.codebook.ids == sum(used) * LEVELS
        assert found.codebook.ids_differ == found.codebook.safe_ids_differ == 0
    else:
        assert found.codebook is None


def test_parity_of_an_export_for_a_plugin_is_measured_with_the_body_put_back(
    checkpoint: Checkpoint, model: bytes, tmp_path: Path
) -> None:
    bare = onnx.load_from_string(model)
    del bare.functions[:]
    save_model(bare, tmp_path / "encoder.onnx")
    assert encoder_parity(checkpoint, tmp_path / "encoder.onnx", 1).encoder.ids_differ == 0
    assert OnnxReader(tmp_path / "encoder.onnx").session.get_outputs()
    with pytest.raises(BackendUnavailable, match="exported with --plugin-node"):
        OrtEncoder(tmp_path / "encoder.onnx")


@pytest.mark.parametrize("checkpoint", ["codebook"], indirect=True)
def test_parity_sees_another_codebook(
    checkpoint: Checkpoint, graph: onnx.ModelProto, arrays: BothArrays, tmp_path: Path
) -> None:
    tables = arrays[0]["bridge.codebook.tables"].copy()
    tables[1] = tables[1][::-1]  # the same entries by other numbers, in the second level only
    changed = filled(graph, arrays[0] | {"bridge.codebook.tables": tables}, arrays[1])
    save_model(changed, tmp_path / "encoder.onnx")
    found = encoder_parity(checkpoint, tmp_path / "encoder.onnx", 1)
    assert found.encoder.ids_differ == 0 and found.codebook is not None
    assert found.codebook.ids_differ == pytest.approx(1 / LEVELS, abs=0.02)
    assert 0.25 < found.codebook.safe_ids_differ <= found.codebook.ids_differ
    assert found.codebook.margin_where_ids_differ > 0.01


@pytest.mark.parametrize("checkpoint", ["kmeans"], indirect=True)
def test_parity_sees_another_bridge(
    checkpoint: Checkpoint, graph: onnx.ModelProto, arrays: BothArrays, tmp_path: Path
) -> None:
    name = "bridge.attention.projector.weight"
    changed = filled(graph, arrays[0] | {name: arrays[0][name][::-1]}, arrays[1])
    save_model(changed, tmp_path / "encoder.onnx")
    found = encoder_parity(checkpoint, tmp_path / "encoder.onnx", 1)
    assert found.encoder.ids_differ == 0 and found.encoder.token_cosine < 0.9


def test_parity_asks_a_graph_of_fixed_budgets_for_no_other(
    checkpoint: Checkpoint, model: bytes, tmp_path: Path
) -> None:
    (tmp_path / "encoder.onnx").write_bytes(model)
    assert _Deployed(tmp_path / "encoder.onnx", checkpoint.config).budgets == [64, 32, ADAPTIVE]
    fixed = onnx.load_from_string(model)
    del fixed.metadata_props[:]
    save_model(fixed, tmp_path / "old.onnx")
    assert _Deployed(tmp_path / "old.onnx", checkpoint.config).budgets == [64, 32]


def test_only_the_first_round_that_differs_has_a_say_in_margins() -> None:
    """A close call in the first round; the second then differs where it was safe."""
    ids = [torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])]
    margins = [torch.tensor([0.5, 1e-6, 0.5, 0.5]), torch.tensor([0.5, 0.5, 0.25, 0.5])]
    rounds = [Assignment(*pair) for pair in zip(ids, margins, strict=True)]
    index_map, margin = (part.reshape(1, 2, 2) for part in (ids[1], margins[1]))
    wanted = EncodedClip(
        torch.ones(2, 3), index_map, torch.tensor([True, True]), margin, None, None
    )
    outputs = {"index_map": np.array([[[0, 1], [0, 1]]]), "margin": wanted.margin.numpy()}
    outputs |= {"mask": wanted.mask.numpy(), "tokens": wanted.tokens.numpy()}
    turned = [np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1])]
    close, safe, renamed = _Patches(), _Patches(), _Patches()
    assert not close.add(_Found(outputs, turned), wanted, rounds)
    assert (close.figures().ids_differ, close.figures().safe_ids_differ) == (0.5, 0.0)
    assert close.figures().margin_where_ids_differ == pytest.approx(1e-6)
    assert close.figures().token_cosine == 0.0, "no clip left whose rows could be compared"
    safe.add(_Found(outputs, [ids[0].numpy(), turned[1]]), wanted, rounds)
    assert safe.figures().safe_ids_differ == 0.5
    renamed.add(_Found(outputs, [ids[0].numpy(), ids[1].numpy()]), wanted, rounds)
    assert renamed.figures().safe_ids_differ == 0.5, "the same groups by other numbers"


@pytest.fixture(scope="module")
def official() -> VideoEncoder:
    """An encoder with the published attention, of random weights."""
    config = ModelConfig(
        encoder=EncoderConfig(block=1, frames=2, size=4 * 14, projected=32),
        quantizer=QuantizerConfig(codes=3, default_budget=3),
        attention=AttentionConfig(kind="official", width=32, heads=8),
        llm=LlmConfig(width=32),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        bridge = OfficialBridge(config)
        for parameter in bridge.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.1)
    bridge.image_newline.data.fill_(1.0)
    return VideoEncoder(ClipQuantizer(config, ViT(1, 56)), bridge).requires_grad_(False).eval()


@pytest.mark.parametrize(("change", "same"), [(2**-11, True), (0.1, False)])
def test_a_tie_in_the_order_of_codes_is_no_fault(
    official: VideoEncoder, change: float, same: bool
) -> None:
    """Two codes equally far from the first; in the graph one of them is nearer by its last bit."""
    codes = torch.zeros(3, 32)
    codes[:, 0] = torch.tensor([1.0, 0.5, 0.5])
    codes[[1, 2], [1, 2]] = 0.5
    indices = torch.arange(32, dtype=torch.int32) % 3
    quantized = Quantized(codes, indices, torch.ones(3, dtype=torch.bool), torch.ones(32))
    plain, nearer = official.encoded(quantized), codes.half()
    nearer[1, 0] += change
    rows = official.bridge.rows(nearer, plain.index_map)
    assert row_cosines(rows.tokens.numpy(), plain.tokens.numpy()).min() < 0.99, "the same order"
    outputs = {"codes": nearer, "index_map": plain.index_map, "mask": plain.mask}
    outputs |= {"margin": plain.margin, "tokens": rows.tokens, "row_mask": plain.row_mask}
    found, patches = _Found({name: part.numpy() for name, part in outputs.items()}, []), _Patches()
    assert patches.add(found, _wanted(official, quantized, found), [])
    assert (patches.figures().token_cosine > 0.9999) == same
