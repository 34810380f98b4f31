"""Base weights: their `sources`, how they get here (`fetch`), how they are read (`focus_onnx`)."""
