"""How many ids turn when the ViT's precision is lowered, in ONNX Runtime on this CPU.

    python tests/bench/lowered_ids.py BUNDLE fp16|int8 [FOLDER]

The graph is the one that engines are built from; int8 is calibrated as `vqedge build` does it, on
generated clips. Compared with float32 on eight other generated clips, or on the videos of a folder.
Prints a line for every clip and one JSON document; see `vqedge_export.flips` for what is compared.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from statistics import fmean

import onnx
import onnxruntime

from vqedge.bundle import EncoderRecord, open_bundle
from vqedge.commands.frames import Frames, frames_in_folder
from vqedge.data.seeds import PARITY_SEED
from vqedge_export.flips import OnnxReader, encoders_compared
from vqedge_export.graph import copied
from vqedge_export.tensorrt.calibration import (
    CALIBRATION_CLIPS,
    CALIBRATION_SEED,
    generated_clips,
    measured_channels,
)
from vqedge_export.tensorrt.prepare import prepare

CLIPS = 8
FIGURES = ("nearest_differ", "safe_nearest_differ", "maps_differ", "feature_cosine")


def lowered(full: onnx.ModelProto, precision: str, spec: EncoderRecord) -> onnx.ModelProto:
    """The encoder with its ViT in another precision."""
    if precision == "fp16":
        return prepare(copied(full), "fp16")
    clips = generated_clips(spec, CALIBRATION_SEED, CALIBRATION_CLIPS)
    return prepare(copied(full), "int8", channels=measured_channels(full, clips))


def clips_of(folder: str | None, spec: EncoderRecord) -> list[Frames]:
    """What to compare on."""
    if folder is None:
        return generated_clips(spec, PARITY_SEED, CLIPS)
    return list(frames_in_folder(Path(folder), spec))


def main() -> None:
    """Compare clip by clip."""
    bundle, precision = open_bundle(Path(sys.argv[1]), verify=False), sys.argv[2]
    spec, budget = bundle.manifest.encoder, bundle.manifest.quantizer.default_budget
    full = onnx.load(str(bundle.path_of("encoder")))
    reference, others = OnnxReader(full), {"lowered": OnnxReader(lowered(full, precision, spec))}
    each = []
    for clip in clips_of(sys.argv[3] if len(sys.argv) > 3 else None, spec):
        one = encoders_compared(reference, others, [clip], budget)["lowered"]
        print(f"{one.nearest_differ:.2%} of ids, {one.maps_differ:.2%} of the map", flush=True)
        each.append(one)
    means = {name: fmean(getattr(one, name) for one in each) for name in FIGURES}
    machine = {"machine": platform.machine(), "onnxruntime": onnxruntime.__version__}
    print(json.dumps({"precision": precision, "clips": len(each)} | means | machine))


if __name__ == "__main__":
    main()
