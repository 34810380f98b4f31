"""`vqedge import`: a Hugging Face folder in, a checkpoint out."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from vqedge.base.tensors import Array, TensorFile
from vqedge.base.weights import Origin
from vqedge.checkpoint import CONFIG, ENCODER_WEIGHTS, LLM_WEIGHTS, LORA, MODEL, ORIGIN
from vqedge.config import ModelConfig
from vqedge.errors import CheckpointError, ConfigError, printable
from vqedge.files import file_sha256, usual_mode
from vqedge.model.checkpoint import BRIDGE_PREFIX, POSITION
from vqedge.model.encoder import Bridge
from vqedge.model.reducers.registry import reducer_quantizer
from vqedge.model.vit import position_table
from vqedge.reducers import training_free_kind
from vqedge.workspace import workspace_beside
from vqedge_export.graph import LARGEST_BYTES
from vqedge_export.hf.folder import HfFolder
from vqedge_export.hf.language import write_gguf
from vqedge_export.hf.llava import MODEL_TYPES, OFFICIAL, Plan, plan_from_llava
from vqedge_export.hf.parts import MisfitError, arrays_of, write_parts
from vqedge_export.hf.towers import plan_from_tower

logger = logging.getLogger(__name__)

DEFAULT_FRAMES = 16
_LONGEST_NAME = 200
_LONGEST_CARD = 1 << 20
_MUCH_BYTES = 10**9  # of memory for a clip, from which on a user is told
_NO_LICENCE = "not stated by the source"


@dataclass(frozen=True)
class Imported:
    """A checkpoint that was imported.

    Attributes:
        path: its folder.
        config: what it holds.
        ignored: tensors of the source that nothing here depends on.
    """

    path: Path
    config: ModelConfig
    ignored: tuple[str, ...]

    @property
    def memory_note(self) -> str | None:
        """What the encoder takes for a clip, if that is much: ONNX holds all frames' attention."""
        encoder = self.config.encoder
        shape = encoder.backbone
        rows = encoder.grid**2 + shape.class_token
        taken = 2 * 4 * encoder.frames * shape.heads * rows**2  # scores and weights in float32
        if taken < _MUCH_BYTES:
            return None
        size = "" if encoder.projected else "a smaller --size or "  # which a LLaVA refuses
        return (
            f"a clip of {encoder.frames} frames takes about {taken / 1e9:.1f} GB of memory in the "
            f"encoder, beside its weights; {size}fewer --frames take less"
        )


def checkpoint_from_folder(
    source: Path,
    out: Path,
    *,
    mode: str | None = None,
    frames: int = DEFAULT_FRAMES,
    block: int | None = None,
    size: int | None = None,
    reducer: str | None = None,
    name: str | None = None,
    revision: str | None = None,
) -> Imported:
    """Turn a Hugging Face folder into a checkpoint, reading one tensor at a time.

    Args:
        source: the folder: LLaVA-OneVision with or without VQToken, SigLIP, CLIP or DINOv2.
        out: the checkpoint to make; must not exist.
        mode: how codes become rows, see `docs/bring-your-checkpoint.md`; what the source allows.
        frames: of a clip.
        block: of a vision model alone, the block whose features are taken.
        size: of its frames in pixels; None for what its configuration says.
        reducer: a training-free one in the place of k-means, as `vqedge.reducers` names it.
        name: of the source, for the records; the folder's by default.
        revision: commit of a hub's repository.

    Raises:
        CheckpointError: the folder cannot be trusted or does not hold what its config says, its
            encoder is larger than an ONNX file can be, or `out` exists.
        ConfigError: the source does not do that mode, block or size, or the reducer does not go
            with it.
    """
    folder = HfFolder(source)
    with _names_beside(out):
        plan = _reducing(_plan(folder, mode, frames, block, size), reducer)
    _require_one_file(folder, plan)
    with _new_folder(out) as work:
        config = _write_base(work, folder, plan)
        with usual_mode(work / MODEL), usual_mode(work / LORA):
            save_file(_trained(work, folder, plan), work / MODEL)
            save_file({}, work / LORA)  # an adapter comes with training
        origin = Origin(
            source=(name or folder.path.resolve().name)[:_LONGEST_NAME],
            revision=revision,
            licence=_licence(folder),
            ignored=plan.ignored,
        )
        _write_json(work / CONFIG, config.model_dump(mode="json"))
        _write_json(work / ORIGIN, origin.model_dump(mode="json"))
    return Imported(out, config, plan.ignored)


def require_absent(out: Path) -> None:
    """See that nothing is in the way, before any work is done.

    Raises:
        CheckpointError: something is.
    """
    if os.path.lexists(out):
        raise CheckpointError(f"{out}: exists already; choose another name or remove it yourself")


def _plan(
    folder: HfFolder, mode: str | None, frames: int, block: int | None, size: int | None
) -> Plan:
    kind = folder.config.get("model_type")
    if kind in MODEL_TYPES:
        given = [option for option, n in (("--block", block), ("--size", size)) if n is not None]
        if given:
            raise ConfigError(
                f"{given[0]}: {folder.path} is a LLaVA, whose projector was trained on one block "
                "and one size; leave it out, it is for a vision model alone"
            )
        return plan_from_llava(folder, mode, frames)
    if kind == "llava_onevision":
        raise CheckpointError(
            f"{folder.path}: LLaVA-OneVision in transformers' own layout; import the original, "
            "lmms-lab/llava-onevision-qwen2-0.5b-ov"
        )
    return plan_from_tower(folder, mode, frames, block, size)


