"""Nobody is told that vqedge runs. The three packages import this module before anything else."""

import os

# ONNX Runtime, which reports to Microsoft, reads it while it is imported; 0 leaves that on
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
