"""The whole published forward, frames to the rows that Qwen2 reads, written anew from its parts.

SigLIP by transformers, its last block taken away and neither its last norm nor its head read; the
projector of two layers with a GELU; k-means of all patches of the clip at length one, not pooled
(the attention's queries are 729 numbers, a whole frame's ids: LLaVA-OneVision's pooling of videos
to 196 has no place in it); PyTorch's decoder layer; one newline row at the end. Weights are read by
their published names from the folder that is imported. Which patches make a code is k-means' choice
and random as published, so it is taken from our encoder and seen to be a fixed point; the codes are
numbered here by distance.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hf_maker import (
    GRID,
    IMAGE,
    WIDTH,
    PublishedAttention,
    order_by_distance,
    projector,
    tiny_siglip,
    write_llava,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import SiglipImageProcessor

from vqedge.base.weights import encoder_weights
from vqedge.checkpoint import MODEL
from vqedge.model.checkpoint import Checkpoint, open_checkpoint
from vqedge_export.graph import BaseArrays, checkpoint_arrays, filled
from vqedge_export.hf.importing import checkpoint_from_folder
from vqedge_export.onnx_export import outputs_of, stripped_graph

FRAMES, BUDGETS = (1, 2, 5, 9), (1, 3, 8, 32)
ROUNDING = 2e-4  # codes pass through float16, as `.vqt` files store them


class Published(NamedTuple):
    """The published modules, filled by the published names."""

    tower: nn.Module
    projector: nn.Module
    attention: PublishedAttention
    newline: Tensor

    def patches(self, frames: npt.NDArray[np.uint8]) -> Tensor:
        """Projected patches `[T, P, D]` of RGB frames `[T, H, W, 3]`."""
        size = {"height": IMAGE, "width": IMAGE}
        pixels = SiglipImageProcessor(size=size)(list(frames), return_tensors="pt").pixel_values
        model = self.tower.vision_model
        hidden = model.embeddings(pixels)
        for block in model.encoder.layers[:-1]:
            hidden = block(hidden, None)
        return self.projector(hidden)

    def rows(self, means: Tensor, labels: Tensor) -> Tensor:
        """What Qwen2 reads, of codes `[K, D]` and ids `[T, P]`."""
        order, most = torch.tensor(order_by_distance(means.half())), max(len(labels), len(means))
        queries, means = order.argsort()[labels].float(), means[order]
        queries = queries.repeat(most // len(queries) + 1, 1)[:most]
        memory = means.repeat(most // len(means) + 1, 1)[:most]
        target = self.attention.to_q_proj(queries)[:, None]
        rows = self.attention.transformer_decoder(target, memory[:, None])[:, 0]
        return torch.cat([rows, self.newline[None]])


def means_of(patches: Tensor, labels: Tensor) -> Tensor:
    """Means of the patches of each label, every patch at length one."""
    unit = F.normalize(patches.flatten(0, 1), dim=1)
    flat = labels.flatten()
    return torch.stack([unit[flat == code].mean(dim=0) for code in range(int(flat.max()) + 1)])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("official") / "source", dtype=torch.float32)


@pytest.fixture(scope="module")
def published(source: Path) -> Published:
    state = {
        name: value
        for path in source.glob("*.safetensors")
        for name, value in load_file(path).items()
    }
    tower = tiny_siglip()
    for parameter in tower.parameters():
        parameter.data.fill_(torch.nan)  # what the folder does not hold is not read
    modules = {
        "model.vision_tower.vision_tower.": tower,
        "model.mm_projector.": projector(),
        "model.cross_attention.": PublishedAttention(),
    }
    for prefix, module in modules.items():
        below = {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}
        found = module.load_state_dict(below, strict=module is not tower)
        assert not found.unexpected_keys
        module.requires_grad_(False).eval()
    return Published(*modules.values(), state["model.image_newline"])


@pytest.fixture(scope="module", params=FRAMES)
def imported(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    out = tmp_path_factory.mktemp("imported") / "checkpoint"
    return open_checkpoint(checkpoint_from_folder(source, out, frames=request.param).path)


def frames_of(imported: Checkpoint) -> npt.NDArray[np.uint8]:
    count = imported.config.encoder.frames
    shape = (count, IMAGE, IMAGE, 3)
    return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


def test_patches_are_those_of_the_published_vision_half(
    imported: Checkpoint, published: Published
) -> None:
    frames = frames_of(imported)
    with torch.inference_mode():
        wanted = published.patches(frames)
        found = imported.encoder().quantizer.vit(torch.from_numpy(frames))
    difference = (found - wanted).abs()
    print(f"max {difference.max():.1e}, mean {difference.mean():.1e}")
    assert wanted.shape == (len(frames), GRID**2, WIDTH)
    assert wanted.std() > 0.5, "nothing to compare"
    assert difference.max() < 2e-5


@pytest.mark.parametrize("budget", BUDGETS)
def test_rows_are_those_of_the_published_forward(
    imported: Checkpoint, published: Published, budget: int
) -> None:
    frames = frames_of(imported)
    with torch.inference_mode():
        found = imported.encoder()(torch.from_numpy(frames), torch.tensor(budget))
        labels, patches = found.index_map.flatten(1).long(), published.patches(frames)
        means = means_of(patches, labels)
        nearest = F.normalize(patches, dim=2) @ F.normalize(means, dim=1).T
        wanted = published.rows(means, labels)
    assert torch.equal(nearest.argmax(dim=2), labels), "k-means has settled"
    assert len(means) == min(budget, labels.numel())
    difference = (found.read - wanted).abs()
    print(f"max {difference.max():.1e}, mean {difference.mean():.1e}")
    assert wanted.std() > 0.5, "nothing to compare"
    assert len(wanted) == max(len(frames), len(means)) + 1
    assert difference.max() < ROUNDING


def test_the_exported_graph_gives_the_published_rows(
    imported: Checkpoint, published: Published
) -> None:
    frames, weights = frames_of(imported), encoder_weights(imported.config.encoder, imported.path)
    model = filled(
        stripped_graph(imported, weights.path),
        checkpoint_arrays(imported.path / MODEL),
        BaseArrays(imported.config.encoder.source, weights.path),
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = outputs_of(imported.config)
    for budget in BUDGETS:
        feeds = {"frames": frames, "budget": np.array(budget, np.int64)}
        found = dict(zip(names, session.run(names, feeds), strict=True))
        labels = torch.from_numpy(found["index_map"]).flatten(1).long()
        with torch.inference_mode():
            wanted = published.rows(means_of(published.patches(frames), labels), labels)
        rows = torch.from_numpy(found["tokens"][found["row_mask"]])
        torch.testing.assert_close(rows, wanted, atol=ROUNDING, rtol=0)
