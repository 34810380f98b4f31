"""Codes as words of a vocabulary: every row of the language model is looked up, none is computed.

What VQ-Attention does for rows of one's own, the language model's first blocks do here: a code is a
group of words, its entries of the learned codebook and its token hash in coarse steps, each with
the name of what it is about (`vqedge.video_words`). A word's row comes from what it stands for, so
that words which are hardly ever seen in training have a good one, too; the rows of all words make a
table, which is all that is exported.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vqedge.config import ModelConfig
from vqedge.model.codebook import codebook_from_config, grouped, normalised
from vqedge.model.rows import Bridged, Rows
from vqedge.model.token_hash import (
    FEATURES_PER_FRAME,
    MASS_SCALE,
    MOTION_FEATURES,
    TokenHash,
    clip_hash,
    token_hash,
)
from vqedge.model.vq_attention import ROW_NORM
from vqedge.video_words import (
    GROWTH_STEPS,
    MOTION_STEPS,
    PLACES,
    SIZES,
    UNUSED_WORD,
    VideoVocabulary,
    vocabulary_of,
)

_EPS = 1e-6
_WAVES = 4  # sines and cosines of each coordinate, the longest two units long
_OCTAVES = 4  # of sizes that are told apart
_GROWTH_STEP = 0.25
_EVENING = 0.75  # slow motion is more frequent, and as telling


class WordBridge(nn.Module):
    """The trained half of a model whose rows come from a vocabulary.

    Args:
        config: a model with a learned codebook and `attention.hash` "tokens".
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.table: Tensor
        self.names: Tensor
        self.config = config
        words = vocabulary_of(config)
        assert words is not None, "the caller looks at attention.hash"
        self.words = words
        width = config.attention.width
        self.codebook = codebook_from_config(config)
        self.entry = nn.Linear(self.codebook.width, width)
        self.level = nn.Parameter(torch.zeros(config.quantizer.levels, width))
        waves = 1 + 2 * _WAVES
        self.hashes = nn.ModuleList(
            nn.Linear(part.shape[1] * waves, width) for part in _coordinates(self.words)
        )
        self.hidden = nn.Linear(width, width)
        self.projector = nn.Linear(width, config.llm.width)
        self.scale = nn.Parameter(torch.tensor(ROW_NORM))
        self.about = nn.Parameter(torch.zeros(width))  # a name that is told of, not an entry
        self.register_buffer("table", torch.zeros(len(self.words), config.llm.width))
        self.register_buffer("names", torch.zeros(config.quantizer.entries))  # of coarse entries

    def forward(self, codes: Tensor, indices: Tensor) -> Bridged:
        """Rows of a batch of quantised clips, each word's row made anew.

        Args:
            codes: float `[B, K, D]`.
            indices: integer `[B, T * grid * grid]`.
        """
        hashed = token_hash(indices, self.config.encoder.frames, codes.shape[1])
        _sums, ids, commitment = self.codebook(codes, hashed.mask)
        words = self.words_of(ids, hashed).clamp(min=0)
        used, places = torch.unique(words, return_inverse=True)
        made = self._rows_of(F.embedding(used, self._hidden()))
        rows = F.embedding(places, made).flatten(1, 2)  # indexing has gradients in any order
        mask = hashed.mask.repeat_interleave(self.words.per_code, dim=1)
        return Bridged(rows * mask[..., None], mask, ids, commitment)

    def unquantised(self, codes: Tensor, indices: Tensor) -> Tensor:
        """`by_code` of the rows if every code had an entry and a name of its own."""
        hashed = token_hash(indices, self.config.encoder.frames, codes.shape[1])
        entry = self.entry(self.codebook.seen(codes))
        hidden = [entry + self.level[0]]
        for kind, value in zip(self._hash_hidden(), self.hash_values(hashed), strict=True):
            hidden.append(entry + self.about + F.embedding(value, kind))
        return self._rows_of(torch.stack(hidden, dim=2)).sum(dim=2) * hashed.mask[..., None]

    def by_code(self, rows: Tensor) -> Tensor:
        """Rows `[B, K * words, d]` to what those of each code say together, `[B, K, d]`."""
        return rows.reshape(len(rows), -1, self.words.per_code, rows.shape[2]).sum(dim=2)

    def ids(self, codes: Tensor, index_map: Tensor) -> Tensor:
        """What the learned codebook makes of one clip's codes `[K, D]`, int32 `[K, levels]`."""
        ids: Tensor = self.codebook(codes[None], clip_hash(index_map, len(codes)).mask).ids[0]
        return ids

    def rows(self, stored: Tensor, index_map: Tensor) -> Rows:
        """Rows of one clip from ids int32 `[K, levels]` and index map `[T, grid, grid]`.

        Looked up in the table as it was when the checkpoint was written.
        """
        hashed = clip_hash(index_map, len(stored))
        words = self.words_of(stored[None], hashed).flatten()
        used = hashed.mask[0][:, None].expand(-1, self.words.per_code).flatten()
        rows = F.embedding(words.clamp(min=0), self.table) * used[:, None]
        return Rows(rows, hashed.mask[0], used, words.to(torch.int32))

    def words_of(self, ids: Tensor, hashed: TokenHash) -> Tensor:
        """The group of words of every code, int64 `[B, K, words]`, `UNUSED_WORD` where unused.

        Args:
            ids: int `[B, K, levels]`.
            hashed: their token hash.
        """
        quantizer = self.config.quantizer
        first_of_level = torch.arange(quantizer.levels, device=ids.device) * quantizer.entries
        coarse, *fine = (ids.long().clamp(min=0) + first_of_level).unbind(-1)
        name = F.embedding(coarse, self.names[:, None])[..., 0].long()
        kinds = (self.words.place, self.words.size, self.words.span, self.words.motion)
        *places, motion = (
            kind.first + name * (kind.size // self.words.names) + value
            for kind, value in zip(kinds, self.hash_values(hashed), strict=True)
        )
        words = torch.stack([*places, *reversed(fine), motion, coarse], dim=-1)
        return torch.where(hashed.mask[..., None], words, UNUSED_WORD)

    def name_entries(self) -> None:
        """Group the coarse entries as they are now: to be done once, before words are learned."""
        self.names.copy_(grouped(self.codebook.tables.detach()[0], self.words.names))

    def finish(self) -> None:
        """Keep the rows as they are now in the table that is exported."""
        with torch.no_grad():
            self.table.copy_(self._rows_of(self._hidden()))

    def _hidden(self) -> Tensor:
        """What each word stands for, before its row is made of it, float32 `[words, width]`."""
        entries = normalised(self.codebook.tables.float())
        told = self.entry(self._group_means(entries[0])) + self.about
        hidden = [(self.entry(entries) + self.level[:, None]).flatten(0, 1)]
        hidden += [(told[:, None] + kind).flatten(0, 1) for kind in self._hash_hidden()]
        return torch.cat(hidden)

    def _hash_hidden(self) -> list[Tensor]:
        """What places, sizes, spans and motions say of whatever it is, `[n, width]` each."""
        parts = zip(self.hashes, _coordinates(self.words), strict=True)
        return [layer(_waves(part.to(self.about.device))) for layer, part in parts]

    def _group_means(self, entries: Tensor) -> Tensor:
        """The mean of the entries of each name, normalised, `[names, D]`."""
        group = self.names.long()
        sums = entries.new_zeros(self.words.names, entries.shape[1]).index_add(0, group, entries)
        return normalised(sums)

    def _rows_of(self, hidden: Tensor) -> Tensor:
        x = hidden + F.gelu(self.hidden(F.gelu(hidden)))
        return F.normalize(self.projector(x).float(), dim=-1, eps=_EPS) * self.scale

    def hash_values(self, hashed: TokenHash) -> list[Tensor]:
        """Place, size, span and motion of every code, each int64 `[B, K]` from 0."""
        frames = self.config.encoder.frames
        batch, codes, _width = hashed.features.shape
        table = hashed.features[..., :-MOTION_FEATURES]
        table = table.reshape(batch, codes, frames, FEATURES_PER_FRAME)
        present = table[..., 0]
        share = 1.0 / present.sum(dim=-1).clamp(min=1.0)
        mass, x, y = (table[..., part].sum(dim=-1) * share for part in (1, 2, 3))
        dx, dy, growth = hashed.features[..., -MOTION_FEATURES:].unbind(-1)
        growth = growth / mass.clamp(min=_EPS)  # of itself: what is small grows by little
        place = _bin((y + 1) / 2, PLACES) * PLACES + _bin((x + 1) / 2, PLACES)
        size = _size(mass / MASS_SCALE) * (2 * GROWTH_STEPS + 1) + _growth(growth)
        width = 2 * MOTION_STEPS + 1
        motion = _step(dy, MOTION_STEPS) * width + _step(dx, MOTION_STEPS)
        return [value.long() for value in (place, size, _span(present, frames), motion)]


def _span(present: Tensor, frames: int) -> Tensor:
    """Number of first and last frame among all spans, from presence `[B, K, T]`."""
    frame = torch.arange(frames, device=present.device, dtype=torch.float32)
    last = (present * frame).amax(dim=-1)
    first = frames - 1 - (present * (frames - 1 - frame)).amax(dim=-1)
    return first * frames - first * (first - 1) / 2 + last - first


def _bin(share: Tensor, count: int) -> Tensor:
    """Which of `count` equal parts of 0..1 a value lies in."""
    return (share * count).floor().clamp(0, count - 1)


def _size(side: Tensor) -> Tensor:
    """Which of `SIZES` a share of the frame's side is, each a quarter of an octave."""
    octaves = torch.log2(side.clamp(min=_EPS)) + _OCTAVES
    return (octaves * SIZES / _OCTAVES).floor().clamp(0, SIZES - 1)


def _growth(rate: Tensor) -> Tensor:
    """Growth by so much of itself in half a clip as one of `2 * GROWTH_STEPS + 1` steps."""
    return (rate / _GROWTH_STEP).round().clamp(-GROWTH_STEPS, GROWTH_STEPS) + GROWTH_STEPS


def _step(slope: Tensor, steps: int) -> Tensor:
    """Slopes as one of `2 * steps + 1` steps, somewhat finer near zero."""
    evened = slope.sign() * slope.abs().pow(_EVENING)
    return (evened * steps).round().clamp(-steps, steps) + steps


def _coordinates(words: VideoVocabulary) -> list[Tensor]:
    """What places, sizes, spans and motions stand for, as numbers from -1 to 1."""
    spans = torch.tensor(words.spans(), dtype=torch.float32)
    span = torch.cat([spans, spans[:, 1:] - spans[:, :1]], dim=1) * (2 / words.frames) - 1
    side = (torch.arange(PLACES) + 0.5) * (2 / PLACES) - 1
    size = (torch.arange(SIZES) + 0.5) * (2 / SIZES) - 1
    growth = torch.arange(-GROWTH_STEPS, GROWTH_STEPS + 1) / GROWTH_STEPS
    motion = torch.arange(-MOTION_STEPS, MOTION_STEPS + 1) / MOTION_STEPS
    place, sizes, motions = (
        torch.cartesian_prod(*pair) for pair in ((side, side), (size, growth), (motion, motion))
    )
    return [place, sizes, span, motions]


def _waves(coordinates: Tensor) -> Tensor:
    """Coordinates `[N, C]` with sines and cosines of them, `[N, C * (1 + 2 * waves)]`."""
    octaves = torch.pi * 2.0 ** torch.arange(_WAVES, device=coordinates.device)
    angles = (coordinates[..., None] * octaves).flatten(1)
    return torch.cat([coordinates, angles.sin(), angles.cos()], dim=1)
