"""From frames to the rows the language model reads: ViT, quantizer, token hash, VQ-Attention."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from vqedge.config import ModelConfig, QuantizerConfig
from vqedge.model.codebook import ResidualCodebook, codebook_from_config
from vqedge.model.last_blocks import LastBlocks
from vqedge.model.official import OfficialBridge
from vqedge.model.quantizer import KMeansQuantizer, Quantized
from vqedge.model.reducers.quantizer import ReducerQuantizer
from vqedge.model.reducers.registry import reducer_quantizer
from vqedge.model.reducers.training import ReducerWithWeights
from vqedge.model.rows import Bridged, Rows
from vqedge.model.token_hash import TokenHash, clip_hash, token_hash
from vqedge.model.trained_reducer import TrainedReducer
from vqedge.model.vit import ViT
from vqedge.model.vq_attention import VQAttention
from vqedge.model.word_bridge import WordBridge
from vqedge.reducers import has_weights, reads_attention, reducer_of
from vqedge.video_words import vocabulary_of


class EncodedClip(NamedTuple):
    """The encoder's outputs, in the order of the exported graph."""

    tokens: Tensor  # float32 [K, d_llm], zero where unused
    index_map: Tensor  # int32 [T, grid, grid]
    mask: Tensor  # bool [K], True where the row is used
    margin: Tensor  # float32 [T, grid, grid]
    codes: Tensor | None  # float16 [K, D], zero where unused; None with a learned codebook
    ids: Tensor | None  # int32 [K, levels], UNUSED where unused; None without one
    row_mask: Tensor | None = None  # bool [rows], True where a row is read; None: a row is a code
    words: Tensor | None = None  # int32 [rows], each row's word; None where rows are no words

    @property
    def read(self) -> Tensor:
        """The rows that the language model reads, `[n, d_llm]`."""
        return self.tokens[self.mask if self.row_mask is None else self.row_mask]


class ClipQuantizer(nn.Module):
    """The frozen half: frames to codes. What the feature cache stores."""

    def __init__(self, config: ModelConfig, vit: ViT) -> None:
        super().__init__()
        self.config = config
        self.vit = vit
        self.quantizer = quantizer_from_config(config)

    def forward(self, frames: Tensor, budget: Tensor, text: Tensor | None = None) -> Quantized:
        """Quantise uint8 frames `[T, size, size, 3]`; `text` as in `VideoEncoder`."""
        return self.quantizer(self.patches(frames), budget, text)

    def patches(self, frames: Tensor) -> Tensor:
        """What the quantizer reads of frames: features `[N, D]`, or with attention `[N, D + 1]`."""
        if not reads_attention(self.config.quantizer.kind):
            return self.vit(frames).flatten(0, 1)
        return self.vit(frames, True).flatten(0, 1)

    def trunk(self, frames: Tensor) -> Tensor:
        """What its trained blocks read of frames: all tokens, class tokens too, `[T * N, D]`."""
        return self.vit.before_last(frames, self.config.encoder.trained_blocks).flatten(0, 1)


def quantizer_from_config(config: ModelConfig) -> KMeansQuantizer | ReducerQuantizer:
    """The quantizer of a kind; a learned codebook codes what the per-clip k-means finds."""
    if reducer_of(config.quantizer.kind) is not None:
        return reducer_quantizer(config)
    return _kmeans(config.quantizer)


def _kmeans(quantizer: QuantizerConfig) -> KMeansQuantizer:
    return KMeansQuantizer(
        quantizer.codes, quantizer.iterations, quantizer.adaptive_error, quantizer.unit_means
    )


