"""Runs an ONNX file by ONNX Runtime, which is the reference; imported without telemetry."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

# The user of a model asked for no telemetry: it must be off before the import.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime


def opened(
    model: bytes | str,
    level: str,
    *,
    threads: int = 0,
    severity: int = 3,
    optimized_path: str = "",
) -> Any:
    """An InferenceSession on the CPU for a file (its path) or for a file's bytes.

    `level`: a name of onnxruntime.GraphOptimizationLevel. `threads`: 0 for one a core.
    `severity`: the least severity that is logged, from 0 (all) to 4 (fatal errors).
    `optimized_path`: where the optimized graph is written. Raises ONNX Runtime's exceptions.
    """
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = severity
    settings.intra_op_num_threads = threads
    settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    if optimized_path:
        settings.optimized_model_filepath = optimized_path
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


class Reference:
    """A prepared model in ONNX Runtime with its default options."""

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        self.session, self.outputs = opened(str(path), "ORT_ENABLE_ALL"), list(outputs)

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        arrays: list[np.ndarray] = self.session.run(self.outputs, feed)
        return arrays
