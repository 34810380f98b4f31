"""A checkpoint folder: configuration, trained tensors, adapter, metrics, and the graph.

Holds what training changed, in float16, and no base weight but the interpolated position embedding,
so that a device without torch can assemble the encoder from it; one that stands on imported weights
holds these, too (`vqedge.base.weights`). safetensors only, never a pickle.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from vqedge.base.tensors import not_finite
from vqedge.base.weights import encoder_weights, llm_weights
from vqedge.checkpoint import CONFIG, LORA, METRICS, MODEL, SAVE, model_config_of
from vqedge.config import EncoderConfig, ModelConfig
from vqedge.errors import CheckpointError
from vqedge.files import replacing
from vqedge.model.encoder import ClipQuantizer, TrainedBridge, VideoEncoder, bridge_from_config
from vqedge.model.last_blocks import BACKBONE_PREFIX, last_blocks
from vqedge.model.llm import llm_from_gguf, with_lora
from vqedge.model.reducers.training import REDUCER_PREFIX
from vqedge.model.trained_reducer import TrainedReducer
from vqedge.model.vit import vit_from_source
from vqedge.reducers import has_weights
from vqedge.tensor_files import save_file, tensors_sha256

BRIDGE_PREFIX = "bridge."
_ROWS_OF_WORDS = f"{BRIDGE_PREFIX}table"
_READS_CODES = f"{BRIDGE_PREFIX}attention.code"
POSITION = f"{BACKBONE_PREFIX}position"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: its folder and its configuration. Weights load on demand."""

    path: Path
    config: ModelConfig

    def encoder(self) -> VideoEncoder:
        """The whole encoder, frozen, in eval mode."""
        quantizer = clip_quantizer(self.config, self.path)
        bridge = bridge_from_config(self.config)
        tensors = load_tensors(self.path / MODEL)
        load_bridge(bridge, tensors)
        if has_weights(self.config.quantizer.kind):
            load_reducer(quantizer.quantizer, tensors)
        if trained := self.config.encoder.trained_blocks:
            _load(last_blocks(quantizer.vit, trained), tensors, BACKBONE_PREFIX)
        return VideoEncoder(quantizer, bridge).requires_grad_(False).eval()

    def llm(self) -> Any:
        """The language model with LoRA merged into its weights."""
        base = llm_from_gguf(llm_weights(self.config.llm, self.path).path)
        tensors = load_tensors(self.path / LORA)
        if not tensors:  # imported, and not trained since
            return base
        llm = with_lora(base, self.config.llm)
        load_lora(llm, tensors)
        merged: Any = llm.merge_and_unload()
        return merged.requires_grad_(False).eval()


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint's configuration and see that its files are there.

    Raises:
        CheckpointError: a file is missing, the configuration does not fit this version, or the
            weights are of two saves.
    """
    return Checkpoint(path, model_config_of(path))


def save_checkpoint(
    path: Path,
    config: ModelConfig,
    position: Tensor,
    bridge: TrainedBridge,
    llm: Any,
    metrics: Mapping[str, Any],
    reducer: TrainedReducer | None = None,
) -> Checkpoint:
    """Write a checkpoint.

    Trained weights are rounded to float16, the position embedding is kept as it is.
    """
    path.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{BRIDGE_PREFIX}{name}": _half(value) for name, value in bridge.state_dict().items()
    }
    if reducer is not None:
        weights = reducer.kept().state_dict()
        tensors |= {f"{reducer.prefix}{name}": _half(value) for name, value in weights.items()}
    tensors[POSITION] = position.detach().float().contiguous().cpu()
    lora = {name: _half(value) for name, value in _lora_state(llm).items()}
    info = {SAVE: tensors_sha256({**tensors, **lora})}  # a kill may come between the two files
    with replacing(path / MODEL) as file:
        save_file(tensors, file, info)
    with replacing(path / LORA) as file:
        save_file(lora, file, info)
    _write_json(path / CONFIG, config.model_dump(mode="json"))
    _write_json(path / METRICS, metrics)
    return Checkpoint(path, config)


def clip_quantizer(config: ModelConfig, folder: Path) -> ClipQuantizer:
    """The frozen half of the encoder, from base weights that are fetched or in a checkpoint."""
    vit = vit_from_source(encoder_weights(config.encoder, folder).path, config.encoder)
    return ClipQuantizer(config, vit).eval()


def load_bridge(bridge: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill the bridge strictly from a checkpoint's tensors."""
    _load(bridge, tensors, BRIDGE_PREFIX)


