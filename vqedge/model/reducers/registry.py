"""Reducers by name; `vqedge.reducers` tells the same names to whoever has no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vqedge.config import ModelConfig
from vqedge.errors import ConfigError
from vqedge.model.reducers.blocks import BlockReducer, near_square, square, square_windows
from vqedge.model.reducers.density import SpatialDensityPeaks
from vqedge.model.reducers.group_queries import GroupQueries
from vqedge.model.reducers.kmedoids import SegmentMedoids
from vqedge.model.reducers.prumerge import PruMerge
from vqedge.model.reducers.pruning import RandomPruning, UniformPruning
from vqedge.model.reducers.quantizer import ReducerQuantizer
from vqedge.model.reducers.query_window import QueryWindows, stride_within
from vqedge.model.reducers.resampler import Resampler
from vqedge.model.reducers.saliency import SalientMerging
from vqedge.model.reducers.scissor import Scissor
from vqedge.model.reducers.tome import BipartiteMerging
from vqedge.model.reducers.vtm import CentreMerging, MotionMerging, VideoTokenMerging
from vqedge.model.reducers.windows import WindowMerging
from vqedge.reducers import KINDS, reducer_of, require_room

Make = Callable[[int, int, int, int], Any]
"""From codes, frames, patches per side and the features' width to a module that is a `Reducer`."""


def _plain(make: Callable[..., Any], **options: Any) -> Make:
    """One that does not ask for the width."""
    return lambda codes, frames, grid, _width: make(codes, frames, grid, **options)


REDUCERS: dict[str, Make] = {
    "uniform-pool": _plain(BlockReducer, cut=near_square),
    "tpool": _plain(BlockReducer, cut=near_square, pool=4),
    "tsample": _plain(BlockReducer, cut=near_square, sample=2),
    "spool": _plain(BlockReducer, cut=square_windows, windows=True),
    "gridpool": _plain(BlockReducer, cut=square),
    "uniform-prune": _plain(UniformPruning),
    "random-prune": _plain(RandomPruning),
    "prumerge": _plain(PruMerge),
    "prumerge+": _plain(PruMerge, spread=0.75),
    "tome": _plain(BipartiteMerging),
    "vtm": _plain(VideoTokenMerging),
    "vtm-centre": _plain(CentreMerging),
    "vtm-motion": _plain(MotionMerging),
    "kmedoids": _plain(SegmentMedoids),
    "dpc-spatial": _plain(SpatialDensityPeaks),
    "scissor": _plain(Scissor),
    "window-merge": _plain(WindowMerging),
    "group-queries": lambda codes, _frames, _grid, width: GroupQueries(codes, width),
    "resampler": lambda codes, frames, grid, width: Resampler(
        codes, frames, grid, width, _heads_of(width, "resampler", 6)
    ),
    "vtm-saliency": SalientMerging,
}
"""Those of a clip alone."""


def _heads_of(width: int, name: str, usual: int) -> int:
    """As many as usual, or as are 64 wide."""
    for heads in (usual, width // 64):
        if heads and width % heads == 0:
            return heads
    raise ConfigError(f"reducer:{name}: neither {usual} nor heads of 64 divide the width {width}")


def query_windows(config: ModelConfig) -> QueryWindows:
    """Windows of the smallest stride whose tokens fit the model's default budget.

    Raises:
        ConfigError: it is below the frames, or no heads divide the width.
    """
    quantizer, encoder = config.quantizer, config.encoder
    return QueryWindows(
        encoder.frames,
        encoder.grid,
        stride_within(quantizer.default_budget, encoder.frames, encoder.grid),
        encoder.width,
        config.llm.width,
        _heads_of(encoder.width, "query-window", 8),
        quantizer.codes,
    )


def make_reducer(name: str, codes: int, frames: int, grid: int, width: int) -> Any:
    """A reducer of a clip alone with its paper's defaults; one with weights has random ones.

    Args:
        name: see `vqedge.reducers`.
        codes: rows K of its result.
        frames: T of a clip.
        grid: patches per side of a frame.
        width: D of the features.

    Raises:
        ConfigError: no reducer has this name, or there are fewer patches than codes or more than it
            can compare.
    """
    if codes > frames * grid**2:
        raise ConfigError(f"quantizer.codes {codes}: a clip has {frames * grid**2} patches")
    if name not in REDUCERS:
        raise ConfigError(f"no reducer {name!r}; choose one of {', '.join(REDUCERS)}")
    require_room(name, frames * grid**2)
    return REDUCERS[name](codes, frames, grid, width)


def reducer_quantizer(config: ModelConfig) -> ReducerQuantizer:
    """The quantizer of a `quantizer.kind` that is a reducer's."""
    name = reducer_of(config.quantizer.kind)
    assert name is not None, "a kind of its own"
    return named_quantizer(name, config)


def named_quantizer(name: str, config: ModelConfig) -> ReducerQuantizer:
    """A reducer in the place of the quantizer that a configuration has.

    Raises:
        ConfigError: as `make_reducer`.
    """
    quantizer, encoder = config.quantizer, config.encoder
    reducer = (
        query_windows(config)
        if KINDS[name].per_question
        else make_reducer(name, quantizer.codes, encoder.frames, encoder.grid, encoder.width)
    )
    return ReducerQuantizer(reducer, quantizer.codes, encoder.frames, quantizer.unit_means)
