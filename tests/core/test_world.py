"""The generated world: what a scene promises, what is asked about it, and what is drawn."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from vqedge.data.cache import WORLD_VERSION
from vqedge.data.demo import DEMO_SCENE, write_demo
from vqedge.data.questions import (
    KINDS,
    QuestionAnswer,
    one_question_per_kind,
    questions_from_scene,
)
from vqedge.data.render import frames_from_scene
from vqedge.data.world import (
    COLORS,
    DIRECTIONS,
    MAX_OBJECTS,
    SHAPES,
    MovingObject,
    Scene,
    reversed_scene,
    scene_from_seed,
)

SCENES = [scene_from_seed(seed, index) for seed in (1, 2, 70_001) for index in range(400)]
FRAMES = 8


def _still(color: str, shape: str, xy: tuple[float, float], at: float = 0.0) -> MovingObject:
    return MovingObject(color, shape, "right", 0.12, xy, 0.0, at)


# ---- scenes


def test_a_scene_is_a_pure_function_of_seed_and_index() -> None:
    assert scene_from_seed(3, 5) == scene_from_seed(3, 5)
    assert len({scene_from_seed(seed, index) for seed in (1, 2) for index in range(50)}) == 100


def test_the_world_is_the_one_that_caches_and_models_were_made_with() -> None:
    text = repr([scene_from_seed(1, index) for index in range(64)])
    found = (WORLD_VERSION, hashlib.sha256(text.encode()).hexdigest()[:16])
    assert found == (1, "438e3d74ee5a5497"), "the world changed: raise WORLD_VERSION"


def _asked(scene: Scene, seed: int) -> list[QuestionAnswer]:
    return questions_from_scene(scene, np.random.default_rng(seed), 8)


def test_every_object_stays_inside_the_frame() -> None:
    for scene, time in itertools.product(SCENES, (0.0, 0.5, 1.0)):
        for item in scene.objects:
            x, y = item.xy(time)
            edges = (x - item.radius, y - item.radius, 1 - x - item.radius, 1 - y - item.radius)
            assert min(edges) >= -1e-9, item


def _closest(scene: Scene, times: np.ndarray) -> float:  # type: ignore[type-arg]
    """Smallest distance between two objects, in units of the sum of their radii."""
    return min(
        (
            math.dist(a.xy(time), b.xy(time)) / (a.radius + b.radius)
            for a, b in itertools.combinations(scene.objects, 2)
            for time in times
        ),
        default=math.inf,
    )


def test_objects_stay_apart() -> None:
    """Never nearer than their radii at the eight instants that are looked at; grazing between."""
    assert min(_closest(scene, np.linspace(0, 1, 8)) for scene in SCENES) >= 1.0
    assert min(_closest(scene, np.linspace(0, 1, 50)) for scene in SCENES[:400]) >= 0.95


def test_the_worlds_are_varied() -> None:
    counts = Counter(len(scene.objects) for scene in SCENES)
    assert set(counts) == set(range(1, MAX_OBJECTS + 1))
    assert min(counts.values()) > 0.28 * len(SCENES)
    objects = [item for scene in SCENES for item in scene.objects]
    for field, values in (("color", COLORS), ("shape", SHAPES), ("direction", DIRECTIONS)):
        shares = Counter(getattr(item, field) for item in objects)
        assert set(shares) == set(values)
        assert min(shares.values()) > 0.8 * len(objects) / len(values), field


def test_colors_are_unique_and_every_object_is_seen_in_some_frame() -> None:
    last_instant = (FRAMES - 0.5) / FRAMES
    for scene in SCENES:
        assert len({item.color for item in scene.objects}) == len(scene.objects)
        times = [item.appears_at for item in scene.objects]
        assert times == sorted(times) and times[0] == 0.0 and times[-1] < last_instant


# ---- played backwards


def test_a_reversed_scene_retraces_every_path() -> None:
    for scene in SCENES[:100]:
        backwards = reversed_scene(scene)
        assert len(backwards.objects) == len(scene.objects)
        for item, back in zip(scene.objects, backwards.objects, strict=True):
            assert (back.color, back.shape, back.radius) == (item.color, item.shape, item.radius)
            for time in (0.0, 0.3, 1.0):
                assert back.xy(time) == pytest.approx(item.xy(1 - time))


def test_a_reversed_scene_is_never_asked_for_an_order() -> None:
    kinds = {item.kind for scene in SCENES for item in _asked(reversed_scene(scene), 1)}
    assert kinds == set(KINDS) - {"order"}


# ---- questions, answered again from the words alone


def _answer(scene: Scene, question: str) -> str:
    """What a person who looks at the scene would say; independent of `questions.py`."""
    words = set(re.findall(r"[a-z]+", question.lower()))
    color = next((name for name in COLORS if name in words), None)
    shape = next((name for name in SHAPES if name in words), None)
    meant = [
        item
        for item in scene.objects
        if color in (None, item.color) and shape in (None, item.shape)
    ]
    if question.startswith("How many"):
        return str(len(scene.objects))
    if question.startswith("Is there a"):
        return "yes" if meant else "no"
    if "appears" in words:
        first_or_last = min if "first" in words else max
        times = [item.appears_at for item in scene.objects]
        assert len(set(times)) == len(times), "first and last are not clear"
        return first_or_last(scene.objects, key=lambda item: item.appears_at).color
    assert len(meant) == 1, f"{question} is about {len(meant)} objects"
    if {"color"} & words:
        return meant[0].color
    if {"way", "direction"} & words:
        return _heading(meant[0])
    return meant[0].shape


def _heading(item: MovingObject) -> str:
    (x0, y0), (x1, y1) = item.xy(0.0), item.xy(1.0)
    if abs(x1 - x0) > abs(y1 - y0):
        return "right" if x1 > x0 else "left"
    return "down" if y1 > y0 else "up"  # y grows downwards


@pytest.mark.parametrize("backwards", [False, True])
def test_every_answer_is_right(backwards: bool) -> None:
    seen = Counter[str]()
    for index, scene in enumerate(SCENES):
        shown = reversed_scene(scene) if backwards else scene
        for item in _asked(shown, index):
            assert item.answer == _answer(shown, item.question), (item, shown)
            seen[item.kind] += 1
    assert set(seen) == set(KINDS) - ({"order"} if backwards else set())


def test_yes_and_no_are_balanced_and_kinds_take_turns() -> None:
    asked = [item for index, scene in enumerate(SCENES) for item in _asked(scene, index)]
    assert len(asked) == 8 * len(SCENES)
    answers = Counter(item.answer for item in asked if item.kind == "exist")
    assert set(answers) == {"yes", "no"}
    assert abs(answers["yes"] / answers.total() - 0.5) < 0.04
    kinds = Counter(item.kind for item in asked)
    always = [kinds[name] for name in ("shape", "direction", "count", "exist")]
    assert max(always) < 1.1 * min(always)


@pytest.mark.parametrize("count", [1, 6, 13])
def test_as_many_questions_as_wanted(count: int) -> None:
    for scene in SCENES[:20]:
        asked = questions_from_scene(scene, np.random.default_rng(0), count)
        assert len(asked) == count


def test_one_question_per_kind() -> None:
    for index, scene in enumerate(SCENES[:200]):
        asked = one_question_per_kind(scene, np.random.default_rng(index))
        kinds = [item.kind for item in asked]
        assert kinds == [kind for kind in KINDS if kind in kinds], "not in the fixed order"
        assert {"shape", "direction", "count", "exist"} <= set(kinds)
        shapes = Counter(item.shape for item in scene.objects)
        assert ("color" in kinds) == (1 in shapes.values())
        times = {item.appears_at for item in scene.objects}
        assert ("order" in kinds) == (len(times) > 1)


def test_no_color_is_asked_where_all_shapes_repeat() -> None:
    twins = (_still("red", "star", (0.3, 0.3)), _still("blue", "star", (0.7, 0.7)))
    kinds = {item.kind for item in _asked(Scene(twins, (9, 9, 9), 0), 0)}
    assert kinds == {"shape", "direction", "count", "exist"}


# ---- frames


def _pixel(xy: tuple[float, float], size: int) -> tuple[int, int]:
    return int(xy[1] * size), int(xy[0] * size)


@pytest.mark.parametrize("index", range(6))
def test_objects_are_drawn_where_and_when_they_are(index: int) -> None:
    scene = scene_from_seed(2, index)
    size = 112
    frames = frames_from_scene(scene, FRAMES, size)
    assert frames.shape == (FRAMES, size, size, 3) and frames.dtype == np.uint8
    rows, columns = np.mgrid[:size, :size] + 0.5
    for number, frame in enumerate(frames.astype(int)):
        time = (number + 0.5) / FRAMES
        plain = np.ones((size, size), bool)
        for item in scene.objects:
            found = frame[_pixel(item.xy(time), size)]
            if time >= item.appears_at:
                x, y = item.xy(time)
                plain &= np.hypot(columns - x * size, rows - y * size) > 1.25 * item.radius * size
                assert np.abs(found - COLORS[item.color]).max() <= 1, item
            else:
                assert np.abs(found - scene.background_rgb).max() < 25, item
        background = frame[plain].mean(axis=0)
        assert np.abs(background - scene.background_rgb).max() < 1.0


@pytest.mark.parametrize(
    ("shape", "share"),  # of the square around the object
    [
        ("circle", math.pi / 4),
        ("square", 0.8**2),
        ("triangle", 1.5 * 1.5 / 0.866 / 2 / 4),
        ("star", 5 * 0.42 * math.sin(math.pi / 5) / 4),
    ],
)
def test_a_shape_covers_the_area_it_should(shape: str, share: float) -> None:
    item = MovingObject("white", shape, "up", 0.4, (0.5, 0.5), 0.0, 0.0)
    frame = frames_from_scene(Scene((item,), (0, 0, 0), 0), 1, 200)[0]
    drawn = (frame[..., 0] > 122).sum() / (2 * 0.4 * 200) ** 2
    assert drawn == pytest.approx(share, rel=0.03)


def test_frames_are_deterministic_and_grain_differs_from_frame_to_frame() -> None:
    scene = scene_from_seed(1, 0)
    first, again = (frames_from_scene(scene, 2, 56) for _ in range(2))
    assert (first == again).all()
    assert (first[0] != first[1]).mean() > 0.5


def test_the_demo_clip_is_a_real_video(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "demo.mp4"
    write_demo(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert (stream.codec_context.name, stream.average_rate) == ("h264", 16)
    assert len(frames) == 48 and frames[0].shape == (224, 224, 3)
    for item in DEMO_SCENE.objects:
        found = frames[-1][_pixel(item.xy(47.5 / 48), 224)].astype(int)
        assert np.abs(found - COLORS[item.color]).max() < 25, item
