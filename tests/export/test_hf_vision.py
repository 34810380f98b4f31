"""SigLIP, CLIP and DINOv2 of Hugging Face folders: the features that transformers has, exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
from hf_maker import tiny_tower, write_json, write_tower
from safetensors.torch import load_file, save_file

from vqedge.base.backbones import BACKBONES
from vqedge.base.weights import encoder_weights, origin_of
from vqedge.budget import ADAPTIVE
from vqedge.checkpoint import MODEL
from vqedge.errors import CheckpointError, ConfigError, ExportError
from vqedge.model.checkpoint import Checkpoint, clip_quantizer, open_checkpoint
from vqedge.model.vit import ViT
from vqedge_export import graph
from vqedge_export.flips import OnnxReader, encoders_compared
from vqedge_export.graph import BaseArrays, checkpoint_arrays, copied, filled, save_model
from vqedge_export.hf.folder import HfFolder
from vqedge_export.hf.importing import checkpoint_from_folder
from vqedge_export.hf.vision import pixels_of
from vqedge_export.int8 import int8_encoder
from vqedge_export.onnx_export import outputs_of, stripped_graph
from vqedge_export.tensorrt.calibration import measured_channels, require_half_range
from vqedge_export.tensorrt.prepare import prepare

FAMILIES = [name for name, row in BACKBONES.items() if row.family]
FRAMES, BLOCK = 3, 2


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def imported(family: str, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp(family)
    source = write_tower(folder / "source", family)
    checkpoint_from_folder(source, folder / "checkpoint", frames=FRAMES, block=BLOCK)
    return open_checkpoint(folder / "checkpoint")


@pytest.fixture(scope="module")
def frames(imported: Checkpoint) -> npt.NDArray[np.uint8]:
    size = imported.config.encoder.size
    return np.random.default_rng(1).integers(0, 256, (FRAMES, size, size, 3), dtype=np.uint8)


def reference(tower: Any, frames: npt.NDArray[np.uint8], mean: Any, std: Any) -> torch.Tensor:
    """Patch features after block `BLOCK` by transformers."""
    pixels = (frames / 255 - np.array(mean)) / np.array(std)
    tensor = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()
    with torch.inference_mode():
        hidden: torch.Tensor = tower(tensor, output_hidden_states=True).hidden_states[BLOCK]
    return hidden


def test_features_are_those_of_transformers(
    imported: Checkpoint, family: str, frames: npt.NDArray[np.uint8]
) -> None:
    encoder, tower = imported.config.encoder, tiny_tower(family)
    shape = encoder.backbone
    hidden = reference(tower, frames, shape.mean, shape.std)
    last = {"siglip": "vision_model.post_layernorm", "clip": "vision_model.post_layernorm"}
    norm = tower.get_submodule(last.get(family, "layernorm"))
    with torch.inference_mode():
        wanted = norm(hidden)[:, int(shape.class_token) :]
        found = clip_quantizer(imported.config, imported.path).vit(torch.from_numpy(frames))
    difference = (found - wanted).abs()
    print(f"{family}: max {difference.max():.1e}, mean {difference.mean():.1e}")
    assert wanted.std() > 0.5, "nothing to compare"
    assert difference.max() < 2e-5


@pytest.mark.parametrize("budget", [ADAPTIVE, 8])
def test_the_exported_graph_gives_the_same_ids(
    imported: Checkpoint, frames: npt.NDArray[np.uint8], budget: int
) -> None:
    weights = encoder_weights(imported.config.encoder, imported.path).path
    base = BaseArrays(imported.config.encoder.source, weights)
    model = filled(
        stripped_graph(imported, weights), checkpoint_arrays(imported.path / MODEL), base
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = outputs_of(imported.config)
    feeds = {"frames": frames, "budget": np.array(budget, np.int64)}
    found = dict(zip(names, session.run(names, feeds), strict=True))
    with torch.inference_mode():
        wanted = imported.encoder()(torch.from_numpy(frames), torch.tensor(budget))
    assert np.array_equal(found["index_map"], wanted.index_map.numpy())
    np.testing.assert_allclose(found["codes"], wanted.codes.numpy(), atol=2e-3)
    np.testing.assert_allclose(found["tokens"], wanted.tokens.numpy(), atol=1e-2)
    assert [n.op_type for n in int8_encoder(model).graph.node].count("MatMulInteger") == 6 * BLOCK
    require_half_range(model, [frames])
    engine = prepare(copied(model), "int8", channels=measured_channels(model, [frames]))
    told = [n.name for n in engine.graph.node if n.op_type == "DequantizeLinear"]
    assert len(told) == (4 + 6) * BLOCK, "inputs and weights of the layers of each block"


def test_weights_that_are_equal_are_found_under_the_name_of_each(
    family: str, tmp_path: Path
) -> None:
    """Before training they are: norms of ones and zeros, biases of zeros."""
    source = write_tower(tmp_path / "source", family)
    state = load_file(source / "model.safetensors")
    for name, value in state.items():
        if "norm" in name or name.endswith("bias"):
            value.fill_("norm" in name and name.endswith("weight"))
    save_file(state, source / "model.safetensors")
    out = checkpoint_from_folder(source, tmp_path / "checkpoint", frames=FRAMES, block=BLOCK).path
    checkpoint = open_checkpoint(out)
    weights = encoder_weights(checkpoint.config.encoder, out).path
    base = BaseArrays(checkpoint.config.encoder.source, weights)
    model = filled(stripped_graph(checkpoint, weights), checkpoint_arrays(out / MODEL), base)
    stored = {item.name for item in model.graph.initializer}
    norms = {name for name in base if ".blocks." in name and ".norm" in name}
    assert len(norms) == 4 * BLOCK and norms <= stored
    size = checkpoint.config.encoder.size
    clip = np.random.default_rng(1).integers(0, 256, (FRAMES, size, size, 3), dtype=np.uint8)
    lighter = {"int8": int8_encoder(model), "fp16": prepare(copied(model), "fp16")}
    others = {name: OnnxReader(item) for name, item in lighter.items()}
    for name, figures in encoders_compared(OnnxReader(model), others, [clip], 8).items():
        print(f"{family} {name}: {figures.feature_cosine:.6f}")
        assert figures.feature_cosine > 0.999


def test_an_encoder_that_no_onnx_file_can_hold(
    imported: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = encoder_weights(imported.config.encoder, imported.path).path
    base = BaseArrays(imported.config.encoder.source, weights)
    model = filled(
        stripped_graph(imported, weights), checkpoint_arrays(imported.path / MODEL), base
    )
    monkeypatch.setattr(graph, "LARGEST_BYTES", 10_000)
    with pytest.raises(ExportError, match=r"more than the 2 GiB .* an earlier --block"):
        save_model(model, tmp_path / "encoder.onnx")
    assert not (tmp_path / "encoder.onnx").exists()


def test_positions_of_another_size_are_interpolated_as_transformers_does(tmp_path: Path) -> None:
    source = write_tower(tmp_path / "source", "dinov2")
    out = tmp_path / "checkpoint"
    imported = checkpoint_from_folder(source, out, frames=1, block=BLOCK, size=42)
    config = imported.config
    encoder = config.encoder
    assert (encoder.size, encoder.grid) == (42, 6), "28 pixels are its own"
    frames = np.random.default_rng(2).integers(0, 256, (1, 42, 42, 3), dtype=np.uint8)
    tower, shape = tiny_tower("dinov2"), encoder.backbone
    hidden = reference(tower, frames, shape.mean, shape.std)
    with torch.inference_mode():
        wanted = tower.layernorm(hidden)[:, 1:]
        found = clip_quantizer(config, imported.path).vit(torch.from_numpy(frames))
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
    with pytest.raises(ConfigError, match=r"--size 44: patches of .* 7 pixels wide; .* as 42$"):
        checkpoint_from_folder(source, tmp_path / "odd", size=44)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_model_of_another_size_is_exported_at_that(kind: str, tmp_path: Path) -> None:
    source = write_tower(tmp_path / "source", kind)
    path = checkpoint_from_folder(source, tmp_path / "c", frames=FRAMES, block=BLOCK, size=35).path
    checkpoint = open_checkpoint(path)
    frames = np.random.default_rng(3).integers(0, 256, (FRAMES, 35, 35, 3), dtype=np.uint8)
    weights = encoder_weights(checkpoint.config.encoder, path).path
    base = BaseArrays(checkpoint.config.encoder.source, weights)
    model = filled(stripped_graph(checkpoint, weights), checkpoint_arrays(path / MODEL), base)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = outputs_of(checkpoint.config)
    feeds = {"frames": frames, "budget": np.array(8, np.int64)}
    found = dict(zip(names, session.run(names, feeds), strict=True))
    with torch.inference_mode():
        wanted = checkpoint.encoder()(torch.from_numpy(frames), torch.tensor(8))
    assert found["index_map"].shape == (FRAMES, 5, 5)
    assert np.array_equal(found["index_map"], wanted.index_map.numpy())
    np.testing.assert_allclose(found["codes"], wanted.codes.numpy(), atol=2e-3)


def test_the_preprocessor_of_the_folder_sets_mean_and_deviation(tmp_path: Path) -> None:
    source = write_tower(tmp_path / "source", "clip")
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    write_json(source / "preprocessor_config.json", values)
    shape = checkpoint_from_folder(source, tmp_path / "out").config.encoder.backbone
    assert (shape.mean, shape.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    write_json(source / "preprocessor_config.json", {"image_std": [0, 1, "x"]})
    with pytest.raises(CheckpointError, match="image_std: want three numbers"):
        checkpoint_from_folder(source, tmp_path / "other")


def test_a_processor_of_transformers_5_sets_mean_and_deviation(tmp_path: Path) -> None:
    folder = HfFolder(write_tower(tmp_path / "source", "siglip"))
    inner = {"image_mean": [0.1, 0.2, 0.3], "do_normalize": True, "rescale_factor": 1 / 255}
    write_json(folder.path / "processor_config.json", {"image_processor": inner})
    assert pixels_of(folder) == {"mean": (0.1, 0.2, 0.3)}
    write_json(folder.path / "preprocessor_config.json", {"image_std": [0.4, 0.5, 0.6]})
    assert pixels_of(folder) == {"std": (0.4, 0.5, 0.6)}, "the older file is the images' own"
    (folder.path / "preprocessor_config.json").unlink()
    write_json(folder.path / "processor_config.json", {"processor_class": "SiglipProcessor"})
    assert pixels_of(folder) == {}


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("do_normalize", False),
        ("do_rescale", False),
        ("rescale_factor", 1.0),
        ("rescale_factor", "1/255"),
    ],
)
def test_pixels_that_are_prepared_otherwise_are_refused(
    tmp_path: Path, file: str, name: str, value: object
) -> None:
    folder = HfFolder(write_tower(tmp_path / "source", "siglip"))
    told = {name: value}
    write_json(folder.path / file, told if file.startswith("pre") else {"image_processor": told})
    with pytest.raises(CheckpointError, match=rf"{file}: {name} is "):
        pixels_of(folder)


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_tower_that_transformers_5_saved_alone(tmp_path: Path, kind: str) -> None:
    """Its names begin where others have `vision_model.`; what is made of it is the same."""
    whole = write_tower(tmp_path / "whole", kind)
    cut = write_tower(tmp_path / "cut", kind)
    state = load_file(cut / "model.safetensors")
    named = {name.removeprefix("vision_model."): value for name, value in state.items()}
    save_file(named, cut / "model.safetensors")
    made = [checkpoint_from_folder(f, f.with_suffix(".out"), block=1) for f in (whole, cut)]
    for name in ("encoder.safetensors", "model.safetensors"):
        assert (made[0].path / name).read_bytes() == (made[1].path / name).read_bytes()
    assert {f"vision_model.{name}" for name in made[1].ignored} == set(made[0].ignored)


@pytest.mark.parametrize("kind", FAMILIES)
def test_the_head_of_a_classifier_is_left_out(tmp_path: Path, kind: str) -> None:
    source = write_tower(tmp_path / "source", kind)
    head = {"classifier.weight": torch.ones(2, 32), "classifier.bias": torch.ones(2)}
    save_file(load_file(source / "model.safetensors") | head, source / "model.safetensors")
    imported = checkpoint_from_folder(source, tmp_path / "out", block=1)
    assert head.keys() <= set(imported.ignored)


def test_the_size_that_a_tower_has_may_be_named(tmp_path: Path) -> None:
    source = write_tower(tmp_path / "source", "siglip")
    named = checkpoint_from_folder(source, tmp_path / "named", size=30)
    assert named.config == checkpoint_from_folder(source, tmp_path / "own").config
    with pytest.raises(ConfigError, match="--size 31: patches of"):
        checkpoint_from_folder(source, tmp_path / "odd", size=31)


def test_the_ratio_of_an_mlp_need_not_be_whole() -> None:
    family = BACKBONES["dinov2"].family
    assert family is not None
    assert family.shape({"hidden_size": 768, "mlp_ratio": 2.6667}).hidden == 2048


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\ndatasets:\n" + "- a data set\n" * 1000 + "license: mit\n---\n", "mit"),
        ('---\nlicense: "apache-2.0"\n---\nlicense: mit\n', "apache-2.0"),
        ("---\ntags: []\n---\nlicense: mit\n", "not stated by the source"),
        ("# A model\nlicense: mit\n", "not stated by the source"),
        ("", "not stated by the source"),
    ],
)
def test_the_licence_is_what_the_front_matter_says(tmp_path: Path, card: str, licence: str) -> None:
    source = write_tower(tmp_path / "source", "siglip")
    (source / "README.md").write_text(card)
    checkpoint_from_folder(source, tmp_path / "out", block=1)
    assert origin_of(tmp_path / "out").licence == licence


def test_a_tower_inside_a_model_of_images_and_text(tmp_path: Path) -> None:
    """A whole CLIP: the text half is left out by name, what nobody knows is refused."""
    tower = tiny_tower("clip")
    state = {**tower.state_dict(), "text_model.final_layer_norm.weight": torch.ones(4)}
    state["logit_scale"] = torch.tensor(1.0)
    folder = tmp_path / "clip"
    folder.mkdir()
    write_json(
        folder / "config.json", {"model_type": "clip", "vision_config": tower.config.to_dict()}
    )
    save_file(state, folder / "model.safetensors")
    imported = checkpoint_from_folder(folder, tmp_path / "out", block=1)
    assert {"logit_scale", "text_model.final_layer_norm.weight"} <= set(imported.ignored)
    assert imported.config.encoder.source == "clip"
    save_file(state | {"mystery.weight": torch.ones(2)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 unknown: mystery\.weight"):
        checkpoint_from_folder(folder, tmp_path / "again", block=1)


def test_block_9_of_12_unless_said_otherwise(tmp_path: Path) -> None:
    source = write_tower(tmp_path / "source", "siglip")
    assert checkpoint_from_folder(source, tmp_path / "a").config.encoder.block == 2  # of 3
    with pytest.raises(CheckpointError, match="block 4: siglip has 3"):
        checkpoint_from_folder(source, tmp_path / "b", block=4)


def test_a_vit_without_a_class_token_leaves_a_rest_of_pixels_out() -> None:
    shape = BACKBONES["siglip"].family
    assert shape is not None
    small = shape.shape({"hidden_size": 8, "num_attention_heads": 2, "patch_size": 7})
    assert ViT(1, 30, shape=small).grid == 4
