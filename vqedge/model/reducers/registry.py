"""Reducers by name; `vqedge.reducers` tells the same names to whoever has no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
from vqedge.reducers import reducer_of, require_room


class Sizes(NamedTuple):
    """What a reducer is made for."""

    codes: int  # rows K of its result
    frames: int  # T of a clip
    grid: int  # patches per side of a frame
    width: int  # D of the features
    text_width: int  # of a question's embedding
    budget: int  # the model's default


Make = Callable[[Sizes], Any]
"""Gives a module that is a `Reducer`."""


def _plain(make: Callable[..., Any], **options: Any) -> Make:
    """One that asks for codes, frames and patches per side."""
    return lambda sizes: make(sizes.codes, sizes.frames, sizes.grid, **options)


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
    "group-queries": lambda s: GroupQueries(s.codes, s.width),
    "resampler": lambda s: Resampler(
        s.codes, s.frames, s.grid, s.width, _heads_of(s.width, "resampler", 6)
    ),
    "vtm-saliency": lambda s: SalientMerging(s.codes, s.frames, s.grid, s.width),
    "query-window": lambda s: QueryWindows(
        s.frames,
        s.grid,
        stride_within(s.budget, s.frames, s.grid),
        s.width,
        s.text_width,
        _heads_of(s.width, "query-window", 8),
        s.codes,
    ),
}


def _heads_of(width: int, name: str, usual: int) -> int:
    """As many as usual, or as are 64 wide."""
    for heads in (usual, width // 64):
        if heads and width % heads == 0:
            return heads
    raise ConfigError(f"reducer:{name}: neither {usual} nor heads of 64 divide the width {width}")


def make_reducer(name: str, sizes: Sizes) -> Any:
    """A reducer with its paper's defaults; one with weights has random ones.

    Args:
        name: see `vqedge.reducers`.
        sizes: what it is for.

    Raises:
        ConfigError: no reducer has this name, there are fewer patches than codes or more than it
            can compare, its heads do not divide the width, or its windows exceed the budget.
    """
    patches = sizes.frames * sizes.grid**2
    if sizes.codes > patches:
        raise ConfigError(f"quantizer.codes {sizes.codes}: a clip has {patches} patches")
    if name not in REDUCERS:
        raise ConfigError(f"no reducer {name!r}; choose one of {', '.join(REDUCERS)}")
    require_room(name, patches)
    return REDUCERS[name](sizes)


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
    sizes = Sizes(
        codes=quantizer.codes,
        frames=encoder.frames,
        grid=encoder.grid,
        width=encoder.width,
        text_width=config.llm.width,
        budget=quantizer.default_budget,
    )
    reducer = make_reducer(name, sizes)
    return ReducerQuantizer(reducer, quantizer.codes, encoder.frames, quantizer.unit_means)
