"""OpenVINO, which tells Google Analytics of every import if it finds the package that does it."""

import sys

# it then takes a stub of its own; who imported the package before keeps it
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402
from openvino import opset13  # noqa: E402

__all__ = ["opset13", "ov"]
