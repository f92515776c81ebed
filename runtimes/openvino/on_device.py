"""Runs models with OpenVINO on a device that has Python; pushed there beside the runner.

Needs NumPy and Python 3.7, nothing of onmetal's.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Callable

Describe = Callable[..., "dict[str, Any]"]


def load() -> Any:
    return import_module("openvino")


class Model:
    def __init__(self, path: str, options: dict[str, str], describe: Describe) -> None:
        """`describe`: makes the description of an input or output."""
        self.describe = describe
        ours = ("stateful", "profile")
        properties = {name: value for name, value in options.items() if name not in ours}
        model = load().Core().compile_model(path, "CPU", properties)
        self.request = model.create_infer_request()
        self.inputs = [self._port(entry) for entry in model.inputs]
        self.outputs = [self._port(entry) for entry in model.outputs]

    def _port(self, entry: Any) -> dict[str, Any]:
        kind = entry.get_element_type().to_dtype()
        return self.describe(entry.get_any_name(), kind, list(entry.get_shape()), 0.0, 0)

    def run(self, arrays: list[Any]) -> list[Any]:
        self.request.infer(dict(enumerate(arrays)), share_inputs=True)
        return [self.request.get_output_tensor(i).data.copy() for i in range(len(self.outputs))]

    def reset(self) -> None:
        self.request.reset_state()

    def profile(self, path: str) -> None:
        raise RuntimeError("OpenVINO's profile can only be read where onmetal runs itself")
