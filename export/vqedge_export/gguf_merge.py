"""A LoRA adapter merged into the dequantised base GGUF, tensor by tensor.

The adapter was trained against exactly these dequantised weights, so nothing is lost between
training and deployment but the final rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from vqedge.config import LlmConfig
from vqedge.errors import CheckpointError
from vqedge.model.gguf_reading import sound_reader

Floats = npt.NDArray[np.floating]
Shape = tuple[int, ...]

_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LORA_PREFIX = "base_model.model.model.layers."
_SKIPPED_FIELDS = ("GGUF.", "general.file_type", "general.architecture")
_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
_SCORES, _SUPPRESSED = "tokenizer.ggml.scores", "tokenizer.ggml.suppress_tokens"
_PER_TOKEN = {
    _TOKENS: gguf.GGUFValueType.STRING,
    _TYPES: gguf.GGUFValueType.INT32,
    _SCORES: gguf.GGUFValueType.FLOAT32,
    _SUPPRESSED: gguf.GGUFValueType.INT32,
}
_Value = tuple[Any, Unpack[tuple[gguf.GGUFValueType, ...]]]  # of a field, and its types


@dataclass(frozen=True)
class AddedTokens:
    """Tokens to put after those of a vocabulary: read, but never generated.

    Attributes:
        spellings: of each, as no other token is spelled.
        rows: float `[n, width]`, their embeddings.
    """

    spellings: Sequence[str]
    rows: Floats


@dataclass(frozen=True)
class _Delta:
    """What the adapter adds to one weight, multiplied when it is asked for.

    Attributes:
        up: `lora_B [out, r]`.
        down: `lora_A [r, in]`.
        scale: `alpha / r`.
        heads: of the layer, where the GGUF has its rows in rotary order; else None.
    """

    up: Floats
    down: Floats
    scale: float
    heads: int | None

    @property
    def shape(self) -> Shape:
        """Shape of the weight."""
        return (self.up.shape[0], self.down.shape[1])

    def dense(self) -> Floats:
        """`alpha / r * B @ A`, float32, in the GGUF's row order."""
        delta = self.scale * (self.up.astype(np.float32) @ self.down.astype(np.float32))
        return delta if self.heads is None else _interleaved(delta, self.heads)


def write_merged(
    base: Path,
    lora: Mapping[str, Floats],
    config: LlmConfig,
    out: Path,
    added: AddedTokens | None,
) -> None:
    """Write base weights plus adapter in float16, with one tensor in memory at a time.

    Args:
        base: the GGUF to add to.
        lora: as `vqedge_export.gguf.gguf_from_lora` takes it.
        config: rank and alpha.
        out: file to write.
        added: tokens to put into the vocabulary, as control tokens.

    Raises:
        CheckpointError: the adapter or the added rows do not fit the base, before anything is
            written; or their sum is beyond float16.
    """
    reader = sound_reader(base)
    arch = str(reader.fields["general.architecture"].contents())
    deltas = _deltas(lora, config, reader, arch)
    _require_fits(deltas, added, reader, base)
    with closing(gguf.GGUFWriter(out, arch)) as writer:
        _copy_fields(reader, writer, _grown_fields(reader, arch, added) if added else {})
        for tensor in reader.tensors:
            _announce(tensor, writer, added)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in reader.tensors:
            writer.write_tensor_data(_merged(tensor, deltas.get(tensor.name), added))


def _require_fits(
    deltas: Mapping[str, _Delta], added: AddedTokens | None, reader: gguf.GGUFReader, base: Path
) -> None:
    shapes = {tensor.name: _shape(tensor) for tensor in reader.tensors}
    for name, delta in sorted(deltas.items()):
        if name not in shapes:
            raise CheckpointError(f"lora.safetensors: {name!r} has no weight in {base.name}")
        if delta.shape != shapes[name]:
            raise CheckpointError(f"lora.safetensors: {name} is {delta.shape}, want {shapes[name]}")
    if added is None:
        return
    width = shapes[_EMBEDDING][1]
    if added.rows.shape != (len(added.spellings), width):
        raise CheckpointError(
            f"model.safetensors: rows of {len(added.spellings)} video words are "
            f"{added.rows.shape}, the language model's are {width} wide"
        )


def _shape(tensor: gguf.ReaderTensor) -> Shape:
    """Rows first; a GGUF names the fastest axis first."""
    return tuple(int(axis) for axis in reversed(tensor.shape))


def _kept_as(shape: Shape) -> type[np.floating]:
    """The type of a merged tensor: matrices float16, vectors float32."""
    return np.float32 if len(shape) == 1 else np.float16


