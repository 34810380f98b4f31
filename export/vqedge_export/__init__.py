"""Checkpoint to deployable files: ONNX encoder, GGUF language model, bundle, parity report."""
