"""Patch features on disk: the ViT is frozen, so every clip is encoded once for all quantizers.

One safetensors file per shard of 64 clips, written to a temporary name and renamed, so that a
killed run resumes at the next shard and several processes may fill the same folder.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vqedge.config import EncoderConfig
from vqedge.data.clips import ClipSource
from vqedge.data.jsonl import JsonlClips
from vqedge.errors import VqedgeError
from vqedge.files import remove_unfinished, replacing
from vqedge.model.encoder import ClipQuantizer
from vqedge.progress import STOP_SIGNALS, Clock
from vqedge.tensor_files import save_file

SHARD_CLIPS = 64

Rows = Literal["patches", "attended", "tokens"]
"""What is kept of a clip: its patches; with what the CLS token attends to as the last column; or
all tokens of the backbone's frozen blocks, where the blocks after them are trained."""
_SUFFIXES: dict[Rows, str] = {"patches": "", "attended": "-cls", "tokens": "-tokens"}


@dataclass(frozen=True)
class FeatureClips:
    """The clips of a source as features, read from disk one by one: they need not fit in memory.

    Args:
        folder: of the shards.
        count: clips that there are.
    """

    folder: Path
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Tensor:
        """Features of one clip, float16 `[T * grid * grid, D]`."""
        shard, place = divmod(number, SHARD_CLIPS)
        with safe_open(shard_path(self.folder, shard), framework="pt") as file:
            features: Tensor = file.get_slice("features")[place]
        return features


@dataclass(frozen=True)
class FeatureCache:
    """The patch features of one source under one encoder.

    Args:
        root: the cache of this user.
        encoder: what encodes.
        source: what is encoded.
        rows: what is kept, each apart from the others.
        keep: write features that are not there yet.
    """

    root: Path
    encoder: EncoderConfig
    source: ClipSource
    rows: Rows = "patches"
    keep: bool = True

    @property
    def folder(self) -> Path:
        """Where the features are."""
        plain = features_folder(self.root, self.encoder, self.source)
        return plain.with_name(plain.name + _SUFFIXES[self.rows])

    def missing(self) -> list[int]:
        """Numbers of the shards that are not on disk."""
        return missing_shards(self.folder, self.source)

    def fill(
        self,
        shards: Sequence[int],
        quantizer: ClipQuantizer,
        workers: int = 0,
        clock: Clock | None = None,
    ) -> Iterator[tuple[int, Tensor]]:
        """Number and features of every shard, those on disk first; float16 `[clips, N, D]`.

        Those that are encoded now are on the quantizer's device, the others on the CPU.

        Args:
            shards: their numbers.
            quantizer: whose rows are wanted, on its device.
            workers: processes that draw clips ahead.
            clock: once it is stopped, no more clips are encoded.
        """
        remove_unfinished(self.folder)
        missing = self.missing()
        for shard in (shard for shard in shards if shard not in missing):
            count = len(shard_numbers(self.source, shard))
            yield shard, load_features(self.folder, shard)[:count]
        rest = [shard for shard in shards if shard in missing]
        for shard, rows in encoded_shards(
            rest, self.source, quantizer, self.encoder, workers, self.rows, clock
        ):
            if self.keep:
                save_features(self.folder, shard, rows)
            yield shard, rows

    def load(self) -> FeatureClips:
        """All clips, left on disk."""
        return FeatureClips(self.folder, len(self.source))


class _Frames(Dataset[npt.NDArray[np.uint8] | VqedgeError]):
    """Clips as frames, for a loader's worker processes.

    Arrays go through a pipe; tensors would through shared memory, of which containers have little.
    What is wrong with one is handed over instead: an error raised in a worker comes with its
    traceback as its message.
    """

    def __init__(self, source: ClipSource, numbers: Sequence[int], encoder: EncoderConfig) -> None:
        self.source, self.numbers, self.encoder = source, numbers, encoder

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> npt.NDArray[np.uint8] | VqedgeError:
        try:
            return self.source[self.numbers[place]].frames(self.encoder.frames, self.encoder.size)
        except VqedgeError as error:
            return error


class _Faults(Dataset[str | None]):
    """What is wrong with clips of files, for the same processes."""

    def __init__(self, source: JsonlClips, numbers: Sequence[int], size: int) -> None:
        self.source, self.numbers, self.size = source, numbers, size

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> str | None:
        return self.source[self.numbers[place]].fault(self.size)


@contextmanager
def _drawn(found: Dataset[Any], workers: int) -> Iterator[Iterator[Any]]:
    """One after another, ahead of time by so many processes; 0 draws them here."""
    loader = DataLoader(
        found,
        None,
        num_workers=workers,
        collate_fn=_unchanged,
        worker_init_fn=_deaf_worker,
    )
    drawn = iter(loader)
    with _ending(drawn):
        yield drawn


