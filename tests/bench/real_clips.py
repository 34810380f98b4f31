"""What a bundle trained on generated clips and photos answers about real videos.

    python tests/bench/real_clips.py BUNDLE FOLDER

FOLDER holds files of these names; those that are missing are left out. Questions are worded as
training words them and are about what training showed: colours, things among the hundred, what
moves where; a thing that is not among them goes by the name of the nearest that is. Of the choices
the likeliest is taken; beside it, what the model says freely.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from vqedge import VideoQA
from vqedge.data.world import COLORS
from vqedge.evaluate import wilson_interval

ANIMALS = ("dalmatian", "wild cat", "pigeon", "hawksbill", "panda")
CRAFT = ("airplane", "helicopter", "ferry", "car", "motorbike")
YES_NO = ("yes", "no")
WAYS = ("left", "right", "up", "down")


@dataclass(frozen=True)
class Asked:
    """One question about a file, and the answer that a person gives."""

    file: str
    question: str
    choices: Collection[str]
    answer: str


QUESTIONS = (
    Asked("airplane_flyby.mp4", "What is shown?", CRAFT, "airplane"),
    Asked("airplane_flyby.mp4", "Is there an airplane in the video?", YES_NO, "yes"),
    Asked("airplane_flyby.mp4", "Is there a pizza in the video?", YES_NO, "no"),
    Asked("car_detection.mp4", "What thing is in the video?", CRAFT, "car"),
    Asked("car_detection.mp4", "Is there a car in the video?", YES_NO, "yes"),
    Asked("car_detection.mp4", "Is there an elephant in the video?", YES_NO, "no"),
    Asked("cockatoo.mp4", "What is shown?", ANIMALS, "pigeon"),
    Asked("cockatoo.mp4", "What color is the pigeon?", COLORS, "white"),
    Asked("dog_on_grass.mp4", "What is shown?", ANIMALS, "dalmatian"),
    Asked("dog_on_grass.mp4", "What color is the dalmatian?", COLORS, "white"),
    Asked("sea_turtle.flv", "What is shown?", ANIMALS, "hawksbill"),
    Asked("sea_turtle.flv", "Is there a hawksbill in the video?", YES_NO, "yes"),
    Asked("sea_turtle.flv", "Is there a laptop in the video?", YES_NO, "no"),
    Asked("carphone.mp4", "Is there a human face in the video?", YES_NO, "yes"),
    Asked("carphone.mp4", "Is there a sunflower in the video?", YES_NO, "no"),
    Asked(
        "intel_head_pose_face_detection_male.mp4",
        "Is there a human face in the video?",
        YES_NO,
        "yes",
    ),
    Asked(
        "intel_head_pose_face_detection_male.mp4", "Is there a lobster in the video?", YES_NO, "no"
    ),
    Asked("intel_bolt_multi_size_detection.mp4", "Which way does the bolt move?", WAYS, "right"),
    Asked("intel_worker_zone_detection.mp4", "What color is the helmet?", COLORS, "yellow"),
    Asked("intel_worker_zone_detection.mp4", "What color is the vest?", COLORS, "orange"),
)


def main() -> None:
    """Ask all and print a line each; the last line is JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    asked = [item for item in QUESTIONS if (arguments.folder / item.file).is_file()]
    if not asked:
        parser.error(f"{arguments.folder}: none of the files is there")
    right, chance = 0, 0.0
    with VideoQA.open(arguments.bundle) as qa:
        for item in asked:
            video = qa.encode(arguments.folder / item.file)
            chosen = qa.ask(video, item.question, choices=tuple(item.choices)).text
            free = qa.ask(video, item.question).text
            right += chosen == item.answer
            chance += 1 / len(item.choices)
            mark = "right" if chosen == item.answer else f"want {item.answer}"
            print(f"{item.file}: {item.question} {chosen} ({mark}); freely: {free}")
    low, high = wilson_interval(right, len(asked))
    share = {"n": len(asked), "right": right, "interval": [low, high], "by_chance": chance}
    print(json.dumps(share))


if __name__ == "__main__":
    main()
