"""The generated world: what a scene promises, and what is drawn of it."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vqedge.data.demo import DEMO_SCENE, write_demo
from vqedge.data.generated import GeneratedClips
from vqedge.data.render import frames_from_scene
from vqedge.data.world import (
    COLORS,
    DIRECTIONS,
    MAX_OBJECTS,
    OPPOSITE,
    SHAPES,
    STILL,
    TEXTURES,
    WORLD_VERSION,
    MovingObject,
    Scene,
    reversed_scene,
    scene_from_seed,
)

SCENES = [scene_from_seed(seed, index) for seed in (1, 2, 70_001) for index in range(500)]
FRAMES = 8
TIMES = [(number + 0.5) / FRAMES for number in range(FRAMES)]


def objects_of(scenes: Sequence[Scene]) -> list[MovingObject]:
    return [item for scene in scenes for item in scene.objects]


# ---- scenes


def test_a_scene_is_a_pure_function_of_seed_and_index() -> None:
    assert scene_from_seed(3, 5) == scene_from_seed(3, 5)
    assert len({scene_from_seed(seed, index) for seed in (1, 2) for index in range(50)}) == 100


def test_the_world_is_the_one_that_caches_and_models_were_made_with() -> None:
    text = repr([scene_from_seed(1, index) for index in range(64)])
    found = (WORLD_VERSION, hashlib.sha256(text.encode()).hexdigest()[:16])
    assert found == (3, "e2066b913e5e08ba"), "the world changed: raise WORLD_VERSION"


def test_every_path_stays_inside_the_frame_but_for_those_who_come_or_go_over_the_edge() -> None:
    over = 0
    for item in objects_of(SCENES):
        late, early = item.appears_at > 0.0, item.vanishes_at < 1.0
        for time in np.linspace(item.appears_at, item.vanishes_at, 9):
            (x, y), reach = item.xy(time), item.radius_at(time)
            inside = min(x - reach, y - reach, 1 - x - reach, 1 - y - reach) >= -1e-9
            assert inside or late or early, item
            assert min(x, y) >= -1e-9 and max(x, y) <= 1.0 + 1e-9, "its centre is out"
            over += not inside
    assert over, "nobody comes or goes over the edge"


def closest(a: MovingObject, b: MovingObject) -> float:
    """Smallest distance while both are there, in units of the sum of their largest radii."""
    first, last = max(a.appears_at, b.appears_at), min(a.vanishes_at, b.vanishes_at)
    if first >= last:
        return math.inf
    reach = sum(max(item.radius_at(t) for t in (first, last)) for item in (a, b))
    return min(math.dist(a.xy(t), b.xy(t)) for t in np.linspace(first, last, 40)) / reach


def test_objects_hide_each_other_in_part_only_and_mostly_not() -> None:
    gaps = [closest(*pair) for scene in SCENES for pair in itertools.combinations(scene.objects, 2)]
    assert min(gaps) > 0.59, "an object can be hidden as a whole"
    touching = sum(gap < 0.97 for gap in gaps) / len(gaps)
    assert 0.02 < touching < 0.2


def test_the_worlds_are_varied() -> None:
    counts = Counter(len(scene.objects) for scene in SCENES)
    assert set(counts) == set(range(1, MAX_OBJECTS + 1))
    assert min(counts.values()) > 0.2 * len(SCENES)
    objects = objects_of(SCENES)
    for field, values in (
        ("color", COLORS),
        ("shape", SHAPES),
        ("direction", DIRECTIONS),
        ("texture", TEXTURES),
    ):
        shares = Counter(getattr(item, field) for item in objects)
        assert set(shares) == set(values)
        assert min(shares.values()) > 0.8 * len(objects) / len(values), field
    for found in (
        sum(item.growth > 1 for item in objects) / len(objects),
        sum(item.growth < 1 for item in objects) / len(objects),
        sum(scene.shake > 0 for scene in SCENES) / len(SCENES),
        sum(scene.crf is not None for scene in SCENES) / len(SCENES),
    ):
        assert 0.1 < found < 0.5


def test_colors_are_unique_and_every_object_is_seen_in_several_frames() -> None:
    for scene in SCENES:
        assert len({item.color for item in scene.objects}) == len(scene.objects)
        starts = [item.appears_at for item in scene.objects]
        assert starts == sorted(starts), "not in order of appearance"
        for item in scene.objects:
            assert sum(item.shows_at(time) for time in TIMES) >= 2


def test_where_order_is_asked_every_object_comes_in_a_frame_of_its_own() -> None:
    """Of eight frames, also backwards; appearances closer than that do not count as an order."""
    together = 0
    for scene in [*SCENES, *map(reversed_scene, SCENES)]:
        first = [next(n for n, t in enumerate(TIMES) if i.shows_at(t)) for i in scene.objects]
        different = len(set(first)) == len(first) > 1
        assert different or not scene.staggered, scene
        together += different and not scene.staggered
    assert together < 0.1 * len(SCENES), "many orders that could be asked are not"


def test_how_long_an_object_is_seen_hardly_tells_when_it_came() -> None:
    """Or the order could be answered from shuffled frames: the first would be seen longest."""
    scenes = [scene_from_seed(4, index) for index in range(4000)]
    asked = [scene for scene in scenes if scene.staggered]
    by_chance = [1 / len(scene.objects) for scene in asked]
    longest = [max(scene.objects, key=lambda item: item.lasts) for scene in asked]
    found = [item is scene.objects[0] for item, scene in zip(longest, asked, strict=True)]
    assert len(asked) > 700
    assert abs(np.mean(found) - np.mean(by_chance)) < 3 * 0.5 / math.sqrt(len(asked))


def test_moving_objects_move_and_still_ones_do_not() -> None:
    for item in objects_of(SCENES):
        way = math.dist(item.xy(item.appears_at), item.xy(item.vanishes_at))
        assert way == pytest.approx(item.travel)
        assert way == 0.0 if item.direction == STILL else way > 0.2


# ---- played backwards


@settings(max_examples=60)
@given(seed=st.integers(0, 2**31), index=st.integers(0, 2**31))
def test_reversal_retraces_every_path_and_undoes_itself(seed: int, index: int) -> None:
    scene = scene_from_seed(seed, index)
    backwards = reversed_scene(scene)
    turned = {item.color: item for item in backwards.objects}
    again = {item.color: item for item in reversed_scene(backwards).objects}
    assert len(turned) == len(again) == len(scene.objects)
    for item in scene.objects:
        back, same = turned[item.color], again[item.color]
        assert (back.shape, back.texture, back.direction) == (
            item.shape,
            item.texture,
            OPPOSITE[item.direction],
        )
        for time in TIMES:
            assert back.shows_at(time) == item.shows_at(1 - time)
            assert back.xy(time) == pytest.approx(item.xy(1 - time))
            assert back.radius_at(time) == pytest.approx(item.radius_at(1 - time))
            assert same.xy(time) == pytest.approx(item.xy(time))
        assert (same.direction, same.shape) == (item.direction, item.shape)
        assert same.radius == pytest.approx(item.radius)


def apart(scene: Scene) -> bool:
    pairs = itertools.combinations(scene.objects, 2)
    return all(closest(*pair) > 1.05 for pair in pairs)


def test_a_reversed_scene_shows_the_same_frames_backwards() -> None:
    """Up to the grain, which is new in every frame; shake and codec are of the recording."""
    scenes = [replace(scene, shake=0.0, crf=None) for scene in SCENES[:60] if apart(scene)]
    assert len(scenes) > 20
    for scene in scenes[:12]:
        forwards = frames_from_scene(scene, FRAMES, 112).astype(int)
        backwards = frames_from_scene(reversed_scene(scene), FRAMES, 112).astype(int)
        assert np.abs(backwards[::-1] - forwards).max() < 45  # eight standard deviations
        gone_by = np.abs(backwards - forwards).max() > 45
        moves = any(item.speed or item.growth != 1 or item.lasts < 1 for item in scene.objects)
        assert gone_by or not moves


# ---- the source


def test_the_generated_source_is_the_world() -> None:
    clips = GeneratedClips(seed=2, clips=10, caption_share=1.0, kinds=("count",))
    assert len(clips) == 10 and clips[4].scene == scene_from_seed(2, 4)
    assert clips[4] == clips[4] != clips[5]
    assert clips[4].reversed().scene == reversed_scene(clips[4].scene)
    kinds = {item.kind for item in clips[4].questions(np.random.default_rng(0), 4)}
    assert kinds == {"caption", "count"}, "the share of captions or the kinds were lost"
    assert clips[4].reversed() == replace(clips[4], scene=reversed_scene(clips[4].scene))
    fingerprints = {GeneratedClips(seed, 10).fingerprint for seed in (1, 2)}
    assert len(fingerprints) == 2 and GeneratedClips(1, 99).fingerprint in fingerprints


# ---- frames


def still(color: str, shape: str, xy: tuple[float, float]) -> MovingObject:
    return MovingObject(color, shape, STILL, 0.12, xy, 0.0)


def disc(item: MovingObject, time: float, size: int, more: float = 1.5) -> np.ndarray:  # type: ignore[type-arg]
    """Pixels that an object can touch, bool `[size, size]`."""
    rows, columns = np.mgrid[:size, :size] + 0.5
    x, y = item.xy(time)
    return np.asarray(
        np.hypot(columns - x * size, rows - y * size) <= item.radius_at(time) * size + more
    )


@pytest.mark.parametrize("index", range(8))
def test_objects_are_drawn_where_and_when_they_are(index: int) -> None:
    """Without the object, exactly the pixels around it are others, and only while it is there."""
    scene, size = replace(scene_from_seed(2, index), shake=0.0, crf=None), 112
    frames = frames_from_scene(scene, FRAMES, size)
    assert frames.shape == (FRAMES, size, size, 3) and frames.dtype == np.uint8
    for item in scene.objects:
        others = tuple(other for other in scene.objects if other != item)
        without = frames_from_scene(replace(scene, objects=others), FRAMES, size)
        for time, shown, gone in zip(TIMES, frames, without, strict=True):
            changed = (shown != gone).any(axis=-1)
            assert changed.any() == item.shows_at(time), item
            assert not (changed & ~disc(item, time, size)).any()


def alone(shape: str, texture: str = "plain") -> np.ndarray:  # type: ignore[type-arg]
    """One white object of radius 80 pixels on black, float `[200, 200]`."""
    item = MovingObject("white", shape, STILL, 0.4, (0.5, 0.5), 0.0, texture=texture)
    frame = frames_from_scene(Scene((item,), (0, 0, 0), 0), 1, 200)[0, ..., 0]
    return frame.astype(float)


@pytest.mark.parametrize(
    ("shape", "area"),  # in a circle of radius 1
    [
        ("circle", math.pi),
        ("square", 1.4**2),
        ("triangle", 1.35 * (0.45 + 0.225) / 0.866),
        ("star", 5 * 0.42 * math.sin(math.pi / 5)),
        ("cross", 2 * 1.9 * 0.6 - 0.6**2),
        ("ring", math.pi * (1 - 0.55**2)),
    ],
)
def test_a_shape_covers_the_area_it_should(shape: str, area: float) -> None:
    drawn = (alone(shape) > 122).sum() / 80**2
    assert drawn == pytest.approx(area, rel=0.03)


@pytest.mark.parametrize(
    ("texture", "share"),
    [
        ("plain", 0.0),
        ("striped", (math.pi - 2 * math.asin(0.3)) / (2 * math.pi)),
        ("spotted", math.pi * 0.25**2),
    ],
)
def test_a_texture_darkens_the_share_it_should(texture: str, share: float) -> None:
    inside = disc(MovingObject("white", "circle", STILL, 0.38, (0.5, 0.5), 0.0), 0.5, 200, 0.0)
    levels = alone("circle", texture)[inside]
    assert (levels < 180).mean() == pytest.approx(share, abs=0.06)
    assert set(np.round(levels / levels.max(), 1)) <= {0.5, 1.0}


@pytest.mark.parametrize("color", COLORS)
def test_a_color_is_drawn_as_itself(color: str) -> None:
    item = still(color, "circle", (0.5, 0.5))
    frame = frames_from_scene(Scene((item,), (60, 60, 60), 0), 1, 56)[0]
    assert np.abs(frame[28, 28].astype(int) - COLORS[color]).max() <= 1


def test_frames_are_deterministic_and_grain_differs_from_frame_to_frame() -> None:
    scene = next(scene for scene in SCENES if scene.crf is not None)
    first, again = (frames_from_scene(scene, 2, 56) for _ in range(2))
    assert (first == again).all()
    plain = frames_from_scene(replace(scene, crf=None), 2, 56)
    assert (plain[0] != plain[1]).mean() > 0.5


def test_the_codec_leaves_artefacts_and_the_picture() -> None:
    scene = next(scene for scene in SCENES if scene.crf is not None and scene.crf > 32)
    squeezed = frames_from_scene(scene, FRAMES, 112).astype(float)
    untouched = frames_from_scene(replace(scene, crf=None), FRAMES, 112).astype(float)
    assert squeezed.shape == untouched.shape
    assert 1.0 < np.abs(squeezed - untouched).mean() < 10.0


def centroid(frame: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.argwhere(frame[..., 0] > 122).mean(axis=0)


def test_shake_moves_the_picture_a_little_and_anew_in_every_frame() -> None:
    steady = Scene((still("white", "circle", (0.5, 0.5)),), (0, 0, 0), 3)
    calm = frames_from_scene(steady, FRAMES, 200)
    shaken = frames_from_scene(replace(steady, shake=0.02), FRAMES, 200)
    moved = [centroid(a) - centroid(b) for a, b in zip(shaken, calm, strict=True)]
    assert np.abs(moved).max() <= 2 * 0.02 * 200 + 0.5
    assert np.std(moved) > 1.0


def test_the_demo_clip_is_a_real_video(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "demo.mp4"
    write_demo(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 16)
    assert len(frames) == 48 and frames[0].shape == (224, 224, 3)
    for item in DEMO_SCENE.objects:
        x, y = item.xy(47.5 / 48)
        found = frames[-1][int(y * 224), int(x * 224)].astype(int)
        assert np.abs(found - COLORS[item.color]).max() < 25, item