def faults_of(
    source: JsonlClips, numbers: Sequence[int], size: int, workers: int = 0
) -> Iterator[str | None]:
    """Open the files of clips and read a frame of each: `FILE:LINE: what is wrong`, or None.

    Args:
        source: the clips.
        numbers: of those to look at.
        size: of a frame in pixels.
        workers: processes that decode; 0 decodes here.
    """
    if not numbers:
        return
    with _drawn(_Faults(source, numbers, size), workers) as found:
        yield from found


def _unchanged(found: Any) -> Any:
    return found


def _deaf_worker(_: int) -> None:
    """What tells a command to stop reaches its whole group; a worker ends when it has no more."""
    for number in (signal.SIGINT, *STOP_SIGNALS):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _ending(clips: Iterator[Any]) -> Iterator[None]:
    """End a loader's processes at last, those that are stuck in a file, too.

    They hear no SIGTERM: the interpreter would wait for them without end where it ends itself. And
    a loader that is collected with an error waits five seconds for each.
    """
    try:
        yield
    finally:
        end: Callable[[], None] = getattr(clips, "_shutdown_workers", lambda: None)
        end()
        for worker in getattr(clips, "_workers", ()):
            worker.kill()


def features_folder(root: Path, encoder: EncoderConfig, source: ClipSource) -> Path:
    """Folder of the patch features that this encoder gives for this source."""
    return root / "features" / f"{encoder.fingerprint()}-{source.fingerprint}"


def shard_path(folder: Path, shard: int) -> Path:
    """File of a shard's clips."""
    return folder / f"clips-{shard:05d}.safetensors"


def shard_numbers(source: ClipSource, shard: int) -> range:
    """Numbers of the clips of a shard."""
    return range(shard * SHARD_CLIPS, min((shard + 1) * SHARD_CLIPS, len(source)))


def shard_rows(path: Path) -> int:
    """How many clips a shard's file holds, 0 if there is none or a crash has cut it off."""
    if not path.exists():
        return 0
    try:
        with safe_open(path, framework="pt") as file:
            name = next(iter(file.keys()), None)
            shape = file.get_slice(name).get_shape() if name else []
            return int(shape[0]) if shape else 0
    except SafetensorError:
        return 0


def all_shards(source: ClipSource) -> range:
    """Numbers of a source's shards."""
    return range(-(-len(source) // SHARD_CLIPS))


def missing_shards(folder: Path, source: ClipSource) -> list[int]:
    """Numbers of the shards whose file does not hold all their clips."""
    return [shard for shard in all_shards(source) if lacks_shard(folder, source, shard)]


def lacks_shard(folder: Path, source: ClipSource, shard: int) -> bool:
    """Is a shard's file not there, damaged, or of an earlier run that asked for fewer clips?"""
    return shard_rows(shard_path(folder, shard)) < len(shard_numbers(source, shard))


def encoded_shards(
    shards: Sequence[int],
    source: ClipSource,
    quantizer: ClipQuantizer,
    encoder: EncoderConfig,
    workers: int = 0,
    kind: Rows = "patches",
    clock: Clock | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """Draw and encode the clips of shards one after another.

    Args:
        shards: their numbers.
        source: the clips.
        quantizer: whose rows are wanted, on its device.
        encoder: frames and size.
        workers: processes that draw clips ahead; 0 draws them here.
        kind: which of its rows.
        clock: once it is stopped, it ends before the next clip, and without a shard's first ones.

    Yields:
        a shard's number and its features, float16 `[clips, N, D]` on the quantizer's device.

    Raises:
        VqedgeError: of one kind or another, a clip cannot be drawn or decoded.
    """
    if not shards:
        return
    device = next(quantizer.vit.parameters()).device
    read = quantizer.trunk if kind == "tokens" else quantizer.patches
    numbers = [number for shard in shards for number in shard_numbers(source, shard)]
    clock = clock or Clock()
    with _drawn(_Frames(source, numbers, encoder), workers) as clips:
        for shard in shards:
            rows = []
            for _ in shard_numbers(source, shard):
                if clock.stopped:
                    return
                frames = next(clips)
                if isinstance(frames, VqedgeError):
                    raise frames
                with torch.inference_mode():
                    rows.append(read(torch.from_numpy(frames).to(device)).half())
            yield shard, torch.stack(rows)


def save_features(folder: Path, shard: int, rows: Tensor) -> None:
    """Write the features of a shard, 1.6 MB a clip at 8 frames of 224."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(shard_path(folder, shard)) as path:
        save_file({"features": rows.cpu()}, path)


def load_features(folder: Path, shard: int) -> Tensor:
    """Features of a shard, float16 `[clips, T * grid * grid, D]`."""
    return load_file(shard_path(folder, shard))["features"]
