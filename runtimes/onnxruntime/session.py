"""Runs this model with ONNX Runtime: needs `pip install onnxruntime numpy`, nothing else."""

import os
import pathlib
from typing import Any

import numpy as np

from onmetal.runtimes.run_tail import Refused

PACKAGES = ("onnxruntime",)

# run.py: before its imports
# The user of a model asked for no telemetry: it must be off before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# run.py: its runtime
import onnxruntime

# run.py: the session
ENUMS = {
    "execution_mode": onnxruntime.ExecutionMode,
    "graph_optimization_level": onnxruntime.GraphOptimizationLevel,
}


class Session:
    """One model, opened once and run many times, one inference at a time."""

    def __init__(
        self, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str]
    ) -> None:
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        for name, value in options.items():
            if "." in name:
                settings.add_session_config_entry(name, str(value))
            elif name in ENUMS:
                setattr(settings, name, getattr(ENUMS[name], str(value)))
            elif hasattr(settings, name):
                setattr(settings, name, value)
            else:
                raise ValueError(f"onnxruntime {onnxruntime.__version__} has no option {name!r}")
        self.session = onnxruntime.InferenceSession(
            files[0], settings, providers=["CPUExecutionProvider"]
        )
        self.inputs, self.outputs = inputs, outputs

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Arrays by input name, as in the manifest -> arrays in the order of its outputs."""
        return self.session.run(self.outputs, feed)  # type: ignore[no-any-return]


def library() -> pathlib.Path:
    """ONNX Runtime's C API as a shared library."""
    for found in pathlib.Path(onnxruntime.__path__[0]).glob("capi/libonnxruntime.*"):
        return found
    raise Refused("this package of onnxruntime has no shared library with the C API")
