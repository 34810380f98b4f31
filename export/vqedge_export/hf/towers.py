"""A vision model alone: its features under the packaged language model, a bridge to be trained."""

from __future__ import annotations

from vqedge.base.backbones import Family
from vqedge.config import ModelConfig
from vqedge.errors import CheckpointError, ConfigError
from vqedge_export.hf.folder import HfFolder
from vqedge_export.hf.llava import MODEL_TYPES, PAPER, Plan
from vqedge_export.hf.parts import require_fit
from vqedge_export.hf.vision import (
    encoder_config,
    family_of,
    model_types,
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
        raise CheckpointError(
            f"{folder.path}/config.json: model_type {folder.config.get('model_type')!r} is none "
            f"of {', '.join((*model_types(), *MODEL_TYPES))}"
        )
    source, tower = found
    family = family_of(source)
    more = {"frames": frames} if size is None else {"frames": frames, "size": size}
    encoder = encoder_config(folder, source, tower, block, pixels_of(folder), **more)
    patch = encoder.backbone.patch
    if size is not None and size % patch and size != family.size(tower):
        raise ConfigError(
            f"--size {size}: patches of {folder.path} are {patch} pixels wide; give a multiple, as "
            f"{max(round(size / patch), 1) * patch}"
        )
    prefix = _prefix(folder, family)
    parts = vision_parts(encoder, family.size(tower) // encoder.backbone.patch, prefix)
    beginnings = (*unread(encoder, prefix), *family.beside)
    spare = require_fit(folder, parts, lambda name: name.startswith(beginnings))
    return Plan(ModelConfig(encoder=encoder), parts, [], None, tuple(spare))


def _prefix(folder: HfFolder, family: Family) -> str:
    """Before the tower's names.

    Models for classification put the model's own name in front; transformers 5 leaves the family's
    prefix out where it saves a tower alone.
    """
    names, own = folder.tensors, f"{folder.config.get('model_type')}."
    outer = own if any(name.startswith(own) for name in names) else ""
    whole = outer + family.prefix
    cut = outer + family.outer["patch.weight"] in names
    return outer if cut and not any(name.startswith(whole) for name in names) else whole
