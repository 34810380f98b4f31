"""The language half of a source: Qwen2 tensors and tokenizer become one GGUF file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import Self

from vqedge.base.tensors import Array
from vqedge.errors import CheckpointError
from vqedge.validation import first_fault
from vqedge_export.hf.folder import HfFolder
from vqedge_export.hf.parts import Part, Shape, arrays_of
from vqedge_export.hf.tokenizer import vocabulary_of

ARCH = "qwen2"
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class _Kind:
    """A type of matrices: of NumPy as wide as it, in GGUF, and of a whole GGUF file."""

    dtype: np.dtype[Any]
    stored: gguf.GGMLQuantizationType
    file_type: gguf.LlamaFileType


_HALF = np.dtype(np.float16)
_KINDS = {
    "F32": _Kind(np.dtype(np.float32), gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "F16": _Kind(_HALF, gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "BF16": _Kind(_HALF, gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}


class Rope(BaseModel):
    """Rotary positions as transformers 5 writes them."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    rope_theta: float = Field(gt=0)
    rope_type: Literal["default"] = "default"


class Qwen2(BaseModel):
    """What a Qwen2 configuration says, as far as shapes and positions go."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: int = Field(ge=1, le=512)
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt = 32768
    rms_norm_eps: float = Field(1e-6, gt=0)
    rope_theta: float = Field(10000.0, gt=0)
    rope_parameters: Rope | None = None  # where transformers 5 keeps it
    rope_scaling: dict[str, Any] | None = None
    use_sliding_window: bool = False
    hidden_act: str = Field("silu", pattern="^silu$")
    tie_word_embeddings: bool = False

    @field_validator("rope_scaling")
    @classmethod
    def _scales_nothing(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        told = dict(value or {})
        kinds = {told.pop(name, "default") for name in ("rope_type", "type")}
        if told or kinds != {"default"}:
            found = ", ".join(f"{name!r}" for name in (*sorted(kinds - {"default"}), *told))
            raise ValueError(f"{found}; vqedge imports models with unscaled positions only")
        return value

    @property
    def frequency_base(self) -> float:
        """RoPE's theta, wherever the configuration has it."""
        return self.rope_parameters.rope_theta if self.rope_parameters else self.rope_theta

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("num_attention_heads does not divide hidden_size")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_key_value_heads does not divide num_attention_heads")
        if self.use_sliding_window:
            raise ValueError("use_sliding_window: llama.cpp's qwen2 has no window")
        return self


@dataclass(frozen=True)
class Language:
    """A language model to be written.

    Attributes:
        config: of the source.
    """

    config: Qwen2

    @property
    def tied(self) -> bool:
        """Its output table is its embedding table."""
        return self.config.tie_word_embeddings

    @property
    def parts(self) -> list[Part]:
        """Its tensors, under llama.cpp's names."""
        config = self.config
        names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
        parts = []
        for source, shape in self._shapes().items():
            name = names.get_name(source, try_suffixes=(".weight", ".bias"))
            assert name is not None, f"gguf knows {source}"
            parts.append(Part(name, source, shape))
        return parts

    def _shapes(self) -> dict[str, Shape]:
        config, width = self.config, self.config.hidden_size
        table: Shape = (config.vocab_size, width)
        shapes: dict[str, Shape] = {EMBEDDING: table, "model.norm.weight": (width,)}
        if not self.tied:
            shapes[OUTPUT] = table
        for layer in range(config.num_hidden_layers):
            for name, shape in _layer_shapes(config).items():
                shapes[f"model.layers.{layer}.{name}"] = shape
        return shapes


def language_of(folder: HfFolder) -> Language:
    """Read the configuration of a folder's language model.

    Raises:
        CheckpointError: it is none that we can write.
    """
    try:
        return Language(Qwen2.model_validate(folder.config))
    except ValidationError as error:
        raise CheckpointError(f"{folder.path}/config.json: {first_fault(error)}") from error


def write_gguf(path: Path, folder: HfFolder, language: Language) -> None:
    """Write the model, every matrix in the type it has, vectors in float32; one tensor at a time.

    Raises:
        CheckpointError: the tokenizer does not fit, matrices are of several types, or a number is
            not finite.
    """
    config, parts = language.config, language.parts
    kind = _kind_of(folder, parts)
    with closing(gguf.GGUFWriter(path, ARCH)) as writer:
        writer.add_file_type(kind.file_type)
        _add_shapes(writer, config)
        vocabulary_of(folder, config.vocab_size).write(writer)
        for part in parts:
            matrix = len(part.shape) > 1
            dtype, stored = (kind.dtype, kind.stored) if matrix else (np.dtype(np.float32), None)
            size = math.prod(part.shape) * dtype.itemsize
            writer.add_tensor_info(part.name, part.shape, dtype, size, stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for array in arrays_of(folder, parts):
            writer.write_tensor_data(_stored(array))


def _kind_of(folder: HfFolder, parts: Sequence[Part]) -> _Kind:
    """How a source's matrices are stored: all in one type."""
    kinds = {folder.tensors.dtype(part.source) for part in parts if len(part.shape) > 1}
    if len(kinds) != 1:
        found = ", ".join(sorted(kinds))
        raise CheckpointError(f"{folder.path}: matrices of types {found}, want one")
    return _KINDS[kinds.pop()]


def require_tied(folder: HfFolder, language: Language) -> None:
    """See that an output table that is left out says what the embedding table says.

    Raises:
        CheckpointError: it says something else, so that one of the two is not the model's.
    """
    if not language.tied or OUTPUT not in folder.tensors:
        return
    tensors = folder.tensors
    kinds = {(tensors.dtype(name), tensors.shape(name)) for name in (OUTPUT, EMBEDDING)}
    if len(kinds) > 1 or not np.array_equal(tensors[OUTPUT], tensors[EMBEDDING]):
        raise CheckpointError(
            f"{folder.path}: {OUTPUT} differs from {EMBEDDING}, but config.json ties them; "
            "set tie_word_embeddings to what the model was trained with"
        )


def _stored(array: Array) -> Array:
    """As GGUF keeps it."""
    return np.ascontiguousarray(array if array.ndim > 1 else array.astype(np.float32))


def _layer_shapes(config: Qwen2) -> dict[str, Shape]:
    width, hidden = config.hidden_size, config.intermediate_size
    shared = width // config.num_attention_heads * config.num_key_value_heads
    shapes: dict[str, Shape] = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
        "self_attn.o_proj.weight": (width, width),
        "mlp.gate_proj.weight": (hidden, width),
        "mlp.up_proj.weight": (hidden, width),
        "mlp.down_proj.weight": (width, hidden),
    }
    for name, rows in (("q_proj", width), ("k_proj", shared), ("v_proj", shared)):
        shapes |= {f"self_attn.{name}.weight": (rows, width), f"self_attn.{name}.bias": (rows,)}
    return shapes


def _add_shapes(writer: gguf.GGUFWriter, config: Qwen2) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.frequency_base)
    writer.add_vocab_size(config.vocab_size)