def load_reducer(quantizer: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill the weights of a `ReducerQuantizer` strictly from a checkpoint's tensors.

    Raises:
        CheckpointError: one is missing, unknown or of another shape.
    """
    _load(quantizer.get_submodule("reducer"), tensors, REDUCER_PREFIX)


def load_lora(llm: Any, tensors: Mapping[str, Tensor]) -> None:
    """Fill the adapter strictly from a checkpoint's tensors.

    Args:
        llm: with the adapter's layers in it.
        tensors: PEFT names, `lora_A [r, in]` and `lora_B [out, r]` of every adapted layer.

    Raises:
        CheckpointError: one is missing or unknown.
    """
    wanted = set(_lora_state(llm))
    if wanted != set(tensors):
        odd = sorted(wanted ^ set(tensors))
        raise CheckpointError(f"{LORA}: {len(odd)} tensors missing or unknown, first {odd[0]!r}")
    set_peft_model_state_dict(llm, {name: value.float() for name, value in tensors.items()})


def start_from(
    path: Path,
    config: ModelConfig,
    bridge: TrainedBridge,
    llm: Any,
    reducer: TrainedReducer | None = None,
) -> bool:
    """Fill bridge, adapter and reducer from another checkpoint, to train on from there.

    A learned codebook may be new to it: its tables then stay as they are, as do the weights of a
    reducer, or of trained blocks, that it does not have. Where the codebook compares fewer features
    than the codes have, so does what reads them. So may be a vocabulary of video words, which no
    part of another bridge fits: then the adapter alone is taken. Rows of words are made of the
    weights, so that sizes or places may be told in finer steps than they were.

    Returns:
        Whether the whole bridge was filled, but for tables.

    Raises:
        CheckpointError: it is another model, or not a readable checkpoint.
    """
    was = refuse_other_model(path, config)
    if lora := load_tensors(path / LORA):
        load_lora(llm, lora)
    if _words_are_new(was, config):
        return False
    tensors = load_tensors(path / MODEL)
    new = {f"{BRIDGE_PREFIX}{name}": value for name, value in bridge.state_dict().items()}
    tables = {name: value for name, value in new.items() if _is_table(name)}
    rows = {name: value for name, value in new.items() if name == _ROWS_OF_WORDS}
    narrows = f"{BRIDGE_PREFIX}codebook.narrow.weight" in new.keys() - tensors.keys()
    if narrows:  # nothing of the other bridge reads so few features
        rows |= {name: value for name, value in new.items() if name.startswith(_READS_CODES)}
    load_bridge(bridge, {**tables, **tensors, **rows})
    there = was.quantizer.kind == config.quantizer.kind and was.encoder == config.encoder
    if reducer is not None and there:
        _load(reducer.kept(), tensors, reducer.prefix)
    return not narrows


def refuse_other_model(path: Path, config: ModelConfig) -> ModelConfig:
    """See whether a model may start from a checkpoint, without reading its weights.

    Returns:
        The checkpoint's configuration.

    Raises:
        CheckpointError: it is another model, or a file of it is missing.
    """
    was = model_config_of(path)
    alike = ("encoder", "llm") if _words_are_new(was, config) else ("encoder", "attention", "llm")
    same, frozen = {name: getattr(config, name) for name in alike}, _all_frozen(config.encoder)
    if was.encoder == frozen:
        same["encoder"] = frozen
    differs = [name for name, part in same.items() if getattr(was, name) != part]
    if differs:
        raise CheckpointError(f"{path}: cannot start from it, its {differs[0]} differs")
    return was


def _words_are_new(was: ModelConfig, config: ModelConfig) -> bool:
    return config.attention.hash == "tokens" and was.attention.hash != "tokens"


def _all_frozen(encoder: EncoderConfig) -> EncoderConfig:
    return encoder.model_copy(update={"trained_blocks": 0})


def _load(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Fill a module strictly from the tensors whose names begin with a prefix.

    Raises:
        CheckpointError: one is missing, unknown or of another shape.
    """
    state = {
        name.removeprefix(prefix): value.float()
        for name, value in tensors.items()
        if name.startswith(prefix) and name != POSITION
    }
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{MODEL}: {' '.join(str(error).split())}") from error


def _is_table(name: str) -> bool:
    return name.startswith(f"{BRIDGE_PREFIX}codebook.")


def _lora_state(llm: Any) -> dict[str, Tensor]:
    """The adapter's tensors, PEFT names. Never asks a hub whether the embeddings changed."""
    state: dict[str, Tensor] = get_peft_model_state_dict(llm, save_embedding_layers=False)
    return state


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        CheckpointError: it cannot be read or holds something else, or a number that is not finite.
    """
    try:
        tensors = load_file(path)
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from error
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise not_finite(path, name)
    return tensors


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    with replacing(path) as file:
        file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _half(value: Tensor) -> Tensor:
    return value.detach().to(torch.float16).contiguous().cpu()
