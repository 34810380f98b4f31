"""Questions about the generated world: every answer is the right one, and none can be guessed."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from vqedge.data.clips import QuestionAnswer
from vqedge.data.questions import (
    BY_WEIGHT,
    KINDS,
    caption,
    facts_of,
    kinds_by_weight,
    one_question_per_kind,
    questions_from_scene,
    with_article,
)
from vqedge.data.world import (
    COLORS,
    SHAPES,
    STILL,
    TEXTURES,
    MovingObject,
    Scene,
    reversed_scene,
    scene_from_seed,
)
from vqedge.errors import ConfigError

SCENES = [scene_from_seed(seed, index) for seed in (1, 2, 70_001) for index in range(500)]
FIRST_FRAME, LAST_FRAME = 0.5 / 8, 7.5 / 8
ALWAYS = ["shape", "texture", "direction", "count", "exist", "change", "choice"]


def asked_of(scene: Scene, seed: int) -> list[QuestionAnswer]:
    return questions_from_scene(scene, np.random.default_rng(seed), 12)


def still(color: str, shape: str, xy: tuple[float, float]) -> MovingObject:
    return MovingObject(color, shape, STILL, 0.12, xy, 0.0)


# ---- answered again from the words alone


def named(scene: Scene, text: str) -> list[MovingObject]:
    """The objects that a text names as "red ring", in its order."""
    pattern = rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})"
    by_name = {(item.color, item.shape): item for item in scene.objects}
    return [by_name[found] for found in re.findall(pattern, text) if found in by_name]


def heading(item: MovingObject) -> str:
    (x0, y0), (x1, y1) = item.xy(item.appears_at), item.xy(item.vanishes_at)
    rise = "down" if y1 > y0 + 0.01 else "up" if y1 < y0 - 0.01 else ""  # y grows downwards
    side = "right" if x1 > x0 + 0.01 else "left" if x1 < x0 - 0.01 else ""
    return " and ".join(word for word in (rise, side) if word) or "nowhere"


def outcome(item: MovingObject) -> str:
    before, after = item.radius_at(item.appears_at), item.radius_at(item.vanishes_at)
    if after > 1.3 * before:
        return "it grows"
    return "it shrinks" if after < before / 1.3 else "it stays the same"


def true_answers(scene: Scene, question: str) -> set[str]:
    """What a person who looks at the scene could say; independent of `questions.py`."""
    text = question.partition(" Choose:")[0]
    words = set(re.findall(r"[a-z]+", text.lower()))
    if text.startswith("How many"):
        singular = {word.removesuffix("es" if "crosses" in words else "s") for word in words}
        shape, texture = singular & set(SHAPES), words & set(TEXTURES)
        there = [
            item for item in scene.objects if shape <= {item.shape} and texture <= {item.texture}
        ]
        return {str(len(there))}
    if text.startswith("Is there a"):
        return {"yes" if named(scene, text) else "no"}
    if "appears" in words:
        return {order_answer(scene, text, words)}
    if text.startswith(("Which is", "Which moves")):
        return {which_answer(scene, text, words)}
    return {answer_about(item, text, words) for item in meant(scene, text, words)}


def meant(scene: Scene, text: str, words: set[str]) -> list[MovingObject]:
    """Whom a question about one thing is about: several only if it names a shape alone."""
    found = named(scene, text) or [
        item for item in scene.objects if item.color in words or item.shape in words
    ]
    assert len(found) == 1 or (found and "color" in words), text
    return found


def order_answer(scene: Scene, text: str, words: set[str]) -> str:
    starts = sorted((item.appears_at, item.color) for item in scene.objects)
    if "after" in words:
        (before,) = named(scene, text)
        return starts[[color for _, color in starts].index(before.color) + 1][1]
    return starts[0 if "first" in words else -1][1]


def which_answer(scene: Scene, text: str, words: set[str]) -> str:
    """The more of two; the less must be less by far."""
    measure, ratio, margin = (
        (lambda item: item.radius, 1.3, 0.0)
        if "larger" in words
        else (lambda item: item.speed, 1.8, 0.0)
        if "faster" in words
        else (lambda item: item.vanishes_at - item.appears_at, 1.0, 0.25)
    )
    less, more = sorted(named(scene, text), key=measure)
    assert measure(more) > measure(less)
    assert measure(more) >= ratio * measure(less) and measure(more) - measure(less) >= margin, text
    assert "larger" not in words or less.growth == more.growth == 1.0
    return f"the {more.color} {more.shape}"


def answer_about(item: MovingObject, text: str, words: set[str]) -> str:
    if "color" in words:
        return item.color
    if words & {"pattern", "striped"}:
        return item.texture
    if words & {"size", "grow"}:
        return outcome(item)
    if "there" in words:
        return "yes" if item.shows_at(FIRST_FRAME if "start" in words else LAST_FRAME) else "no"
    return heading(item) if words & {"way", "direction"} else item.shape


@pytest.mark.parametrize("backwards", [False, True])
def test_every_answer_is_right(backwards: bool) -> None:
    seen = Counter[str]()
    for index, scene in enumerate(SCENES):
        shown = reversed_scene(scene) if backwards else scene
        for item in asked_of(shown, index):
            right = true_answers(shown, item.question)
            if item.kind == "choice":
                assert right & set(item.choices) == {item.answer}, (item, shown)
            else:
                assert right == {item.answer}, (item, shown)
            seen[item.kind] += 1
    assert set(seen) == set(KINDS)


def test_choices_are_five_with_the_answer_once_and_listed_in_the_question() -> None:
    places = Counter[int]()
    for index, scene in enumerate(SCENES):
        for item in asked_of(scene, index):
            assert bool(item.choices) == (item.kind == "choice")
            if item.choices:
                assert len(set(item.choices)) == 5 and item.choices.count(item.answer) == 1
                assert item.question.endswith(f" Choose: {', '.join(item.choices)}.")
                places[item.choices.index(item.answer)] += 1
    assert min(places[place] for place in range(5)) > 0.15 * places.total()


def test_yes_and_no_and_first_and_second_named_are_balanced() -> None:
    asked = [item for index, scene in enumerate(SCENES) for item in asked_of(scene, index)]
    for kind in ("exist", "stay"):
        answers = Counter(item.answer for item in asked if item.kind == kind)
        assert set(answers) == {"yes", "no"}
        assert abs(answers["yes"] / answers.total() - 0.5) < 0.05, kind
    for kind in ("compare", "duration"):
        pairs = [item for item in asked if item.kind == kind]
        second = sum(item.question.endswith(f"{item.answer}?") for item in pairs)
        assert abs(second / len(pairs) - 0.5) < 0.06, kind


def test_kinds_take_turns() -> None:
    kinds = Counter(item.kind for i, scene in enumerate(SCENES) for item in asked_of(scene, i))
    always = [kinds[name] for name in ALWAYS]
    assert max(always) < 1.1 * min(always)


def test_a_kind_is_asked_as_often_as_its_weight_says() -> None:
    kinds = kinds_by_weight({"count": 3, "shape": 2}, [*KINDS])
    asked: Counter[str] = Counter()
    for index, scene in enumerate(SCENES):
        rng = np.random.default_rng(index)
        asked.update(item.kind for item in questions_from_scene(scene, rng, 8, kinds=kinds))
    assert asked["count"] == pytest.approx(3 * asked["exist"], rel=0.1)
    assert asked["shape"] == pytest.approx(2 * asked["exist"], rel=0.1)
    assert asked["texture"] == pytest.approx(asked["exist"], rel=0.1)
    assert kinds_by_weight({}, [*KINDS]) == tuple(KINDS), "and by default every kind once"


def test_bindings_are_trained_on_where_they_have_a_weight() -> None:
    kinds = kinds_by_weight({"binding": 2}, [*KINDS], [*BY_WEIGHT])
    assert kinds == (*KINDS, "binding", "binding")
    assert kinds_by_weight({}, [*KINDS], [*BY_WEIGHT]) == tuple(KINDS)
    found = Counter[str]()
    for index, scene in enumerate(SCENES):
        rng = np.random.default_rng(index)
        for item in questions_from_scene(scene, rng, 12, kinds=kinds):
            if item.kind == "binding":
                named_things = named(scene, item.question)
                assert item.answer == ("yes" if named_things else "no")
                found[item.answer] += 1
    assert abs(found["yes"] / found.total() - 0.5) < 0.05


def test_a_weight_for_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no such kind of question: colour .*there are color,"):
        kinds_by_weight({"colour": 2}, [*KINDS])


@pytest.mark.parametrize("count", [1, 6, 13])
@pytest.mark.parametrize("caption_share", [0.0, 1.0])
def test_as_many_questions_as_wanted(count: int, caption_share: float) -> None:
    for scene in SCENES[:20]:
        asked = questions_from_scene(scene, np.random.default_rng(0), count, caption_share)
        assert len(asked) == count
        assert sum(item.kind == "caption" for item in asked) == caption_share


def test_one_question_per_kind() -> None:
    for index, scene in enumerate(SCENES[:300]):
        asked = one_question_per_kind(scene, np.random.default_rng(index))
        kinds = [item.kind for item in asked]
        assert kinds == [kind for kind in KINDS if kind in kinds], "not in the fixed order"
        assert set(ALWAYS) <= set(kinds)
        shapes = Counter(item.shape for item in scene.objects)
        assert ("color" in kinds) == (1 in shapes.values())
        assert ("order" in kinds) == scene.staggered


def test_nothing_is_asked_that_has_no_one_answer() -> None:
    twins = (still("red", "star", (0.3, 0.3)), still("blue", "star", (0.7, 0.7)))
    kinds = {item.kind for item in asked_of(Scene(twins, (9, 9, 9), 0), 0)}
    assert kinds == set(ALWAYS), "no colour of twins, no order, no comparison of equals"


def test_a_caption_tells_all_objects_in_order_of_appearance() -> None:
    moving = MovingObject("orange", "ring", "up and left", 0.1, (0.8, 0.8), 0.4)
    late = replace(still("red", "star", (0.2, 0.2)), appears_at=0.5)
    rng = np.random.default_rng(0)
    alone = caption(Scene((moving,), (9, 9, 9), 0), rng)
    assert alone.answer == "a video of an orange ring moving up and left"
    both = caption(Scene((moving, late), (9, 9, 9), 0), rng)
    assert both.answer == f"{alone.answer} and a still red star"
    assert both.kind == "caption" and both.question


def test_a_caption_is_taken_apart_into_what_it_tells_of_each_object() -> None:
    facts = ["an orange ring moving up and left", "a still red star", "a blue disc moving up"]
    assert facts_of("a video of {}, {} and {}".format(*facts)) == facts
    for scene in SCENES:
        facts = facts_of(caption(scene, np.random.default_rng(0)).answer)
        assert [named(scene, fact) for fact in facts] == [[item] for item in scene.objects]
        for fact, item in zip(facts, scene.objects, strict=True):
            assert fact.endswith(f" moving {item.direction}") == (item.speed > 0)
    assert facts_of("a red ring moving up") == ["a red ring moving up"]


def test_a_question_that_names_two_answers_says_so() -> None:
    seen = Counter[str]()
    for index, scene in enumerate(SCENES):
        for item in asked_of(scene, index):
            if item.named:
                first, second = item.named
                assert item.answer in item.named and item.question.endswith(f"{first} or {second}?")
                seen[item.kind] += 1
            else:
                assert item.kind not in ("compare", "duration")
    assert set(seen) == {"compare", "duration"}


def test_articles() -> None:
    assert with_article("orange ring") == "an orange ring"
    assert with_article("umbrella") == "an umbrella" and with_article("star") == "a star"
    texts = " ".join(item.question for i, s in enumerate(SCENES) for item in asked_of(s, i))
    assert "an orange" in texts and not re.search(r"\ba orange|\ban (?!orange)", texts)