def _reducing(plan: Plan, reducer: str | None) -> Plan:
    """The same with a reducer in the place of k-means, which is seen to fit."""
    if reducer is None:
        return plan
    kind, config = training_free_kind(reducer), plan.config
    quantizer = config.quantizer.model_copy(update={"kind": kind})
    config = config.model_copy(update={"quantizer": quantizer})
    reducer_quantizer(config)
    return replace(plan, config=config)


def _require_one_file(folder: HfFolder, plan: Plan) -> None:
    """See that the encoder in float32 goes into one ONNX file, before anything is written.

    Raises:
        CheckpointError: it does not.
    """
    encoder = plan.config.encoder
    sizes = {
        part.name: 4 * math.prod(part.shape)
        for part in (*plan.encoder, *plan.bridge)
        if not part.name.startswith("position_")
    }
    rows = encoder.grid**2 + encoder.backbone.class_token
    sizes["position"] = 4 * rows * encoder.backbone.width
    if plan.config.attention.kind == "paper":
        sizes |= {name: 4 * array.size for name, array in _fresh_bridge(plan.config).items()}
    over = sum(sizes.values()) - LARGEST_BYTES
    if over > 0:
        raise CheckpointError(
            f"{folder.path}: its encoder takes {sum(sizes.values()) / 1e9:.1f} GB in float32, more "
            f"than the 2 GiB that one ONNX file can hold; {_smaller(plan, sizes, over)}"
        )


def _smaller(plan: Plan, sizes: Mapping[str, int], over: int) -> str:
    """How the same source makes an encoder that is `over` bytes smaller, if it can."""

    def taken(prefix: str) -> int:
        return sum(size for name, size in sizes.items() if name.startswith(prefix))

    blocks = plan.config.encoder.block - math.ceil(over / taken("blocks.0."))
    if plan.language is None and blocks > 0:
        return f"import it with --block {blocks} or less"
    if plan.config.attention.kind == OFFICIAL and taken("bridge.cross_attention.") >= over:
        return "import it with --mode codes"
    return "import a smaller model"


@contextmanager
def _names_beside(out: Path) -> Iterator[None]:
    """Tensors that are too many for one message go to a file beside the checkpoint."""
    try:
        yield
    except MisfitError as error:
        if not error.cut:
            raise
        path = out.with_name(f"{out.name}.tensors.txt")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = "".join(f"{printable(line)}\n" for line in error.lines)
            path.write_text(lines, encoding="utf-8")
        except OSError:
            raise error from None
        raise CheckpointError(f"{error}; every name: {path}") from error


def _write_base(work: Path, folder: HfFolder, plan: Plan) -> ModelConfig:
    """Vision and language weights; the configuration that names their sha256."""
    logger.info("writing %s: %d tensors", ENCODER_WEIGHTS, len(plan.encoder))
    write_parts(work / ENCODER_WEIGHTS, folder, plan.encoder)
    encoder = plan.config.encoder.model_copy(update=_digest(work / ENCODER_WEIGHTS))
    config = plan.config.model_copy(update={"encoder": encoder})
    if plan.language is None:
        return config
    logger.info("writing %s: %d tensors", LLM_WEIGHTS, len(plan.language.parts))
    write_gguf(work / LLM_WEIGHTS, folder, plan.language)
    llm = config.llm.model_copy(update=_digest(work / LLM_WEIGHTS))
    return config.model_copy(update={"llm": llm})


def _digest(path: Path) -> dict[str, str]:
    return {"weights_sha256": file_sha256(path)}


def _trained(work: Path, folder: HfFolder, plan: Plan) -> dict[str, Array]:
    """Tensors of `model.safetensors`: positions for the clip's size, and the bridge."""
    stored = TensorFile(work / ENCODER_WEIGHTS)
    tensors: dict[str, Array] = {POSITION: position_table(stored, plan.config.encoder.grid).numpy()}
    if plan.config.attention.kind == "paper":
        return tensors | _fresh_bridge(plan.config)
    arrays = zip(plan.bridge, arrays_of(folder, plan.bridge), strict=True)
    return tensors | {part.name: array.astype(np.float32) for part, array in arrays}


def _fresh_bridge(config: ModelConfig) -> dict[str, Array]:
    """VQ-Attention as training starts it: the same numbers every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        bridge = Bridge(config)
    return {BRIDGE_PREFIX + name: value.numpy() for name, value in bridge.state_dict().items()}


def _licence(folder: HfFolder) -> str:
    """What the front matter of the model card says, between its two lines of dashes."""
    card = folder.path / "README.md"
    if card.is_symlink() or not card.is_file():
        return _NO_LICENCE
    with card.open(encoding="utf-8", errors="replace") as file:
        first, *lines = file.read(_LONGEST_CARD).splitlines() or [""]
    if first.rstrip() != "---":
        return _NO_LICENCE
    matter = takewhile(lambda line: line.rstrip() != "---", lines)
    told = next((line for line in matter if line.startswith("license:")), "")
    return told.removeprefix("license:").strip().strip("'\"")[:100] or _NO_LICENCE


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes it at the end; a failure leaves nothing."""
    require_absent(out)
    try:
        with workspace_beside(out) as workspace:
            work = workspace / "new"
            work.mkdir()
            yield work
            require_absent(out)  # another import may have been faster
            work.rename(out)
    except OSError as error:
        raise CheckpointError(f"{error.filename or out}: {error.strerror or error}") from error


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
