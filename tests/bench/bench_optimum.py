"""optimum's quantiser and optimiser on our encoder, beside what `vqedge export` writes.

    python tests/bench/bench_optimum.py BUNDLE [--clips 6]

For every candidate: size, one-thread time of a clip, and what its ids become on generated clips
(`vqedge_export.flips`), against the bundle's float32 encoder. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from optimum.onnxruntime import ORTOptimizer, ORTQuantizer
from optimum.onnxruntime.configuration import AutoQuantizationConfig, OptimizationConfig
from transformers import AutoConfig, Dinov2Config

from vqedge.config import EncoderConfig, ModelConfig
from vqedge_export.flips import OnnxReader, encoders_compared
from vqedge_export.int8 import int8_encoder
from vqedge_export.layers import VIT
from vqedge_export.parity import generated_clip

ENCODER = "encoder.onnx"
_ROUNDS = 5


def quantised(folder: Path, out: Path, nodes: list[str] | None) -> Path:
    """Dynamic int8 by optimum: of all nodes that it knows, or of the given ones."""
    config = AutoQuantizationConfig.avx512_vnni(
        is_static=False, per_channel=True, nodes_to_quantize=nodes
    )
    quantizer = ORTQuantizer.from_pretrained(folder, file_name=ENCODER)
    return quantizer.quantize(save_dir=out, quantization_config=config) / "encoder_quantized.onnx"


def optimised(folder: Path, out: Path) -> Path:
    """Fusions by optimum, which wants a configuration of transformers beside the file."""
    optimizer = ORTOptimizer([folder / ENCODER], AutoConfig.from_pretrained(folder))
    optimizer.optimize(save_dir=out, optimization_config=OptimizationConfig(optimization_level=1))
    return out / "encoder_optimized.onnx"


def candidates(bundle: Path, work: Path) -> Iterator[tuple[str, Path | str]]:
    """Names and files; instead of a file the error that there was."""
    folder = work / "model"
    folder.mkdir()
    model = onnx.load(str(bundle / ENCODER))
    onnx.save(model, str(folder / ENCODER))
    Dinov2Config(hidden_size=384, num_attention_heads=6).save_pretrained(folder)
    onnx.save(int8_encoder(model), str(work / "ours.onnx"))
    yield "vqedge int8", work / "ours.onnx"
    layers = [node.name for node in model.graph.node if node.name.startswith(VIT)]
    yield "ORTQuantizer, ViT only", quantised(folder, work / "vit", layers)
    yield "ORTQuantizer, all", quantised(folder, work / "all", None)
    try:
        yield "ORTOptimizer", optimised(folder, work / "optimised")
    except Exception as error:  # what it raises is the finding
        yield "ORTOptimizer", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def clip_ms(path: Path, frames: Any) -> float:
    """The shortest of a few runs, with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds, times = {"frames": frames, "budget": np.array(32)}, []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        session.run(["index_map"], feeds)
        times.append(time.perf_counter() - began)
    return round(1e3 * min(times), 1)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clips", type=int, default=6)
    options = parser.parse_args()
    config = ModelConfig(encoder=EncoderConfig())
    clips = [generated_clip(index, config) for index in range(options.clips)]
    reference = OnnxReader(options.bundle / ENCODER)
    document: dict[str, Any] = {"fp32": {"clip_ms": clip_ms(options.bundle / ENCODER, clips[0])}}
    with tempfile.TemporaryDirectory() as work:
        made = dict(candidates(options.bundle, Path(work)))
        document |= {name: error for name, error in made.items() if isinstance(error, str)}
        files = {name: file for name, file in made.items() if isinstance(file, Path)}
        readers = {name: OnnxReader(file) for name, file in files.items()}
        figures = encoders_compared(reference, readers, clips, 32)
        for name, file in files.items():
            size = {"mb": round(file.stat().st_size / 1e6, 1), "clip_ms": clip_ms(file, clips[0])}
            document[name] = size | figures[name].model_dump()
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
