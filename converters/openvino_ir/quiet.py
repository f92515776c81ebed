"""OpenVINO, imported without its telemetry."""

import sys

# OpenVINO works without this module, and its import sends no telemetry then.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402
from openvino import opset13 as operators  # noqa: E402
from openvino import passes  # noqa: E402

__all__ = ["openvino", "operators", "passes"]
