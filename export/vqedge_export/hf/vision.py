"""The vision half of a source: which of its tensors make our transformer, and of what shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from vqedge.base.backbones import BACKBONES, Family, source_of
from vqedge.base.tensors import Array
from vqedge.config import MAX_BLOCKS, BackboneShape, BackboneSource, EncoderConfig
from vqedge.errors import CheckpointError
from vqedge.validation import first_fault
from vqedge_export.hf.folder import HfFolder
from vqedge_export.hf.parts import Part, Shape, transposed

SO400M_NAME = "siglip-so400m-patch14-384"
SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
_RESCALE = 1 / 255
_DEFAULT_DEPTH = 0.75  # of the blocks: later ones say less about where things are


def family_of(source: BackboneSource) -> Family:
    """The family of a row that is imported."""
    family = BACKBONES[source].family
    assert family is not None, "rows without a family are fetched"
    return family


def model_types() -> list[str]:
    """`model_type` of the vision models that can be imported."""
    return [name for row in BACKBONES.values() if row.family for name in row.family.model_types]


def tower_of(folder: HfFolder) -> tuple[BackboneSource, dict[str, Any]] | None:
    """Row and configuration of the vision tower of an image model; None if the folder is none."""
    config = folder.config
    source = source_of(str(config.get("model_type")))
    if source is None:
        return None
    inner = config.get("vision_config")
    return source, dict(inner) if isinstance(inner, dict) else dict(config)


def tower_of_llava(folder: HfFolder) -> tuple[BackboneSource, dict[str, Any]]:
    """Row and configuration of the vision tower inside a LLaVA folder.

    LLaVA names its tower only; another one needs its configuration as `vision_config`.

    Raises:
        CheckpointError: the tower is not known.
    """
    named, told = str(folder.config.get("mm_vision_tower")), folder.config.get("vision_config")
    if isinstance(told, dict):
        source = source_of(str(told.get("model_type")))
        if source == "siglip":
            return source, dict(told)
    elif named.rpartition("/")[2] == SO400M_NAME:
        return "siglip", dict(SO400M)
    raise CheckpointError(
        f"{folder.path}/config.json: mm_vision_tower {named!r} is not {SO400M_NAME}; put the "
        "configuration of a SigLIP tower there as vision_config"
    )


def encoder_config(
    folder: HfFolder,
    source: BackboneSource,
    tower: Mapping[str, Any],
    block: int | None,
    pixels: Mapping[str, tuple[float, ...]] = MappingProxyType({}),
    **more: Any,
) -> EncoderConfig:
    """How an encoder on a tower is configured.

    Args:
        folder: the source, for messages.
        source: row of the registry.
        tower: the tower's configuration.
        block: blocks to run; below 0 that many fewer than there are; None for three quarters.
        pixels: mean and deviation, where the family's are not meant.
        more: other values of the configuration.

    Raises:
        CheckpointError: the tower is one that we do not build.
    """
    family = family_of(source)
    try:
        shape = family.shape(tower).model_copy(update=pixels)
        run = max(round(_DEFAULT_DEPTH * shape.blocks), 1) if block is None else block
        run = shape.blocks + run if run < 0 else run
        values = {"size": family.size(tower), **more}
        return EncoderConfig(source=source, block=run, shape=shape, **values)
    except ValidationError as error:
        raise CheckpointError(f"{folder.path}: its vision tower: {first_fault(error)}") from error
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{folder.path}: its vision tower has {error}") from error


def vision_parts(encoder: EncoderConfig, stored_grid: int, prefix: str) -> list[Part]:
    """Our transformer's tensors out of a source's.

    Args:
        encoder: what is built.
        stored_grid: positions per side that the source has.
        prefix: before the tower's names, as the source has it.
    """
    family, shape = family_of(encoder.source), encoder.backbone
    shapes = _shapes(shape)
    shapes["cls_token"] = (1, 1, shape.width) if family.batched else (shape.width,)
    parts = [
        _part(ours, prefix + theirs, shapes[ours])
        for ours, theirs in family.outer.items()
        if encoder.final_norm or not ours.startswith("norm.")
    ]
    for index in range(encoder.block):
        below = prefix + family.blocks.format(index)
        for ours, theirs in family.block.items():
            parts.append(_part(f"blocks.{index}.{ours}", below + theirs, shapes[ours]))
    return parts + _position_parts(encoder, stored_grid, prefix + family.position)


def _position_parts(encoder: EncoderConfig, grid: int, source: str) -> list[Part]:
    """The table of positions, that of the class token apart."""
    shape, first = encoder.backbone, int(encoder.backbone.class_token)
    stored: Shape = (grid**2 + first, shape.width)
    stored = (1, *stored) if family_of(encoder.source).batched else stored

    def rows(begin: int, end: int | None) -> Callable[[Array], Array]:
        return lambda array: array.reshape(1, -1, shape.width)[:, begin:end]

    grid_part = Part("position_grid", source, stored, rows(first, None))
    return [Part("position_cls", source, stored, rows(0, 1)), grid_part] if first else [grid_part]


def unread(encoder: EncoderConfig, prefix: str) -> list[str]:
    """Prefixes of a tower's tensors that may be there and that no feature depends on."""
    family = family_of(encoder.source)
    later = [family.blocks.format(index) for index in range(encoder.block, MAX_BLOCKS)]
    last = [] if encoder.final_norm else [family.outer["norm.weight"].removesuffix("weight")]
    return [prefix + name for name in (*family.harmless, *later, *last)]


