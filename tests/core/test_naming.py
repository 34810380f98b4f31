"""The bridge's first lesson: which code shows what, and that the bridge learns it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_model import CODES, CONFIG, FRAMES, GRID, random_codes, random_maps, tiny_tokenizer

from vqedge.config import OptimConfig
from vqedge.data.cache import CachedClips
from vqedge.data.naming import GROUPS, UNNAMED, code_names
from vqedge.data.world import MovingObject, Scene, scene_from_seed
from vqedge.model.encoder import Bridge
from vqedge.model.naming import NamingLoss
from vqedge.warmup import teach_names

RED = MovingObject("red", "star", "right", 0.24, (0.25, 0.25), 0.5, 0.0)
BLUE = MovingObject("blue", "circle", "up", 0.24, (0.25, 0.75), 0.0, 0.5)


def names_of(scene: Scene, indices: np.ndarray, codes: int = 4) -> list[list[str | None]]:  # type: ignore[type-arg]
    """Words instead of numbers."""
    found = code_names(scene, indices.reshape(-1), 2, codes)
    assert found.shape == (codes, len(GROUPS)) and found.dtype == np.int64
    return [
        [None if n == UNNAMED else words[n] for words, n in zip(GROUPS, row, strict=True)]
        for row in found
    ]


def test_a_small_map_by_hand() -> None:
    """4 x 4 patches, 2 frames: red covers 2 x 2 of them, blue as many, from the second on."""
    maps = np.zeros((2, 4, 4), np.int64)
    maps[:, :2, :2] = 1
    maps[1, 2:, :2] = 2
    still = Scene((_at(RED, (0.25, 0.25)), BLUE), (0, 0, 0), 0)
    red, blue = ["red", "star", "right", "first"], ["blue", "circle", "up", "second"]
    assert names_of(still, maps) == [[None] * 4, red, blue, [None] * 4]
    maps[0, 2:, :2] = 2  # as often before blue appears: not a majority
    assert names_of(still, maps)[2] == [None] * 4


def _at(item: MovingObject, xy: tuple[float, float]) -> MovingObject:
    return MovingObject(item.color, item.shape, item.direction, item.radius, xy, 0.0, 0.0)


def test_objects_that_appear_together_have_no_order() -> None:
    maps = np.zeros((2, 4, 4), np.int64)
    maps[:, :2, :2] = 1
    together = Scene((_at(RED, (0.25, 0.25)), _at(BLUE, (0.25, 0.75))), (0, 0, 0), 0)
    assert names_of(together, maps)[1] == ["red", "star", "right", None]


@pytest.fixture
def loss_of() -> NamingLoss:
    embeddings = torch.randn(64, CONFIG.llm.width, generator=torch.Generator().manual_seed(1))
    return NamingLoss(embeddings, tiny_tokenizer())


def test_words_are_compared_with_their_embeddings(loss_of: NamingLoss) -> None:
    rows = 50 * torch.stack([loss_of.group0[color] for color in (2, 0, 1)])[None]
    names = torch.full((1, 3, len(GROUPS)), UNNAMED)
    names[0, :, 0] = torch.tensor([2, 0, 1])
    assert loss_of(rows, names) < 1e-3
    assert loss_of.accuracy(rows, names)["red"] == 1.0
    names[0, :, 0] = torch.tensor([1, 2, 0])
    assert loss_of(rows, names) > 1
    assert loss_of.accuracy(rows, names)["red"] == 0.0


def test_the_bridge_learns_to_name(loss_of: NamingLoss) -> None:
    scenes = [scene_from_seed(1, index) for index in range(4)]
    clips = CachedClips(random_codes(4).half(), _maps_of(scenes))
    torch.manual_seed(0)
    bridge, generator = Bridge(CONFIG), torch.Generator().manual_seed(0)
    losses = [
        teach_names(bridge, clips, scenes, loss_of, _optim(steps), lambda _: 1.0, generator)
        for steps in (1, 40)
    ]
    assert losses[1] < 0.2 * losses[0]


def _optim(steps: int) -> OptimConfig:
    return OptimConfig(naming_steps=steps, naming_clips_per_step=4, naming_learning_rate=1e-2)


def _maps_of(scenes: list[Scene]) -> torch.Tensor:
    """Maps whose code 1 is the first object, and so on; all else is code 0."""
    maps = torch.zeros(len(scenes), FRAMES, GRID, GRID, dtype=torch.uint8)
    for clip, scene in enumerate(scenes):
        for number, item in enumerate(scene.objects, start=1):
            for frame in range(FRAMES):
                if (time := (frame + 0.5) / FRAMES) >= item.appears_at:
                    x, y = item.xy(time)
                    maps[clip, frame, int(y * GRID), int(x * GRID)] = number
    return maps.flatten(1)


def test_a_batch_in_which_nothing_has_a_name(loss_of: NamingLoss) -> None:
    tokens, _ = Bridge(CONFIG)(random_codes(1), random_maps(1))
    loss = loss_of(tokens, torch.full((1, CODES, len(GROUPS)), UNNAMED))
    loss.backward()
    assert loss.item() == 0.0
