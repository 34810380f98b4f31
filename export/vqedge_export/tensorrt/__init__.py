"""TensorRT: engines from `encoder.onnx`, the NearestCodebook plugin, and what builds both."""
