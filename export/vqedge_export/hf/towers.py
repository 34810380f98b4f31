"""A vision model alone: its features under the packaged language model, a bridge to be trained."""

from __future__ import annotations

from vqedge.config import ModelConfig
from vqedge.errors import CheckpointError, ConfigError
from vqedge_export.hf.folder import HfFolder
from vqedge_export.hf.llava import PAPER, Plan
from vqedge_export.hf.parts import require_fit
from vqedge_export.hf.vision import (
    encoder_config,
    family_of,
    pixels_of,
    tower_of,
    unread,
    vision_parts,
)


def plan_from_tower(
    folder: HfFolder, mode: str | None, frames: int, block: int | None, size: int | None = None
) -> Plan:
    """Plan the import of a SigLIP, CLIP or DINOv2 folder.

    Args:
        folder: the source.
        mode: `paper`, the only one there is.
        frames: of a clip.
        block: the block whose features are taken; None for one at three quarters.
        size: of frames in pixels; None for that of the configuration. Positions are interpolated.

    Raises:
        CheckpointError: it is built in a way that vqedge does not follow, or tensors do not fit.
        ConfigError: another mode, or a size that is no whole number of patches.
    """
    if mode not in (None, PAPER):
        raise ConfigError(f"--mode {mode}: {folder.path} is a vision model alone; leave it out")
    found = tower_of(folder)
    if found is None:
        raise CheckpointError(f"{folder.path}/config.json: not a vision model")
    source, tower = found
    family = family_of(source)
    more = {"frames": frames} if size is None else {"frames": frames, "size": size}
    encoder = encoder_config(folder, source, tower, block, pixels_of(folder), **more)
    patch = encoder.backbone.patch
    if size is not None and size % patch:
        raise ConfigError(
            f"--size {size}: patches of {folder.path} are {patch} pixels wide; give a multiple, as "
            f"{max(round(size / patch), 1) * patch}"
        )
    prefix = _prefix(folder, family.prefix)
    parts = vision_parts(encoder, family.size(tower) // encoder.backbone.patch, prefix)
    beginnings = (*unread(encoder, prefix), *family.beside)
    spare = require_fit(folder, parts, lambda name: name.startswith(beginnings))
    return Plan(ModelConfig(encoder=encoder), parts, [], None, tuple(spare))


def _prefix(folder: HfFolder, prefix: str) -> str:
    """Before the tower's names; models for classification put the model's own name in front."""
    outer = f"{folder.config.get('model_type')}."
    return outer + prefix if any(name.startswith(outer) for name in folder.tensors) else prefix
