"""What a lighter encoder changes: how many patches are nearest to another code, and how safely.

Per-clip k-means starts from the farthest patches, so that the least change of the features may
start it elsewhere: the index maps of two encoders then differ in numbers and in parts, though both
are good clusterings. The statement that means something is about one NearestCodebook: the codes of
the float32 encoder, the features of both. The difference of the maps is told as well, after their
codes were matched. Where two maps are the same, no patch counts as nearer to another code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

from vqedge.agreement import matched_share, row_cosines
from vqedge.errors import ExportError
from vqedge.nearest_codebook import nearest_codebook
from vqedge_export.graph import FEATURES, TEXT
from vqedge_export.light import light_copy
from vqedge_export.op_function import ensure_function
from vqedge_export.report import VariantParity

UNSAFE_SHARE = 0.05  # of a clip's ids, those of least margin

Frames = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int32]


class Reading(NamedTuple):
    """What an encoder made of one clip."""

    features: Floats  # [patches, width]
    ids: Ids  # [patches]


Reader = Callable[[Frames, int], Reading]  # of a clip, at a budget


class OnnxReader:
    """An encoder in ONNX Runtime on the CPU that tells its features, too.

    Args:
        source: a file, or what is in one.
        text: a question, of an encoder that reads one; zeros if none is given.

    Raises:
        ExportError: it has no tensor `features`: another exporter wrote it.
    """

    def __init__(self, source: Path | onnx.ModelProto, text: Floats | None = None) -> None:
        if isinstance(source, Path):
            name, model = str(source), onnx.load(str(source))
        else:
            name, model = "encoder.onnx", source
        if not any(FEATURES in node.output for node in model.graph.node):
            raise ExportError(f"{name}: no tensor {FEATURES!r} in the graph; export it again")
        with light_copy(model) as copy:
            ensure_function(copy.model)
            copy.model.graph.output.add(name=FEATURES)
            self.session, self.text = copy.session(), text

    def __call__(self, frames: Frames, budget: int) -> Reading:
        """Encode one clip."""
        feeds = feeds_for(self.session, frames, budget, self.text)
        features, ids = self.session.run([FEATURES, "index_map"], feeds)
        return Reading(features, ids.reshape(-1))


def feeds_for(
    session: ort.InferenceSession, frames: Frames, budget: int, text: Floats | None = None
) -> dict[str, npt.NDArray[Any]]:
    """The inputs of an encoder's graph; of one that reads a question, zeros if none is given."""
    feeds: dict[str, npt.NDArray[Any]] = {"frames": frames, "budget": np.array(budget, np.int64)}
    for item in session.get_inputs():
        if item.name == TEXT:
            feeds[TEXT] = np.zeros(item.shape, np.float32) if text is None else text
    return feeds


def encoders_compared(
    reference: Reader, others: Mapping[str, Reader], clips: Iterable[Frames], budget: int
) -> dict[str, VariantParity]:
    """Compare encoders with a reference, each by its name, on clips that are looked at once."""
    seen = {name: _Seen() for name in others}
    for clip in clips:
        wanted = reference(clip, budget)
        for name, other in others.items():
            seen[name].add(wanted, other(clip, budget))
    return {name: item.figures() for name, item in seen.items()}


@dataclass
class _Seen:
    patches: int = 0
    differ: list[int] = field(default_factory=list)
    safe: list[int] = field(default_factory=list)
    maps: list[float] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)

    def add(self, wanted: Reading, found: Reading) -> None:
        codes = _means(wanted)
        ids, margin = nearest_codebook(wanted.features, codes, "cosine")
        differs = nearest_codebook(found.features, codes, "cosine")[0] != ids
        if np.array_equal(wanted.ids, found.ids):  # a grid's go by place, whatever code is nearest
            differs[:] = False
        self.patches += len(ids)
        self.differ.append(int(differs.sum()))
        self.safe.append(int((differs & (margin > np.quantile(margin, UNSAFE_SHARE))).sum()))
        self.maps.append(1.0 - matched_share(wanted.ids, found.ids))
        self.cosines.append(float(row_cosines(wanted.features, found.features).mean()))

    def figures(self) -> VariantParity:
        return VariantParity(
            clips=len(self.differ),
            patches=self.patches,
            nearest_differ=sum(self.differ) / self.patches,
            safe_nearest_differ=sum(self.safe) / self.patches,
            worst_clip_nearest_differ=max(self.differ) * len(self.differ) / self.patches,
            maps_differ=float(np.mean(self.maps)),
            feature_cosine=float(np.mean(self.cosines)),
        )


def _means(reading: Reading) -> Floats:
    """Codes in use, `[k, width]`: centroids of the features with the same id."""
    used = np.unique(reading.ids)
    return np.stack([reading.features[reading.ids == code].mean(axis=0) for code in used])
