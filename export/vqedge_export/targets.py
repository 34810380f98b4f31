"""What `vqedge export` can make: one row per target, run one after the other."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from vqedge.base.weights import encoder_weights, llm_weights
from vqedge.bundle import EngineRecord
from vqedge.checkpoint import LORA, MODEL
from vqedge.choices import chosen
from vqedge.config import ModelConfig
from vqedge.engines import FLAVOURS, Flavour
from vqedge.errors import BackendUnavailable, ConfigError
from vqedge.packages import install_line
from vqedge.video_words import vocabulary_of
from vqedge_export.gguf import gguf_from_lora
from vqedge_export.gguf_merge import AddedTokens
from vqedge_export.graph import (
    WORD_ROWS,
    BaseArrays,
    bridge_of,
    checkpoint_arrays,
    filled,
    save_model,
)
from vqedge_export.int8 import int8_encoder
from vqedge_export.records import encoder_record, quantizer_record
from vqedge_export.tensorrt.options import BuildOptions

if TYPE_CHECKING:
    from vqedge_export.tensorrt.calibration import Frames

logger = logging.getLogger(__name__)

ENCODER, BRIDGE, LLM = "encoder.onnx", "bridge.onnx", "llm.gguf"
ALL, VOCAB = "all", "gguf-vocab"
VARIANTS = {"int8": ("encoder.int8.onnx", int8_encoder)}  # by precision: file, how it is made


@dataclass(frozen=True)
class Making:
    """What is made, from what, and where.

    Attributes:
        folder: of the bundle that is being written.
        checkpoint: what is exported.
        config: the checkpoint's.
        graph: its stripped encoder.
        quant: type of the language model's weights.
        precision: of the lightest ONNX encoder, one of `VARIANTS` or `fp32`.
        options: of engines.
        plugin: library with the NearestCodebook plugin, for TensorRT.
        calibration: clips for int8 engines beside the generated ones.
    """

    folder: Path
    checkpoint: Path
    config: ModelConfig
    graph: onnx.ModelProto
    quant: str
    precision: str
    options: BuildOptions = field(default_factory=BuildOptions)
    plugin: Path | None = None
    calibration: tuple[Frames, ...] = ()


@dataclass(frozen=True)
class Target:
    """A row: what it is called, what it needs, how it is made."""

    name: str
    needs: tuple[str, ...]  # Python modules
    export: Callable[[Making], tuple[EngineRecord, ...]]

    @property
    def missing(self) -> list[str]:
        """Needed modules that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


def _onnx(making: Making) -> tuple[EngineRecord, ...]:
    encoder = making.config.encoder
    weights = encoder_weights(encoder, making.checkpoint).path
    base = BaseArrays(encoder.source, weights)
    model = filled(making.graph, checkpoint_arrays(making.checkpoint / MODEL), base)
    save_model(model, making.folder / ENCODER)
    if making.precision in VARIANTS:
        file, lighter = VARIANTS[making.precision]
        save_model(lighter(model), making.folder / file)
    save_model(bridge_of(model), making.folder / BRIDGE)
    return ()


def _gguf(making: Making) -> tuple[EngineRecord, ...]:
    base = llm_weights(making.config.llm, making.checkpoint)
    lora = checkpoint_arrays(making.checkpoint / LORA)
    out = making.folder / LLM
    words = _video_words(making)
    gguf_from_lora(base.path, lora, making.config.llm, out, making.quant, words)
    return ()


def _video_words(making: Making) -> AddedTokens | None:
    """What a model whose videos are words adds to the language model's vocabulary."""
    words = vocabulary_of(making.config)
    if words is None:
        return None
    return AddedTokens(words.spellings(), checkpoint_arrays(making.checkpoint / MODEL)[WORD_ROWS])


def _made_already(_making: Making) -> tuple[EngineRecord, ...]:
    """The GGUF of a model whose videos are words holds these words."""
    return ()


def _engine(making: Making, flavour: Flavour) -> tuple[EngineRecord, ...]:
    from vqedge_export.tensorrt.build import Source, engine_from_onnx

    encoder = encoder_record(making.graph, making.config, ENCODER)
    weights = checkpoint_arrays(making.checkpoint / MODEL)
    quantizer = quantizer_record(making.graph, making.config, weights)
    source = Source(making.folder / ENCODER, encoder, quantizer, making.calibration)
    plugin = making.plugin if flavour == "tensorrt" else None
    path, record = engine_from_onnx(source, flavour, making.options, plugin)
    (making.folder / record.file).parent.mkdir(exist_ok=True)
    shutil.copyfile(path, making.folder / record.file)
    return (record,)


TARGETS = {
    row.name: row
    for row in (
        Target("onnx", (), _onnx),
        Target("gguf", (), _gguf),
        Target(VOCAB, (), _made_already),
        Target("tensorrt", ("tensorrt",), partial(_engine, flavour="tensorrt")),
        Target("tensorrt-rtx", ("tensorrt_rtx",), partial(_engine, flavour="tensorrt-rtx")),
    )
}
BASE = (TARGETS["onnx"], TARGETS["gguf"])  # that every bundle holds


def engine_targets(text: str | None) -> tuple[Target, ...]:
    """The rows of `--target` beside those that every bundle is made of.

    Args:
        text: names with commas between them; "all" for what this machine can make; None for none.

    Raises:
        UsageError: an unknown name.
    """
    parts = text.split(",") if text is not None else []
    names = [chosen("--target", part.strip(), (*TARGETS, ALL)) for part in parts]
    asked = [row for row in TARGETS.values() if row.name in names and row not in BASE]
    return _possible() if ALL in names else tuple(asked)


def require_possible(targets: Sequence[Target], config: ModelConfig, options: BuildOptions) -> None:
    """Refuse what cannot be made here, of this model, before any work is done.

    Raises:
        BackendUnavailable: a target needs a module that is not there.
        ConfigError: a target does not fit the model.
        ExportError: TensorRT cannot build the engines that are asked of it.
    """
    from vqedge_export.tensorrt.build import require_buildable

    require_installed(targets)
    require_words(targets, config)
    for flavour in FLAVOURS:
        if any(row.name == flavour for row in targets):
            require_buildable(flavour, options)


def require_installed(targets: Sequence[Target]) -> None:
    """Say what is missing before any work is done.

    Raises:
        BackendUnavailable: a target needs a module that is not there.
    """
    for row in targets:
        if row.missing:
            raise BackendUnavailable(
                f"--target {row.name}: {', '.join(row.missing)} is not installed; "
                f"{install_line(row.missing[0])}"
            )


def require_words(targets: Sequence[Target], config: ModelConfig) -> None:
    """Say that a model has no words before any work is done.

    Raises:
        ConfigError: `gguf-vocab` is asked of a model whose rows are made for each clip.
    """
    if vocabulary_of(config) is None and any(row.name == VOCAB for row in targets):
        raise ConfigError(
            f"--target {VOCAB}: this checkpoint's rows are made for each clip, so they are no "
            "words; train one with attention.hash tokens, as recipes/tiny-words.yaml"
        )


def _possible() -> tuple[Target, ...]:
    engines = [TARGETS[name] for name in FLAVOURS]
    for row in engines:
        if row.missing:
            logger.warning("--target all leaves out %s: it is not installed", row.name)
    return tuple(row for row in engines if not row.missing)
