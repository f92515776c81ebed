"""Runs models with LiteRT on a device that has Python; pushed there beside the runner.

Needs NumPy and Python 3.7, nothing of onmetal's.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any, Callable

import numpy as np

Describe = Callable[..., "dict[str, Any]"]


def interpreter() -> Any:
    """The module that has the interpreter, of the package that the device has."""
    try:
        return import_module("ai_edge_litert.interpreter")
    except ImportError:
        return import_module("tflite_runtime.interpreter")


load = interpreter

SHORT_BITS = 8
FEWEST = 4
SCALES = (1.0, 0.97, 0.89, 0.83, 0.71, 0.61, 0.53, 0.43)


def in_float16(path: str, run: Callable[[float], list[Any]]) -> bool:
    """Whether float32 outputs are computed in float16, as the file at `path` may allow (see
    half.py). `run`: gives the outputs for inputs that are multiplied by a number. The interpreter
    does not tell, but the values do.

    What a float16 kernel gives is a value that float16 holds. One of float32 arithmetic is that by
    chance once in 8,192 times, unless it is short (0, 1, 0.25), as any arithmetic may give: short
    values prove nothing, so that `FEWEST` of more than `SHORT_BITS` significant bits must be there.
    """
    with open(path, "rb") as file:
        if b"reduced_precision_support" not in file.read():
            return False
    outputs = [array for scale in SCALES for array in run(scale)]
    floats = [array.ravel() for array in outputs if array.dtype == np.float32]
    values = np.concatenate([np.zeros(0, np.float32), *floats])
    values = values[np.isfinite(values)]
    with np.errstate(over="ignore"):
        held = values.astype(np.float16).astype(np.float32) == values
    significands = np.frexp(values)[0] * (1 << SHORT_BITS)
    long = np.count_nonzero(significands != np.rint(significands))
    return bool(held.all() and long >= FEWEST)


def multiplied(array: Any, scale: float) -> Any:
    """Of an input: integers stay as they are."""
    return (array * scale).astype(array.dtype) if array.dtype.kind == "f" else array


class Model:
    def __init__(self, path: str, options: dict[str, str], describe: Describe) -> None:
        """`describe`: makes the description of an input or output."""
        self.describe, self.path = describe, path
        self.arrays: list[Any] = []
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
        return self.describe(name, entry["dtype"], entry["shape"], scale, zero)

    def run(self, arrays: list[Any]) -> list[Any]:
        self.arrays = arrays
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
            last = self.arrays
            proved = in_float16(
                self.path, lambda scale: self.run([multiplied(array, scale) for array in last])
            )
            json.dump({"ops": ops, "types": types, "in_float16": proved}, file)
