"""Reducers by name; `vqedge.reducers` tells the same names to whoever has no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from vqedge.config import ModelConfig
from vqedge.errors import ConfigError
from vqedge.model.reducers.blocks import BlockReducer, near_square, square, square_windows
from vqedge.model.reducers.density import SpatialDensityPeaks
from vqedge.model.reducers.kmedoids import SegmentMedoids
from vqedge.model.reducers.prumerge import PruMerge
from vqedge.model.reducers.pruning import RandomPruning, UniformPruning
from vqedge.model.reducers.quantizer import ReducerQuantizer
from vqedge.model.reducers.scissor import Scissor
from vqedge.model.reducers.tome import BipartiteMerging
from vqedge.model.reducers.vtm import CentreMerging, MotionMerging, VideoTokenMerging
from vqedge.model.reducers.windows import WindowMerging
from vqedge.reducers import reducer_of

Make = Callable[[int, int, int], Any]
"""From codes, frames and patches per side to a module that is a `Reducer`."""

REDUCERS: dict[str, Make] = {
    "uniform-pool": partial(BlockReducer, cut=near_square),
    "tpool": partial(BlockReducer, cut=near_square, pool=4),
    "tsample": partial(BlockReducer, cut=near_square, sample=2),
    "spool": partial(BlockReducer, cut=square_windows, windows=True),
    "gridpool": partial(BlockReducer, cut=square),
    "uniform-prune": UniformPruning,
    "random-prune": RandomPruning,
    "prumerge": PruMerge,
    "prumerge+": partial(PruMerge, spread=0.75),
    "tome": BipartiteMerging,
    "vtm": VideoTokenMerging,
    "vtm-centre": CentreMerging,
    "vtm-motion": MotionMerging,
    "kmedoids": SegmentMedoids,
    "dpc-spatial": SpatialDensityPeaks,
    "scissor": Scissor,
    "window-merge": WindowMerging,
}


def make_reducer(name: str, codes: int, frames: int, grid: int) -> Any:
    """A reducer with its paper's defaults.

    Raises:
        ConfigError: no reducer has this name, or there are fewer patches than codes.
    """
    if name not in REDUCERS:
        raise ConfigError(f"no reducer {name!r}; choose one of {', '.join(REDUCERS)}")
    if codes > frames * grid**2:
        raise ConfigError(f"quantizer.codes {codes}: a clip has {frames * grid**2} patches")
    return REDUCERS[name](codes, frames, grid)


def reducer_quantizer(config: ModelConfig) -> ReducerQuantizer:
    """The quantizer of a `quantizer.kind` that is a reducer's."""
    codes, encoder = config.quantizer.codes, config.encoder
    name = reducer_of(config.quantizer.kind)
    assert name is not None, "a kind of its own"
    return ReducerQuantizer(
        make_reducer(name, codes, encoder.frames, encoder.grid), codes, encoder.frames
    )
