"""Quantised clips on disk: ViT and quantizer are frozen, so every clip is encoded once.

Made from the features of `vqedge.training.features` where they are kept, else from the clips. A
folder per budget, so that recipes with other budgets share what they can, and in it one
safetensors file per shard of 64 clips; a killed run resumes at the next shard, and the processes of
one run share the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from vqedge.config import EncoderConfig, QuantizerConfig
from vqedge.data.clips import ClipSource
from vqedge.files import remove_unfinished, replacing
from vqedge.model.encoder import ClipQuantizer
from vqedge.progress import Clock
from vqedge.reducers import reads_attention, version_of
from vqedge.tensor_files import save_file
from vqedge.training.features import (
    FeatureCache,
    Rows,
    all_shards,
    lacks_shard,
    missing_shards,
    shard_path,
)

_TENSORS = ("codes", "indices")


@dataclass(frozen=True)
class QuantizedClips:
    """Quantised clips at one budget, stacked. K rows, N patches, D features."""

    codes: Tensor  # float16 [B, K, D]
    indices: Tensor  # uint8 [B, N]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, numbers: Sequence[int]) -> QuantizedClips:
        return QuantizedClips(self.codes[numbers], self.indices[numbers])


def reversed_clips(clips: QuantizedClips, frames: int) -> QuantizedClips:
    """The same clips played backwards, exactly as encoding them would give.

    The backbone sees one frame at a time and k-means all patches at once, so only the order of the
    index map turns; codes are put in order of first occurrence again.
    """
    batch, codes, _width = clips.codes.shape
    flipped = clips.indices.view(batch, frames, -1).flip(1).flatten(1).long()
    patches = flipped.shape[1]
    first = torch.full((batch, codes), patches).scatter_reduce(
        1, flipped, torch.arange(patches).expand(batch, -1), "amin"
    )
    order = first.argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)
    turned = clips.codes.gather(1, order[..., None].expand_as(clips.codes))
    return QuantizedClips(turned, rank.gather(1, flipped).to(torch.uint8))


def _method(quantizer: QuantizerConfig) -> str:
    """Name for all that a clip's codes at one budget depend on beside encoder and clip."""
    unit, version = "-unit" if quantizer.unit_means else "", version_of(quantizer.kind)
    how = f"{unit}-v{version}" if version > 1 else unit
    if quantizer.kind in ("kmeans", "codebook"):  # a learned codebook is looked up in training
        return f"kmeans{quantizer.iterations}{how}"
    return f"{quantizer.kind.replace(':', '-')}-of{quantizer.codes}{how}"


@dataclass(frozen=True)
class ClipCache:
    """The quantised clips of one source under one encoder and quantizer.

    Args:
        root: the cache of this user.
        encoder, quantizer: what encodes.
        source: what is encoded.
        budgets: how many codes to quantise with, each.
        keep_features: keep the patch features for other quantizers.
    """

    root: Path
    encoder: EncoderConfig
    quantizer: QuantizerConfig
    source: ClipSource
    budgets: tuple[int, ...]
    keep_features: bool = False

    def folder(self, budget: int) -> Path:
        """Where the clips at a budget are; its name changes with anything that changes them."""
        method = _method(self.quantizer)
        name = f"{self.encoder.fingerprint()}-{method}-k{budget}-{self.source.fingerprint}"
        return self.root / "clips" / name

    def missing(self) -> list[int]:
        """Numbers of the shards that still have to be quantised, at some budget at least."""
        folders = map(self.folder, self.budgets)
        return sorted({shard for path in folders for shard in missing_shards(path, self.source)})

    def fill(
        self,
        shards: Sequence[int],
        quantizer: ClipQuantizer,
        workers: int = 0,
        clock: Clock | None = None,
    ) -> Iterator[int]:
        """Quantise the clips of shards and write a file each; yields a shard's number when done.

        Args:
            shards: their numbers.
            quantizer: on its device.
            workers: processes that draw clips ahead.
            clock: once it is stopped, no more clips are encoded.
        """
        for budget in self.budgets:
            remove_unfinished(self.folder(budget))
        rows: Rows = "attended" if reads_attention(self.quantizer.kind) else "patches"
        features = FeatureCache(self.root, self.encoder, self.source, rows, self.keep_features)
        for shard, found in features.fill(shards, quantizer, workers, clock):
            self._write(shard, found, quantizer)
            yield shard

    def load(self) -> dict[int, QuantizedClips]:
        """All clips in memory, by budget."""
        return {budget: self._at(budget) for budget in self.budgets}

    def _at(self, budget: int) -> QuantizedClips:
        folder, count = self.folder(budget), len(self.source)
        shards = [load_file(shard_path(folder, shard)) for shard in all_shards(self.source)]
        codes, indices = (torch.cat([shard[name] for shard in shards]) for name in _TENSORS)
        return QuantizedClips(codes[:count], indices[:count])

    @torch.inference_mode()
    def _write(self, shard: int, rows: Tensor, quantizer: ClipQuantizer) -> None:
        device = next(quantizer.vit.parameters()).device
        budgets = [b for b in self.budgets if lacks_shard(self.folder(b), self.source, shard)]
        results = quantizer.quantizer.at_budgets_of(rows.to(device), budgets)
        for budget, found in zip(budgets, results, strict=True):
            tensors = found.codes.to(torch.float16).cpu(), found.indices.to(torch.uint8).cpu()
            self.folder(budget).mkdir(parents=True, exist_ok=True)
            with replacing(shard_path(self.folder(budget), shard)) as path:
                save_file(dict(zip(_TENSORS, tensors, strict=True)), path)
