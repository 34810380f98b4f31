"""What is right without knowing which colour belongs to which shape."""

from __future__ import annotations

from dataclasses import replace

from _unbound import unbound_share

from vqedge.data.generated import SceneClip
from vqedge.data.suites import Item
from vqedge.data.world import scene_from_seed


def test_colours_and_shapes_alone_answer_what_does_not_ask_for_both() -> None:
    scene = scene_from_seed(1, 0)
    shown = (("red", "ring"), ("blue", "star"))
    things = [replace(scene.objects[0], color=color, shape=shape) for color, shape in shown]
    clip = SceneClip(replace(scene, objects=tuple(things)))
    asked = {
        "Is there a red ring?": "yes",
        "Is there a blue star in the video?": "yes",
        "Is there a red star?": "no",
        "Is there a green ring?": "no",
    }
    items = [Item(clip, "exist", question, answer) for question, answer in asked.items()]
    assert unbound_share(items) == 3 / 4
    assert unbound_share([*items, Item(clip, "color", "What color is the ring?", "red")]) == 3 / 4
