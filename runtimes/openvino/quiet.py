"""OpenVINO, imported without its telemetry."""

import sys

# It does without this module, and its import reports nothing then.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

import openvino  # noqa: E402

__all__ = ["openvino"]
