"""Import and export at full size: SigLIP-so400m and Qwen2-0.5B in VQToken's layout, random weights.

    python tests/bench/bench_import.py WORK_FOLDER [--frames 16] [--quant F16] [--no-check]

Writes about 1.9 GB of random bfloat16 weights, then measures `vqedge import` and `vqedge export` in
processes of their own: wall and CPU time, peak resident memory (mapped files count too), and what
the files weigh. Prints one JSON document. The folder is removed at the end.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))
from hf_maker import LLAVA, PublishedAttention, projector, tiny_tokenizer, write_json

VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 26,  # as LLaVA keeps it: 27 without the last
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
LANGUAGE = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151_936,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
_SHARD_BYTES = 400 << 20
_STD = 0.02
_SURE_STD = 1.0
"""Of token embeddings. At 0.02 the likeliest of 151,936 tokens is a near tie at every position, and
rounding to float16 changes 2 of 59; at 1 a token's own row, tied to the head, is certain, so that
the verdict on the language model says little here; tests/export/test_gguf.py tests that."""


def shapes() -> Iterator[tuple[str, torch.Size]]:
    """Names and shapes of the published state dict; no weight is made for them."""
    with torch.device("meta"):
        vision = SiglipVisionModel(SiglipVisionConfig(**VISION))
        parts: dict[str, nn.Module] = {
            "": Qwen2ForCausalLM(Qwen2Config(**LANGUAGE)),
            "model.vision_tower.vision_tower.": vision,
            "model.mm_projector.": projector(VISION["hidden_size"], LANGUAGE["hidden_size"]),
            "model.cross_attention.": PublishedAttention(27**2, LANGUAGE["hidden_size"]),
        }
    for prefix, module in parts.items():
        for name, value in module.state_dict().items():
            if ".head." not in name and name != "lm_head.weight":
                yield prefix + name, value.shape
    yield "model.image_newline", torch.Size([LANGUAGE["hidden_size"]])


def write_source(folder: Path) -> int:
    """Random weights, shard by shard; how many parameters there are."""
    folder.mkdir(parents=True)
    tiny_tokenizer(folder)
    generator = torch.Generator().manual_seed(0)
    index: dict[str, str] = {}
    held: dict[str, torch.Tensor] = {}
    parameters = 0
    for name, shape in shapes():
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        std = _SURE_STD if name == "model.embed_tokens.weight" else _STD
        held[name] = (centre + torch.randn(shape, generator=generator) * std).bfloat16()
        parameters += shape.numel()
        if sum(value.nbytes for value in held.values()) > _SHARD_BYTES:
            _flush(folder, held, index)
    _flush(folder, held, index)
    write_json(folder / "model.safetensors.index.json", {"weight_map": index})
    config = LLAVA | LANGUAGE | {"mm_vision_tower": "google/siglip-so400m-patch14-384"}
    write_json(folder / "config.json", config)
    return parameters


def _flush(folder: Path, held: dict[str, torch.Tensor], index: dict[str, str]) -> None:
    name = f"model-{len(set(index.values())):05d}.safetensors"
    index |= dict.fromkeys(held, name)
    save_file(held, folder / name)
    held.clear()


def measured(*arguments: object) -> dict[str, Any]:
    """Run a command; its last line, its time, and the largest resident memory of a child so far."""
    command = [sys.executable, "-m", "vqedge", "--verbose", *map(str, arguments), "--json"]
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "minutes": round(seconds / 60, 2),
        "cpu_minutes": round(busy / 60, 2),
        "peak_rss_gb": round(after.ru_maxrss / 1e6, 2),
        "told": json.loads(done.stdout.splitlines()[-1]),
    }


def run(work: Path, frames: int, quant: str, check: bool) -> dict[str, Any]:
    """The whole measurement; import first, as peaks of children never fall."""
    parameters = write_source(work / "source")
    imported = measured("import", work / "source", "-o", work / "vqtoken", "--frames", frames)
    more = [] if check else ["--no-check"]
    out = work / "vqtoken.vqedge"
    exported = measured("export", work / "vqtoken", "-o", out, "--llm-quant", quant, *more)
    names = ("torch", "transformers", "onnx", "onnxruntime", "llama-cpp-python")
    return {
        "parameters": parameters,
        "frames": frames,
        "import": imported,
        "export": exported,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {name: version(name) for name in names},
    }


def main() -> None:
    """Measure, print, clean up."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--quant", default="F16")
    parser.add_argument("--no-check", action="store_true")
    options = parser.parse_args()
    try:
        document = run(options.work, options.frames, options.quant, not options.no_check)
        print(json.dumps(document, indent=2))
    finally:
        shutil.rmtree(options.work, ignore_errors=True)


if __name__ == "__main__":
    main()
