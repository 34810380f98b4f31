"""A bundle of a few bytes, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vqedge.bundle import (
    BridgeRecord,
    Bundle,
    BundleFacts,
    EncoderRecord,
    LlmRecord,
    ProvenanceRecord,
    QuantizerRecord,
    TensorRecord,
    bundle_writer,
)

FILES = {
    "bridge.onnx": b"bridge" * 20,
    "encoder.onnx": b"encoder" * 20,
    "llm.gguf": b"GGUF" * 20,
    "parity.json": b"{}\n",
    "LICENSES/SmolLM2.txt": b"Apache-2.0\n",
}


def tiny_facts(**changes: Any) -> BundleFacts:
    """Facts that fit `FILES`."""
    encoder = EncoderRecord(
        file="encoder.onnx",
        inputs=(TensorRecord(name="frames", dtype="uint8", shape=(8, 224, 224, 3)),),
        outputs=(TensorRecord(name="tokens", dtype="float32", shape=("budget", 576)),),
        frames=8,
        size=224,
        grid=16,
        source="dinov2-s14-focus",
        block=9,
        opset=20,
        custom_op="function",
        precision="fp32",
        variants=(),
    )
    bridge = BridgeRecord(
        file="bridge.onnx",
        inputs=(
            TensorRecord(name="codes", dtype="float16", shape=(32, 576)),
            TensorRecord(name="index_map", dtype="int32", shape=(8, 16, 16)),
        ),
        outputs=(TensorRecord(name="tokens", dtype="float32", shape=(32, 576)),),
    )
    llm = LlmRecord(
        file="llm.gguf",
        arch="llama",
        width=576,
        vocab_size=49152,
        quantization="Q4_0",
        context_length=8192,
        chat_template="chatml",
        system_prompt="Answer the question about the vidéo.",
    )
    provenance = ProvenanceRecord(
        created_by="vqedge 0.1.0",
        checkpoint_sha256="0" * 64,
        base_weights=(),
        tools={"onnx": "1.23"},
    )
    parts = {
        "encoder": encoder,
        "bridge": bridge,
        "llm": llm,
        "provenance": provenance,
        "quantizer": tiny_quantizer(),
    }
    return BundleFacts(**(parts | changes))


def tiny_quantizer(**changes: Any) -> QuantizerRecord:
    """Fixed budgets of the clip's own codes."""
    values = {"kind": "kmeans", "codes": 32, "iterations": 8, "default_budget": 32}
    values |= {"adaptive_error": None, "codebook": None}
    return QuantizerRecord.model_validate(values | changes)


def fill_folder(folder: Path) -> None:
    """Put `FILES` into a draft."""
    for name, data in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)


def write_bundle(out: Path, *, overwrite: bool = False, facts: BundleFacts | None = None) -> Bundle:
    """Write the tiny bundle."""
    with bundle_writer(out, overwrite=overwrite) as draft:
        fill_folder(draft.folder)
        return draft.finish(facts or tiny_facts())


def asking_facts() -> BundleFacts:
    """Facts of a bundle whose encoder reads a question."""
    encoder = tiny_facts().encoder
    text = TensorRecord(name="text", dtype="float32", shape=(576,))
    reads = encoder.model_copy(update={"inputs": (*encoder.inputs, text)})
    return tiny_facts(encoder=reads, quantizer=tiny_quantizer(per_question=True))
