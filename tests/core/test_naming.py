"""The bridge's first lesson: which code shows what, and that the bridge learns it."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_model import CODES, CONFIG, FRAMES, GRID, random_codes, tiny_tokenizer

from vqedge.data.clips import UNNAMED, Vocabulary
from vqedge.data.generated import GeneratedClips, SceneClip
from vqedge.data.naming import SCENE_WORDS, labels_from_scene, word_table
from vqedge.data.world import STILL, MovingObject, Scene, scene_from_seed
from vqedge.model.encoder import Bridge
from vqedge.model.hash_dropout import HashDropout
from vqedge.model.naming import NamingLoss
from vqedge.model.trained_reducer import quantized
from vqedge.recipe import OptimConfig
from vqedge.training.cache import QuantizedClips
from vqedge.training.dataset import PatchLabels, TrainingClips, joint_vocabulary, patch_labels
from vqedge.training.naming_lesson import NamingLesson

RED = MovingObject("red", "star", STILL, 0.24, (0.25, 0.25), 0.0)
BLUE = MovingObject("blue", "circle", STILL, 0.24, (0.25, 0.75), 0.0, 0.5, texture="spotted")
BOTH = Scene((RED, BLUE), (0, 0, 0), 0)
GROUPS = list(SCENE_WORDS)
STAR = {
    "color": "red",
    "shape": "star",
    "texture": "plain",
    "direction": "nowhere",
    "order": "first",
    "size": "large",
    "change": "same",
}
CIRCLE = STAR | {"color": "blue", "shape": "circle", "texture": "spotted", "order": "second"}


# ---- what a patch shows


def words_of(item: MovingObject) -> dict[str, str]:
    return labels_from_scene(Scene((item,), (0, 0, 0), 0), 2, 4).words[0]


def test_the_words_of_an_object() -> None:
    moving = replace(RED, direction="up and left", travel=0.2, start_xy=(0.6, 0.6), radius=0.1)
    assert words_of(moving) == {k: v for k, v in STAR.items() if k != "order"} | {
        "direction": "up and left",
        "size": "small",
        "speed": "slow",
    }
    assert words_of(replace(moving, travel=0.5))["speed"] == "fast"
    assert words_of(replace(RED, growth=1.7))["change"] == "grows"
    assert words_of(replace(RED, growth=1 / 1.7))["change"] == "shrinks"
    assert "speed" not in words_of(RED), "what stays has no speed"


def test_patches_of_a_scene() -> None:
    """4 x 4 patches, 2 frames: each covers 2 x 2 of them, blue from the second frame on."""
    labels = labels_from_scene(BOTH, 2, 4)
    red, blue = np.zeros((4, 4), int), np.zeros((4, 4), int)
    red[:2, :2], blue[2:, :2] = 1, 2
    assert (labels.shown == [red, red + blue]).all()
    assert labels.words == (STAR, CIRCLE)


def test_the_one_in_front_is_what_a_patch_shows() -> None:
    front = replace(BLUE, start_xy=RED.start_xy, appears_at=0.0)
    labels = labels_from_scene(Scene((RED, front), (0, 0, 0), 0), 1, 4)
    assert set(np.unique(labels.shown)) == {0, 2}


def test_objects_that_appear_together_have_no_order() -> None:
    together = Scene((RED, replace(BLUE, appears_at=0.0)), (0, 0, 0), 0)
    assert all("order" not in words for words in labels_from_scene(together, 1, 4).words)


def test_every_label_of_the_world_is_in_its_vocabulary() -> None:
    for index in range(200):
        labels = labels_from_scene(scene_from_seed(1, index), 2, 4)
        table = word_table(labels, SCENE_WORDS)  # raises for a word that is not there
        assert table.shape == (len(labels.words), len(GROUPS))
        assert labels.shown.max() <= len(labels.words)
        named = [GROUPS[place] for place in np.flatnonzero(table[0] != UNNAMED)]
        assert set(named) == set(labels.words[0])


# ---- what a code shows


class Unlabelled(SceneClip):
    def labels(self, frames: int, grid: int) -> Any:
        return None


def names_of(
    clip: Any,
    indices: np.ndarray,  # type: ignore[type-arg]
    codes: int = 4,
    share: float = 0.5,
) -> list[dict[str, str]]:
    """Words of every code, instead of numbers."""
    labels = patch_labels([clip], 2, 4, SCENE_WORDS)
    (found,) = labels.code_names(torch.from_numpy(indices).reshape(1, -1), codes, share)
    assert found.shape == (codes, len(GROUPS)) and found.dtype == torch.int64
    return [
        {group: SCENE_WORDS[group][n] for group, n in zip(GROUPS, row, strict=True) if n >= 0}
        for row in found.tolist()
    ]


def test_a_small_map_by_hand() -> None:
    maps = np.zeros((2, 4, 4), np.int64)
    maps[:, :2, :2] = 1
    maps[1, 2:, :2] = 2
    assert names_of(SceneClip(BOTH), maps) == [{}, STAR, CIRCLE, {}]
    maps[0, 2:, :2] = 2  # as often before blue appears: not a majority
    assert names_of(SceneClip(BOTH), maps)[2] == {}
    assert names_of(SceneClip(BOTH), maps, share=0.4)[2] == CIRCLE


def test_a_clip_without_labels_names_nothing() -> None:
    maps = np.ones((2, 4, 4), np.int64)
    assert names_of(Unlabelled(BOTH), maps) == [{}] * 4


def test_clips_of_a_batch_keep_to_themselves() -> None:
    clips = [SceneClip(BOTH), SceneClip(replace(BOTH, objects=(BLUE, RED)))]
    maps = torch.zeros(2, 2, 4, 4, dtype=torch.int64)
    maps[:, :, :2, :2] = 1
    names = patch_labels(clips, 2, 4, SCENE_WORDS).code_names(maps.flatten(1), 3)
    order = GROUPS.index("order")
    assert names[:, 1, GROUPS.index("color")].tolist() == [0, 0]
    assert names[0, 1, order] == 0 and names[1, 1, order] == UNNAMED, "not staggered the other way"


class Words:
    """A source of which only the vocabulary matters."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary


