"""Checkpoint to deployable files: ONNX encoder, GGUF language model, bundle, parity report."""

import vqedge.silence  # noqa: F401 - before a library is imported