def _announce(
    tensor: gguf.ReaderTensor, writer: gguf.GGUFWriter, added: AddedTokens | None
) -> None:
    """Name and size of a tensor: they stand before all data."""
    shape = _shape(tensor)
    if added is not None and tensor.name in (_EMBEDDING, _OUTPUT):
        shape = (shape[0] + len(added.spellings), *shape[1:])
    dtype: np.dtype[Any] = np.dtype(_kept_as(shape))
    writer.add_tensor_info(tensor.name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)


def _merged(tensor: gguf.ReaderTensor, delta: _Delta | None, added: AddedTokens | None) -> Floats:
    """A tensor with what is added to it, and a row for every added token if it has one per token.

    Where output and embedding are one tensor the added rows are outputs, too; what keeps them from
    being generated is that they are suppressed. An output of its own gets rows of zeros.
    """
    weight: Floats = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    if delta is not None:
        weight = weight + delta.dense()
    with np.errstate(over="ignore"):  # told below
        weight = weight.astype(_kept_as(weight.shape))
    if delta is not None and not np.isfinite(weight).all():
        raise CheckpointError(
            f"lora.safetensors: what it adds to {tensor.name} is beyond float16; train it again"
        )
    if added is None or tensor.name not in (_EMBEDDING, _OUTPUT):
        return weight
    rows = added.rows if tensor.name == _EMBEDDING else np.zeros_like(added.rows)
    return np.concatenate([weight, rows.astype(weight.dtype)])


def _copy_fields(
    reader: gguf.GGUFReader, writer: gguf.GGUFWriter, grown: Mapping[str, _Value]
) -> None:
    """All fields of a file, those of a vocabulary that has grown in the place of what they were."""
    for field in reader.fields.values():
        if field.name.startswith(_SKIPPED_FIELDS) or field.name in grown:
            continue
        sub_type = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type)
    for name, (value, *kinds) in grown.items():
        writer.add_key_value(name, value, *kinds)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _grown_fields(reader: gguf.GGUFReader, arch: str, added: AddedTokens) -> dict[str, _Value]:
    """Fields of the vocabulary with the added tokens: control tokens, none to be generated.

    Raises:
        CheckpointError: one is spelled as a token that is there.
    """
    held = {name: field.contents() for name, field in reader.fields.items() if name in _PER_TOKEN}
    tokens = held[_TOKENS]
    if twice := set(tokens).intersection(added.spellings):
        raise CheckpointError(f"{min(twice)!r} is in the language model's vocabulary already")
    first, count = len(tokens), len(added.spellings)
    new = {
        _TOKENS: added.spellings,
        _TYPES: [int(gguf.TokenType.CONTROL)] * count,
        _SCORES: [0.0] * count,
        _SUPPRESSED: range(first, first + count),
    }
    held.setdefault(_SUPPRESSED, [])
    array = gguf.GGUFValueType.ARRAY
    fields = {name: ([*held[name], *new[name]], array, _PER_TOKEN[name]) for name in held}
    return {**fields, f"{arch}.vocab_size": (first + count, gguf.GGUFValueType.UINT32)}


def _deltas(
    lora: Mapping[str, Floats], config: LlmConfig, reader: gguf.GGUFReader, arch: str
) -> dict[str, _Delta]:
    """What the adapter adds, under the GGUF's tensor names."""
    rotated = {"attn_q": "head_count", "attn_k": "head_count_kv"} if arch == "llama" else {}
    heads = {
        target: int(reader.fields[f"{arch}.attention.{count}"].contents())
        for target, count in rotated.items()
    }
    scale = config.lora_alpha / config.lora_rank
    deltas = {}
    for name, down in lora.items():
        if not name.endswith(".lora_A.weight"):
            continue
        place = name.removeprefix(_LORA_PREFIX).removesuffix(".lora_A.weight")
        layer, _, module = place.partition(".")
        up = lora.get(name.replace("lora_A", "lora_B"))
        if module not in _LAYER_NAMES or up is None or up.shape[1:] != down.shape[:1]:
            raise CheckpointError(f"lora.safetensors: {name!r} fits no layer, or not its lora_B")
        target = _LAYER_NAMES[module]
        deltas[f"blk.{layer}.{target}.weight"] = _Delta(up, down, scale, heads.get(target))
    return deltas


def _interleaved(weight: Floats, heads: int) -> Floats:
    """Rows in the rotary order of llama.cpp's "llama": in a head, the two halves alternate."""
    rows, columns = weight.shape
    halves: Floats = weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2)
    return halves.reshape(rows, columns)
