"""TensorRT: the NearestCodebook plugin and what builds it."""