class Bridge(nn.Module):
    """The trained half: codes and index map to rows of the language model's width."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook: ResidualCodebook | None = None
        if config.quantizer.kind == "codebook":
            self.codebook = codebook_from_config(config)
        width = self.codebook.width if self.codebook else config.encoder.width
        self.attention = VQAttention(config, width)

    def forward(self, codes: Tensor, indices: Tensor) -> Bridged:
        """Tokens of a batch of quantised clips.

        Args:
            codes: float `[B, K, D]`.
            indices: integer `[B, T * grid * grid]`.
        """
        hashed = self._trained_hash(indices, codes.shape[1])
        ids, commitment = None, codes.new_zeros(())
        if self.codebook is not None:
            codes, ids, commitment = self.codebook(codes, hashed.mask)
        tokens = self.attention(codes, hashed.features, hashed.mask)
        return Bridged(tokens, hashed.mask, ids, commitment)

    def unquantised(self, codes: Tensor, indices: Tensor) -> Tensor:
        """`by_code` of the tokens that codes would give if the codebook had an entry for each."""
        hashed = self._trained_hash(indices, codes.shape[1])
        seen = codes if self.codebook is None else self.codebook.seen(codes)
        tokens: Tensor = self.attention(seen, hashed.features, hashed.mask)
        return tokens

    def by_code(self, rows: Tensor) -> Tensor:
        """Rows of a batch, one a code: as they are."""
        return rows

    def finish(self) -> None:
        """Nothing is left to do before the weights are written."""

    def ids(self, codes: Tensor, index_map: Tensor) -> Tensor | None:
        """What a learned codebook makes of one clip's codes `[K, D]`, int32 `[K, levels]`."""
        if self.codebook is None:
            return None
        mask = clip_hash(index_map, len(codes)).mask
        ids: Tensor = self.codebook(codes[None], mask).ids[0]
        return ids

    def rows(self, stored: Tensor, index_map: Tensor) -> Rows:
        """Tokens of one clip from what a file holds: the half of the encoder that a device repeats.

        Args:
            stored: codes float16 `[K, D]`; ids int32 `[K, levels]` of a learned codebook.
            index_map: integer `[T, grid, grid]`.
        """
        hashed = clip_hash(index_map, len(stored))
        codes = stored.float() if self.codebook is None else self.codebook.sums(stored)
        tokens = self.attention(codes[None], hashed.features, hashed.mask)[0]
        return Rows(tokens, hashed.mask[0], None)

    def _trained_hash(self, indices: Tensor, codes: int) -> TokenHash:
        """Token hash of a batch: features of the frames that are counted, and rows of all."""
        frames = self.config.encoder.frames
        hashed = token_hash(indices, frames, codes)
        counted = self.attention.dropout.counted(indices, frames, codes)
        if counted is indices:
            return hashed
        return hashed._replace(features=token_hash(counted, frames, codes).features)


TrainedBridge = Bridge | WordBridge
AnyBridge = Bridge | WordBridge | OfficialBridge


class VideoEncoder(nn.Module):
    """The whole encoder of one clip, as it is exported."""

    def __init__(self, quantizer: ClipQuantizer, bridge: AnyBridge) -> None:
        super().__init__()
        self.quantizer, self.bridge = quantizer, bridge

    def forward(self, frames: Tensor, budget: Tensor, text: Tensor | None = None) -> EncodedClip:
        """Encode uint8 frames `[T, size, size, 3]` with at most `budget` codes, or `ADAPTIVE`.

        `text` float32 `[d_llm]` is a question, of a model whose tokens follow one.
        """
        return self.encoded(self.quantizer(frames, budget, text))

    def encoded(self, quantized: Quantized) -> EncodedClip:
        """The second half of `forward`: tokens come from nothing but what a `.vqt` file holds."""
        config = self.quantizer.config.encoder
        shape = (config.frames, config.grid, config.grid)
        codes, index_map = quantized.codes.half(), quantized.indices.reshape(shape)
        ids = self.bridge.ids(codes, index_map)
        rows = self.bridge.rows(codes if ids is None else ids, index_map)
        margin, told = quantized.margin.reshape(shape), codes if ids is None else None
        return EncodedClip(rows.tokens, index_map, rows.mask, margin, told, ids, *rows[2:])


def bridge_from_config(config: ModelConfig) -> AnyBridge:
    """The bridge of a kind, with weights that are not filled in yet."""
    return trained_bridge(config) if config.attention.kind == "paper" else OfficialBridge(config)


def trained_bridge(config: ModelConfig) -> TrainedBridge:
    """The bridge of a model that is trained here."""
    return WordBridge(config) if config.attention.hash == "tokens" else Bridge(config)


def trained_reducer(config: ModelConfig, vit: ViT) -> TrainedReducer | None:
    """What is trained with the bridge to make codes; None where codes are made once.

    Args:
        config: the model.
        vit: its backbone, whose last blocks it may be.
    """
    if config.encoder.trained_blocks:
        return LastBlocks(config.encoder, vit, _kmeans(config.quantizer))
    return ReducerWithWeights(config) if has_weights(config.quantizer.kind) else None


def rows_per_code(config: ModelConfig) -> int:
    """Rows that the language model reads of a code, in a model that is trained here."""
    words = vocabulary_of(config)
    return words.per_code if words else 1