def test_sources_share_their_words() -> None:
    sources: Any = [Words({"a": ("x", "y")}), Words({}), Words({"a": ("y", "z"), "b": ("u",)})]
    assert joint_vocabulary(sources) == {"a": ("x", "y", "z"), "b": ("u",)}


# ---- what is learned


@pytest.fixture
def loss_of() -> NamingLoss:
    embeddings = torch.randn(64, CONFIG.llm.width, generator=torch.Generator().manual_seed(1))
    return NamingLoss(embeddings, tiny_tokenizer(), SCENE_WORDS)


def test_words_are_compared_with_their_embeddings(loss_of: NamingLoss) -> None:
    rows = 50 * loss_of.get_buffer("color_words")[[2, 0, 1]][None]
    names = torch.full((1, 3, len(GROUPS)), UNNAMED)
    names[0, :, 0] = torch.tensor([2, 0, 1])
    right = loss_of(rows, names)
    assert loss_of.distance(rows, names).item() == pytest.approx(0.0, abs=1e-6)
    found = loss_of.right(rows, names)
    assert found.pop("color").tolist() == [True] * 3
    assert not any(map(len, found.values())), "other groups say nothing"
    names[0, :, 0] = torch.tensor([1, 2, 0])
    assert loss_of(rows, names) > right + 1
    assert loss_of.distance(rows, names) > 0.1
    assert loss_of.right(rows, names)["color"].tolist() == [False] * 3


