"""Quantised clips on disk: the ViT and k-means are frozen, so every generated clip is encoded once.

One safetensors file per shard of 64 clips, written to a temporary name and renamed, so that a
killed run resumes at the next shard and two runs may fill the same folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from vqedge.config import EncoderConfig, QuantizerConfig
from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge.files import replacing

if TYPE_CHECKING:
    from vqedge.model.encoder import ClipQuantizer

SHARD_CLIPS = 64
WORLD_VERSION = 1  # raise when world or render change what a (seed, index) pair shows


@dataclass(frozen=True)
class CachedClips:
    """Quantised clips, stacked.

    Codes in float16, indices in uint8: 27 KB a clip at K=32, 8 frames.
    """

    codes: Tensor  # float16 [B, K, D]
    indices: Tensor  # uint8 [B, T * grid * grid]

    def __len__(self) -> int:
        return len(self.codes)


def reversed_clips(clips: CachedClips, frames: int) -> CachedClips:
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
    return CachedClips(turned, rank.gather(1, flipped).to(torch.uint8))


def concatenated(first: CachedClips, second: CachedClips) -> CachedClips:
    """Clips of `first`, then those of `second`."""
    return CachedClips(
        torch.cat([first.codes, second.codes]), torch.cat([first.indices, second.indices])
    )


def cache_folder(root: Path, encoder: EncoderConfig, quantizer: QuantizerConfig, seed: int) -> Path:
    """Folder of the clips that this encoder, quantizer and world seed give."""
    key = f"{encoder.fingerprint()}-{quantizer.fingerprint()}-world{WORLD_VERSION}-seed{seed}"
    return root / "clips" / key


def missing_shards(folder: Path, clips: int) -> list[int]:
    """Numbers of the shards that still have to be encoded for the first `clips` clips."""
    shards = -(-clips // SHARD_CLIPS)
    return [shard for shard in range(shards) if not _shard_path(folder, shard).exists()]


def fill_shard(folder: Path, shard: int, quantizer: ClipQuantizer, seed: int) -> None:
    """Render and encode 64 clips and write them as one file."""
    encoder = quantizer.config.encoder
    indices = range(shard * SHARD_CLIPS, (shard + 1) * SHARD_CLIPS)
    frames = (
        frames_from_scene(scene_from_seed(seed, index), encoder.frames, encoder.size)
        for index in indices
    )
    results = [quantizer.quantize(torch.from_numpy(clip)) for clip in frames]
    tensors = {
        "codes": torch.stack([result.codes for result in results]).to(torch.float16).cpu(),
        "indices": torch.stack([result.indices for result in results]).to(torch.uint8).cpu(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(_shard_path(folder, shard)) as path:
        save_file(tensors, path)


def load_clips(folder: Path, clips: int) -> CachedClips:
    """Load the first `clips` clips into memory."""
    shards = list(_read_shards(folder, clips))
    return CachedClips(
        torch.cat([shard["codes"] for shard in shards])[:clips],
        torch.cat([shard["indices"] for shard in shards])[:clips],
    )


def _read_shards(folder: Path, clips: int) -> Iterator[dict[str, Tensor]]:
    for shard in range(-(-clips // SHARD_CLIPS)):
        yield load_file(_shard_path(folder, shard))


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f"clips-{shard:05d}.safetensors"
