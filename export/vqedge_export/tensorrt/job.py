"""What the building process is told, and what it answers: two JSON files."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from vqedge.bundle import ProfileRecord, TensorRecord
from vqedge.engines import Flavour
from vqedge_export.tensorrt.options import BuildOptions, Offer


class Job(BaseModel):
    """One engine to build, or with `onnx` None only the question what TensorRT is there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    flavour: Flavour
    options: BuildOptions = BuildOptions()
    capabilities: tuple[str, ...] = ()
    onnx: Path | None = None  # as prepared for TensorRT
    engine: Path | None = None  # to write
    inputs: tuple[TensorRecord, ...] = ()  # that the manifest promises
    outputs: tuple[TensorRecord, ...] = ()
    profiles: tuple[ProfileRecord, ...] = ()
    plugin: Path | None = None
    timing_cache: Path | None = None
    verbose: bool = False  # tell on stderr what TensorRT tells of the build


class Outcome(BaseModel):
    """What came of it: `fault` is the one line for the user."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    fault: str | None = None
    unavailable: bool = False  # the fault is that TensorRT is not there
    offer: Offer | None = None
    inputs: tuple[TensorRecord, ...] = ()  # as TensorRT sees them
    outputs: tuple[TensorRecord, ...] = ()
    seconds: float = 0.0