@pytest.mark.parametrize("silent", [[], [2], [0, 3], list(range(len(GROUPS)))])
def test_the_first_part_is_the_mean_over_groups_that_name_something(
    loss_of: NamingLoss, silent: list[int]
) -> None:
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(2, 9, CONFIG.llm.width, generator=generator, requires_grad=True)
    words = [
        torch.randint(UNNAMED, len(group), (2, 9), generator=generator)
        for group in SCENE_WORDS.values()
    ]
    names = torch.stack(words, dim=-1)
    names[..., silent] = UNNAMED
    each = [
        F.cross_entropy(logits.flatten(0, 1), names[..., number].flatten(), ignore_index=UNNAMED)
        for number, logits in enumerate(loss_of.logits(rows))
        if number not in silent
    ]
    wanted = sum(each, torch.zeros(())) / max(len(each), 1) + loss_of.distance(rows, names)
    found = loss_of(rows, names)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    gradients = [torch.autograd.grad(loss, rows)[0] for loss in (found, wanted)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def training_clips(source: GeneratedClips) -> TrainingClips:
    quantized = QuantizedClips(random_codes(len(source)).half(), _maps_of(source))
    return TrainingClips((source,), ({CODES: quantized},), (1.0,), FRAMES, False)


def _maps_of(source: GeneratedClips) -> torch.Tensor:
    """Maps whose code 1 is the first object, and so on; all else is code 0."""
    shown = [source[number].labels(FRAMES, GRID).shown for number in range(len(source))]
    return torch.from_numpy(np.stack(shown)).to(torch.uint8).flatten(1)


def test_the_bridge_learns_to_name(loss_of: NamingLoss) -> None:
    clips = training_clips(GeneratedClips(seed=1, clips=4))
    torch.manual_seed(0)
    bridge = Bridge(CONFIG)
    losses: list[float] = []
    optim = OptimConfig(
        naming_steps=60, naming_clips_per_step=4, naming_learning_rate=1e-2, warmup_steps=1
    )
    lesson = NamingLesson(bridge, clips, loss_of, optim, (CODES,), seed=0)
    before = lesson.accuracy(clips, CODES)
    assert lesson.run(on_step=lambda _step, loss: bool(losses.append(loss)))
    assert losses[-1] < 0.25 * losses[0]
    after = lesson.accuracy(clips, CODES)
    assert after["color"] > 0.9 > before["color"]


def test_what_kept_codes_show_is_found_before_the_step(
    loss_of: NamingLoss, monkeypatch: pytest.MonkeyPatch
) -> None:
    code_names, threads = PatchLabels.code_names, []

    def noted(*given: Any) -> torch.Tensor:
        threads.append(threading.current_thread().name)
        return code_names(*given)

    monkeypatch.setattr(PatchLabels, "code_names", noted)
    optim = OptimConfig(naming_steps=2, naming_clips_per_step=2)
    clips = training_clips(GeneratedClips(seed=1, clips=2))
    assert NamingLesson(Bridge(CONFIG), clips, loss_of, optim, (CODES,), seed=0).run()
    assert len(threads) == 2 and all(name.startswith("ahead") for name in threads)


def test_what_is_learned_is_told_by_the_whole_hash(loss_of: NamingLoss) -> None:
    clips = training_clips(GeneratedClips(seed=1, clips=4))
    torch.manual_seed(0)
    bridge = Bridge(CONFIG)
    lesson = NamingLesson(bridge, clips, loss_of, OptimConfig(), (CODES,), seed=0)
    before = lesson.accuracy(clips, CODES)
    bridge.attention.dropout = HashDropout(frames=1.0, clips=1.0)
    rows = bridge(*quantized(clips.batch([*clips.in_order()], CODES), None)).tokens
    assert lesson.accuracy(clips, CODES) == before
    again = bridge(*quantized(clips.batch([*clips.in_order()], CODES), None)).tokens
    assert torch.equal(again, rows), "training goes on as before"
    bridge.attention.dropout = HashDropout()
    whole = bridge(*quantized(clips.batch([*clips.in_order()], CODES), None)).tokens
    assert not torch.equal(whole, rows)


def test_rows_without_a_name_should_look_like_nothing(loss_of: NamingLoss) -> None:
    nothing = loss_of.get_buffer("nothing").expand(1, CODES, -1)
    unnamed = torch.full((1, CODES, len(GROUPS)), UNNAMED)
    assert loss_of(nothing, unnamed).item() == pytest.approx(0.0, abs=1e-6)
    assert loss_of(-nothing, unnamed).item() == pytest.approx(2.0, abs=1e-6)
    assert not any(map(len, loss_of.right(nothing, unnamed).values()))


def test_a_lesson_leaves_no_gradients_behind(loss_of: NamingLoss) -> None:
    bridge = Bridge(CONFIG)
    optim = OptimConfig(naming_steps=1, naming_clips_per_step=2)
    clips = training_clips(GeneratedClips(seed=1, clips=2))
    NamingLesson(bridge, clips, loss_of, optim, (CODES,), seed=0).run()
    assert all(parameter.grad is None for parameter in bridge.parameters())
    assert bridge.training