def pixels_of(folder: HfFolder) -> dict[str, tuple[float, ...]]:
    """Mean and deviation of pixels, if the folder's preprocessor says them.

    Raises:
        CheckpointError: it says something else by their names, or prepares pixels otherwise.
    """
    file, values = _preprocessor(folder)
    _require_usual_pixels(folder.path / file, values)
    found = {ours: values.get(f"image_{ours}") for ours in ("mean", "std")}
    wrong = [
        name
        for name, value in found.items()
        if value is not None and not _are_three(value, positive=name == "std")
    ]
    if wrong:
        raise CheckpointError(f"{folder.path / file}: image_{wrong[0]}: want three numbers")
    return {name: tuple(value) for name, value in found.items() if value is not None}


def _preprocessor(folder: HfFolder) -> tuple[str, dict[str, Any]]:
    """The file that says how pixels are prepared, and what it says; nothing where there is none."""
    if (folder.path / PREPROCESSOR).exists():
        return PREPROCESSOR, folder.json(PREPROCESSOR)
    if (folder.path / PROCESSOR).exists():  # the only one that transformers 5 writes
        inner = folder.json(PROCESSOR).get("image_processor")
        return PROCESSOR, inner if isinstance(inner, dict) else {}
    return PREPROCESSOR, {}


def _require_usual_pixels(path: Path, values: Mapping[str, Any]) -> None:
    """See that pixels are brought to 0..1, then normalised: that is in the exported graph."""
    for name in ("do_rescale", "do_normalize"):
        if values.get(name) is False:
            raise CheckpointError(f"{path}: {name} is false; vqedge imports models that do it")
    factor = values.get("rescale_factor")
    if factor is not None and not (
        type(factor) in (int, float) and math.isclose(factor, _RESCALE, rel_tol=1e-3)
    ):
        raise CheckpointError(f"{path}: rescale_factor is {factor!r}, want 1/255")


def _are_three(value: Any, positive: bool) -> bool:
    """Whether a value is a list of three usable numbers."""
    numbers = isinstance(value, list) and all(type(v) in (int, float) for v in value)
    return numbers and len(value) == 3 and all(0 <= v < 1e3 and (v or not positive) for v in value)


def _part(name: str, source: str, shape: Shape) -> Part:
    if name == "cls_token":
        return Part(name, source, shape, lambda array: array.reshape(1, 1, -1))
    return Part(name, source, shape, transposed) if len(shape) == 2 else Part(name, source, shape)


def _shapes(shape: BackboneShape) -> dict[str, Shape]:
    """Shapes of the source's tensors by our names; its linear weights are `[out, in]`."""
    width, hidden = shape.width, shape.hidden
    vectors = ("first_norm", "norm", "norm1", "norm2")
    found: dict[str, Shape] = {
        f"{name}.{part}": (width,) for name in vectors for part in ("weight", "bias")
    }
    for layer in ("query", "key", "value", "output"):
        found |= {f"attention.{layer}.weight": (width, width), f"attention.{layer}.bias": (width,)}
    found |= {"mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,)}
    found |= {"mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,)}
    found |= {"scale1": (width,), "scale2": (width,)}
    found |= {"patch.weight": (width, 3, shape.patch, shape.patch), "patch.bias": (width,)}
    return found
