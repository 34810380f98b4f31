"""The generated world as a source of clips."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vqedge.data import questions
from vqedge.data.clips import Labels, QuestionAnswer, Vocabulary
from vqedge.data.naming import SCENE_WORDS, labels_from_scene
from vqedge.data.render import frames_from_scene
from vqedge.data.world import WORLD_VERSION, Scene, reversed_scene, scene_from_seed


def generated_frames(seed: int, number: int, count: int, size: int) -> npt.NDArray[np.uint8]:
    """Draw clip `number` of the world `seed`, uint8 `[count, size, size, 3]`."""
    return frames_from_scene(scene_from_seed(seed, number), count, size)


@dataclass(frozen=True)
class SceneClip:
    """One generated clip."""

    scene: Scene
    caption_share: float = 0.0
    kinds: tuple[str, ...] = ()

    def frames(self, count: int, size: int) -> npt.NDArray[np.uint8]:
        """Draw it, uint8 `[count, size, size, 3]`."""
        return frames_from_scene(self.scene, count, size)

    def questions(self, rng: np.random.Generator, count: int) -> list[QuestionAnswer]:
        """Questions to train on."""
        return questions.questions_from_scene(
            self.scene, rng, count, self.caption_share, self.kinds
        )

    def one_question_per_kind(self, rng: np.random.Generator) -> list[QuestionAnswer]:
        """Questions to evaluate on."""
        return questions.one_question_per_kind(self.scene, rng)

    def caption(self, rng: np.random.Generator) -> QuestionAnswer:
        """A description of the whole clip."""
        return questions.caption(self.scene, rng)

    def labels(self, frames: int, grid: int) -> Labels:
        """Which object every patch lies on."""
        return labels_from_scene(self.scene, frames, grid)

    def reversed(self) -> SceneClip:
        """Played backwards."""
        return replace(self, scene=reversed_scene(self.scene))


@dataclass(frozen=True)
class GeneratedClips:
    """The first `clips` clips of the world `seed`; `kinds` as in `questions_from_scene`."""

    seed: int
    clips: int
    caption_share: float = 0.0
    kinds: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, number: int) -> SceneClip:
        return SceneClip(scene_from_seed(self.seed, number), self.caption_share, self.kinds)

    @property
    def fingerprint(self) -> str:
        """The world's version and seed."""
        return f"world{WORLD_VERSION}-seed{self.seed}"

    @property
    def vocabulary(self) -> Vocabulary:
        """The words that label its patches."""
        return SCENE_WORDS
