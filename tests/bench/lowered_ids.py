"""How many ids turn when the ViT's precision is lowered, in ONNX Runtime on this CPU.

    python tests/bench/lowered_ids.py BUNDLE fp16    the graph that engines are built from
    python tests/bench/lowered_ids.py BUNDLE int8    static Q/DQ, an experiment: vqedge builds none

Prints a line for every clip and one JSON document.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from vqedge.budget import ADAPTIVE
from vqedge.bundle import Bundle, open_bundle
from vqedge.data.render import frames_from_scene
from vqedge.data.world import scene_from_seed
from vqedge_export.graph import save_model
from vqedge_export.tensorrt.prepare import prepared
from vqedge_export.tensorrt.region import VIT
from vqedge_runtime.compare import compared
from vqedge_runtime.encoders import Frames
from vqedge_runtime.encoders.ort import OrtEncoder

CLIPS, SEED = 8, 90_001
CALIBRATION_CLIPS, CALIBRATION_SEED = 3, 5


def clip(bundle: Bundle, seed: int, index: int) -> Frames:
    """A generated clip of the bundle's shape."""
    spec = bundle.manifest.encoder
    return frames_from_scene(scene_from_seed(seed, index), spec.frames, spec.size)


class Calibration(CalibrationDataReader):  # type: ignore[misc]
    """A few generated clips."""

    def __init__(self, bundle: Bundle) -> None:
        self.feeds: Iterator[dict[str, Any]] = (
            {"frames": clip(bundle, CALIBRATION_SEED, index), "budget": np.array(32, np.int64)}
            for index in range(CALIBRATION_CLIPS)
        )

    def get_next(self) -> dict[str, Any] | None:
        """The next clip."""
        return next(self.feeds, None)


def quantised(bundle: Bundle, full: Path, out: Path) -> None:
    """Q/DQ around the ViT's linear layers: symmetric, weights by column, activations by tensor."""
    graph = onnx.load(str(full)).graph
    weights = {item.name for item in graph.initializer}
    layers = [
        node.name
        for node in graph.node
        if node.name.startswith(VIT) and node.op_type == "MatMul" and node.input[1] in weights
    ]
    quantize_static(
        full,
        out,
        Calibration(bundle),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        nodes_to_quantize=layers,
        op_types_to_quantize=["MatMul"],
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )


def lowered(bundle: Bundle, precision: str, folder: Path) -> Path:
    """The bundle's encoder with its ViT in another precision."""
    model = onnx.load(str(bundle.path_of("encoder")))
    out = folder / f"{precision}.onnx"
    if precision == "fp16":
        save_model(prepared(model, "fp16", plugin=False), out)
        return out
    save_model(prepared(model, "fp32", plugin=False), folder / "full.onnx")
    quantised(bundle, folder / "full.onnx", out)
    return out


def main() -> None:
    """Compare clip by clip."""
    bundle, precision = open_bundle(Path(sys.argv[1]), verify=False), sys.argv[2]
    quantizer = bundle.manifest.quantizer
    budgets = (quantizer.codes, quantizer.default_budget, ADAPTIVE)
    clips = [(clip(bundle, SEED, i), budgets[i % len(budgets)]) for i in range(CLIPS)]
    with tempfile.TemporaryDirectory() as folder:
        other = OrtEncoder(lowered(bundle, precision, Path(folder)))
        reference = OrtEncoder(bundle.path_of("encoder"))
        for item in clips:
            figures = compared(reference, other, [item])
            print(f"budget {item[1]:2d}: {figures.ids_differ:.2%} of ids differ", flush=True)
        figures = compared(reference, other, clips)
    machine = {"machine": platform.machine(), "onnxruntime": version("onnxruntime")}
    print(json.dumps(asdict(figures) | {"backend": precision, **machine}))


if __name__ == "__main__":
    main()
