"""What a run reads, looked at before hours are spent on encoding clips."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product

from vqedge.base.weights import llm_weights
from vqedge.data.clips import ClipSource
from vqedge.data.jsonl import JsonlClips
from vqedge.data.sources import FrameReader, source_from_config
from vqedge.model.answer import MAX_TOKENS
from vqedge.model.checkpoint import refuse_other_model
from vqedge.model.llm import PromptTokenizer
from vqedge.recipe import SourceConfig, TrainConfig


def sources_of(entries: Sequence[SourceConfig], read: FrameReader) -> tuple[ClipSource, ...]:
    """The clips of a recipe's entries; files are read when their clips are first looked at.

    Raises:
        ConfigError: a weight is for a kind of question that there is not.
    """
    return tuple(source_from_config(entry, read) for entry in entries)


def refuse_faults(config: TrainConfig, sources: Iterable[ClipSource], begins: bool) -> None:
    """Read of every input what a run would otherwise come to after its clips are encoded.

    Args:
        config: the run.
        sources: all of them, those to validate with, too.
        begins: no step of it is saved, so that `config.init` is needed.

    Raises:
        CheckpointError: `config.init` is another model.
        DatasetError: a source is missing or malformed.
        FetchError: base weights are not there and cannot be downloaded.
    """
    if config.init is not None and begins:
        refuse_other_model(config.init, config.model)
    for source in sources:
        _ = source.fingerprint  # reads its file
    llm_weights(config.model.llm, config.base)


def long_answers(sources: Iterable[ClipSource], tokenizer: PromptTokenizer) -> Iterator[str]:
    """A line for every file of questions whose answers are longer than any that is generated."""
    for source in dict.fromkeys(each for each in sources if isinstance(each, JsonlClips)):
        clips = (source[number] for number in range(len(source)))
        placed = (pair for clip in clips for pair in zip(clip.places, clip.asked, strict=True))
        lengths = {
            place: len(tokenizer.answer(item.answer)) - 1  # without the end of the turn
            for place, item in placed
            if not item.choices
        }
        long = {place: length for place, length in lengths.items() if length > MAX_TOKENS}
        if long:
            place, length = next(iter(long.items()))
            more = len(long) - 1
            others = f"; so it is with {more} more line{'s' if more > 1 else ''}" if more else ""
            yield (
                f"{place}: its answer has {length} tokens, and no more than {MAX_TOKENS} are "
                f"generated, so that none can be right{others}"
            )


def shared_videos(shown: Sequence[ClipSource], kept_back: Sequence[ClipSource]) -> Iterator[str]:
    """A line for every two files of questions, to train on and to validate with, about one video.

    Raises:
        DatasetError: a file is missing or malformed.
    """
    for ours, theirs in product(shown, kept_back):
        if isinstance(ours, JsonlClips) and isinstance(theirs, JsonlClips):
            both = sorted(path.name for path in ours.videos & theirs.videos)
            if both:
                yield (
                    f"{theirs.path}: {len(both)} of its {len(theirs.videos)} videos are in "
                    f"{ours.path}, too, as {both[0]}; validation will say little of any others"
                )
