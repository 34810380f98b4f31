"""The clips of a run, encoded once and kept in the user's cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from accelerate import Accelerator

from vqedge.data.clips import ClipSource
from vqedge.data.jsonl import JsonlClips
from vqedge.errors import DatasetError
from vqedge.files import cache_root
from vqedge.model.encoder import ClipQuantizer
from vqedge.progress import Clock, progress, tell
from vqedge.recipe import SourceConfig, TrainConfig
from vqedge.reducers import has_weights
from vqedge.training.cache import ClipCache
from vqedge.training.dataset import TrainingClips
from vqedge.training.features import SHARD_CLIPS, FeatureCache, faults_of, shard_numbers
from vqedge.training.processes import anyone, share_of, workers_of


def training_clips(
    config: TrainConfig,
    entries: tuple[SourceConfig, ...],
    sources: tuple[ClipSource, ...],
    quantizer: ClipQuantizer,
    accelerator: Accelerator,
    clock: Clock,
) -> TrainingClips | None:
    """Clips of the sources of some entries, encoding those that the cache does not hold yet.

    None if time ran out on the way.

    Raises:
        DatasetError: something else takes files out of the cache.
    """
    model, data = config.model, config.data
    caches = [_cache_of(config, source) for source in sources]
    speaks = accelerator.is_main_process
    for cache in caches:
        mine = [] if clock.is_up() else share_of(cache.missing(), accelerator)
        workers = workers_of(data.workers, isinstance(cache.source, JsonlClips))
        what, unit = f"encoding {cache.source.fingerprint}", ("clips", SHARD_CLIPS)
        with progress(what, len(mine), shown=speaks, unit=unit) as advance:
            for _shard in cache.fill(mine, quantizer, workers, clock):
                advance("")
                if clock.is_up():
                    break
    stopped = anyone(clock.is_up(), accelerator)  # and wait for all
    if any(cache.missing() for cache in caches):
        if not stopped:
            raise DatasetError(
                f"{cache_root()}: clips are missing that others were to encode; give all processes "
                "one VQEDGE_CACHE that nothing else empties"
            )
        return None
    return TrainingClips(
        sources,
        tuple(cache.load() for cache in caches),
        tuple(entry.weight for entry in entries),
        model.encoder.frames,
        data.time_reversal,
    )


def refuse_unreadable(
    config: TrainConfig,
    sources: Iterable[ClipSource],
    accelerator: Accelerator,
    clock: Clock,
) -> None:
    """Open every video that has to be encoded, and read a frame of it, before any is.

    Raises:
        DatasetError: some cannot be read; all of them were told.
    """
    faults = list[str]()
    if accelerator.is_main_process:
        own = dict.fromkeys(each for each in sources if isinstance(each, JsonlClips))
        faults += [fault for source in own for fault in _faults_of(config, source, clock)]
        for fault in faults:
            tell(fault, always=True)
    if anyone(bool(faults), accelerator):  # and wait for all
        raise DatasetError(
            f"{len(faults) or 'some'} clips cannot be read; they are listed above: mend their "
            "videos, or take out their lines"
        )


def _faults_of(config: TrainConfig, source: JsonlClips, clock: Clock) -> Iterator[str]:
    missing = _cache_of(config, source).missing()
    numbers = [number for shard in missing for number in shard_numbers(source, shard)]
    workers, unit = workers_of(config.data.workers, decode=True), ("clips", 1)
    with progress(f"opening the videos of {source.path}", len(numbers), unit=unit) as advance:
        for fault in faults_of(source, numbers, config.model.encoder.size, workers):
            advance("")
            if fault is not None:
                yield fault
            if clock.is_up():
                return


def _cache_of(config: TrainConfig, source: ClipSource) -> ClipCache | FeatureCache:
    """What is kept of a source's clips: codes, or what those are made of where that is trained."""
    model, data = config.model, config.data
    if model.encoder.trained_blocks:
        return FeatureCache(cache_root(), model.encoder.trunk, source, "tokens")
    if has_weights(model.quantizer.kind):
        return FeatureCache(cache_root(), model.encoder, source)
    return ClipCache(
        cache_root(), model.encoder, model.quantizer, source, data.budgets, data.keep_features
    )
