"""Runs models with LiteRT on a device that has Python; pushed there beside the runner.

Needs NumPy and Python 3.7, nothing of onmetal's.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any, Callable

import numpy as np

Port = Callable[..., "dict[str, Any]"]


def interpreter() -> Any:
    """The module that has the interpreter, of the package that the device has."""
    try:
        return import_module("ai_edge_litert.interpreter")
    except ImportError:
        return import_module("tflite_runtime.interpreter")


load = interpreter


class Model:
    def __init__(self, path: str, options: dict[str, str], port: Port) -> None:
        """`port`: makes the description of an input or output."""
        self.port = port
        self.interpreter = interpreter().Interpreter(
            model_path=path, num_threads=int(options.get("num_threads", 1))
        )
        self.interpreter.allocate_tensors()
        self.stateful = options.get("stateful", "0") != "0"
        signatures = self.interpreter.get_signature_list()
        takes, gives = {}, {}
        if len(signatures) == 1:
            runner = self.interpreter.get_signature_runner(next(iter(signatures)))
            takes, gives = (
                {entry["index"]: name for name, entry in found.items()}
                for found in (runner.get_input_details(), runner.get_output_details())
            )
        self.taken = self.interpreter.get_input_details()
        self.given = self.interpreter.get_output_details()
        self.inputs = [self._port(entry, takes) for entry in self.taken]
        self.outputs = [self._port(entry, gives) for entry in self.given]

    def _port(self, entry: dict[str, Any], names: dict[int, str]) -> dict[str, Any]:
        scale, zero = entry["quantization"]
        name = names.get(entry["index"], entry["name"])
        return self.port(name, entry["dtype"], entry["shape"], scale, zero)

    def run(self, arrays: list[Any]) -> list[Any]:
        for entry, array in zip(self.taken, arrays):
            self.interpreter.set_tensor(entry["index"], array)
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(entry["index"]) for entry in self.given]

    def reset(self) -> None:
        if self.stateful:
            self.interpreter.reset_all_variables()

    def profile(self, path: str) -> None:
        ops = [
            {
                "index": int(op["index"]),
                "op_name": str(op["op_name"]),
                "inputs": [int(tensor) for tensor in op["inputs"]],
                "outputs": [int(tensor) for tensor in op["outputs"]],
            }
            for op in self.interpreter._get_ops_details()
        ]
        types = {
            int(entry["index"]): np.dtype(entry["dtype"]).name
            for entry in self.interpreter.get_tensor_details()
            if entry["name"]
        }
        with open(path, "w") as file:
            json.dump({"ops": ops, "types": types}, file)
