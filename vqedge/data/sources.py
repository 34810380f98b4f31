"""From a recipe's sources to clips."""

from __future__ import annotations

from vqedge.data import photo_questions, questions
from vqedge.data.clips import ClipSource
from vqedge.data.generated import GeneratedClips
from vqedge.data.jsonl import FrameReader, JsonlClips
from vqedge.data.photos import PhotoClips
from vqedge.data.questions import kinds_by_weight
from vqedge.recipe import JsonlConfig, PhotosConfig, SourceConfig, WorldConfig

__all__ = ["FrameReader", "source_from_config"]


def source_from_config(config: SourceConfig, read: FrameReader) -> ClipSource:
    """The clips that one entry of a recipe names.

    Args:
        config: the entry.
        read: how files are decoded; the runtime's reader, so that training sees what a device sees.

    Raises:
        DatasetError: a file is missing or malformed.
        ConfigError: a weight is for a kind of question that there is not.
    """
    if isinstance(config, WorldConfig):
        kinds = kinds_by_weight(config.kind_weights, [*questions.KINDS], [*questions.BY_WEIGHT])
        return GeneratedClips(config.seed, config.clips, config.caption_share, kinds)
    if isinstance(config, PhotosConfig):
        weights = config.kind_weights
        kinds = kinds_by_weight(weights, [*photo_questions.KINDS]) if weights else ()
        return PhotoClips(
            config.index, config.split, config.seed, config.clips, config.caption_share, kinds
        )
    assert isinstance(config, JsonlConfig)
    return JsonlClips(config.path, read)
