"""Do two encoder backends give the same tokens? In ids and margins, on the same clips."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from vqedge.agreement import SAFE_MARGIN, matched_share, patch_cosine, row_cosines
from vqedge_runtime.bridge import Bridge
from vqedge_runtime.encoders.protocol import Encoder, Frames, Text
from vqedge_runtime.tokens import TokenSet


@dataclass(frozen=True)
class BackendFigures:
    """How far a backend is from the reference.

    K-means lets one close call in an early round change safe choices later, so a clip is the same
    or it is not; `safe_ids_differ` counts by the reference's last round and is an upper bound.
    In lower precision codes come in another order, so `maps_differ` is of codes that were matched.

    Attributes:
        backend: what ran, as it names itself.
        reference: what it was compared with.
        clips: how many.
        clips_same: how many of them gave the same id for every patch.
        ids_differ: share of patches with another id.
        safe_ids_differ: share of patches with another id although the margin was over 1e-3.
        margin_where_ids_differ: largest margin of such a patch.
        maps_differ: share of patches on another part of the index map, codes matched.
        token_cosine: of the worst row in the clips that are the same; None if there are none.
        token_cosine_mean: of all rows that both have, in all clips.
        token_cosine_patches: of the rows that tell of a patch, mean over all patches; None where
            no row is one code's.
    """

    backend: str
    reference: str
    clips: int
    clips_same: int
    ids_differ: float
    safe_ids_differ: float
    margin_where_ids_differ: float
    maps_differ: float
    token_cosine: float | None
    token_cosine_mean: float
    token_cosine_patches: float | None


@dataclass
class _Seen:
    differ: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    margins: list[npt.NDArray[np.float32]] = field(default_factory=list)
    maps: list[float] = field(default_factory=list)
    worst: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    patches: list[float] = field(default_factory=list)

    def add(self, wanted: TokenSet, found: TokenSet) -> None:
        differs = wanted.index_map != found.index_map
        self.differ.append(differs)
        self.maps.append(1.0 - matched_share(wanted.index_map, found.index_map))
        assert wanted.margin is not None, "only a file has none"
        self.margins.append(wanted.margin)
        count = min(len(wanted.rows), len(found.rows))
        cosines = row_cosines(wanted.rows[:count], found.rows[:count])
        self.cosines += cosines.tolist()
        if not differs.any():
            self.worst.append(float(cosines.min()))
        if wanted.rows_per_code is not None and found.rows_per_code is not None:
            told, other = (item.rows.reshape(item.codes.count, -1) for item in (wanted, found))
            self.patches.append(patch_cosine(told, wanted.index_map, other, found.index_map))


def compared(
    reference: Encoder,
    backend: Encoder,
    bridge: Bridge,
    clips: Iterable[tuple[Frames, int]],
    text: Text | None = None,
) -> BackendFigures:
    """Encode clips, each with its budget, by both; `text` stands for a question of them all."""
    seen = _Seen()
    for frames_thwc, budget in clips:
        codes = (encoder.encode(frames_thwc, budget, text) for encoder in (reference, backend))
        seen.add(*map(bridge.tokens, codes))
    differ, margins = np.stack(seen.differ), np.stack(seen.margins)
    there = margins[differ]
    return BackendFigures(
        backend=backend.name,
        reference=reference.name,
        clips=len(seen.differ),
        clips_same=len(seen.worst),
        ids_differ=float(differ.mean()),
        safe_ids_differ=float((there > SAFE_MARGIN).sum() / differ.size),
        margin_where_ids_differ=float(there.max(initial=0.0)),
        maps_differ=float(np.mean(seen.maps)),
        token_cosine=min(seen.worst, default=None),
        token_cosine_mean=float(np.mean(seen.cosines)),
        token_cosine_patches=float(np.mean(seen.patches)) if seen.patches else None,
    )
