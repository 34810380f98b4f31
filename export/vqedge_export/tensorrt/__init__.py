"""TensorRT engines from `encoder.onnx`: graph, precision, builder, all in a process of its own."""
