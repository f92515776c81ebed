"""Runs models with ONNX Runtime on a device that has Python; pushed there beside the runner.

Needs NumPy and Python 3.7, nothing of onmetal's.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any, Callable, ClassVar

Describe = Callable[..., "dict[str, Any]"]


def load() -> Any:
    return import_module("onnxruntime")


class Model:
    TYPES: ClassVar = {
        "tensor(float)": "float32",
        "tensor(float16)": "float16",
        "tensor(double)": "float64",
        "tensor(bool)": "bool",
    }

    def __init__(self, path: str, options: dict[str, str], describe: Describe) -> None:
        """`describe`: makes the description of an input or output."""
        self.describe, onnxruntime = describe, load()
        enums = {
            "execution_mode": onnxruntime.ExecutionMode,
            "graph_optimization_level": onnxruntime.GraphOptimizationLevel,
        }
        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3
        for name, value in options.items():
            if name == "profile":
                settings.enable_profiling = True
                settings.profile_file_prefix = value
            elif "." in name:
                settings.add_session_config_entry(name, value)
            elif name in enums:
                setattr(settings, name, getattr(enums[name], value))
            elif hasattr(settings, name):
                kind = type(getattr(settings, name))
                setattr(settings, name, value in ("True", "1") if kind is bool else kind(value))
            elif name != "stateful":
                raise ValueError("onnxruntime has no option " + name)
        self.session = onnxruntime.InferenceSession(
            path, settings, providers=["CPUExecutionProvider"]
        )
        self.inputs = [self._port(entry) for entry in self.session.get_inputs()]
        self.outputs = [self._port(entry) for entry in self.session.get_outputs()]
        self.names = [entry["name"] for entry in self.inputs]

    def _port(self, entry: Any) -> dict[str, Any]:
        kind = self.TYPES.get(entry.type) or entry.type[len("tensor(") : -1]
        return self.describe(entry.name, kind, entry.shape, 0.0, 0)

    def run(self, arrays: list[Any]) -> list[Any]:
        found: list[Any] = self.session.run(None, dict(zip(self.names, arrays)))
        return found

    def reset(self) -> None:
        pass

    def profile(self, path: str) -> None:
        os.replace(self.session.end_profiling(), path)
