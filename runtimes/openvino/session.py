"""Runs this model with OpenVINO: needs `pip install openvino numpy`, nothing else."""

import pathlib
import sys
from typing import Any

import numpy as np

from onmetal.runtimes.run_tail import Refused

PACKAGES = ("openvino",)

# run.py: before its imports
# The user of a model asked for no telemetry: openvino does without this module, and its import
# would write to the home folder and look up a host.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]

# run.py: its runtime
import openvino


# run.py: the session
class Session:
    """One model, opened once and run many times, one inference at a time."""

    def __init__(
        self, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str]
    ) -> None:
        core = openvino.Core()
        self.compiled = core.compile_model(core.read_model(files[0]), "CPU", options)
        self.request = self.compiled.create_infer_request()
        self.inputs, self.outputs = inputs, outputs
        # Shapes are static, so the runtime's own buffers can be held on to: handing arrays over
        # by `infer(feed)` costs 20 us more an inference.
        self.fed = [(name, self.request.input_tensors[i].data) for i, name in enumerate(inputs)]
        self.infer = self.request.infer
        self.static = all(output.partial_shape.is_static for output in self.compiled.outputs)
        self.results = (
            [tensor.data for tensor in self.request.output_tensors] if self.static else []
        )

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """Arrays by input name, as in the manifest -> arrays in the order of its outputs."""
        for name, buffer in self.fed:
            if feed[name].shape != buffer.shape:
                raise ValueError(f"input {name!r} is {feed[name].shape}, must be {buffer.shape}")
            buffer[...] = feed[name]
        self.infer()
        if not self.static:
            return [tensor.data.copy() for tensor in self.request.output_tensors]
        return [result.copy() for result in self.results]


def library() -> pathlib.Path:
    """OpenVINO's C API as a shared library."""
    for found in pathlib.Path(openvino.__path__[0]).glob("libs/*openvino_c.*"):
        return found
    raise Refused("this package of openvino has no shared library with the C API")
