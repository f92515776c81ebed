"""Runs this model with LiteRT: needs `pip install ai-edge-litert numpy`, nothing else.

On boards that have only its predecessor, `pip install tflite-runtime` (Python 3.11 and NumPy 1)
does too.
"""

import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from onmetal.runtimes.run_tail import Refused

PACKAGES = ("ai-edge-litert", "tflite-runtime")

# run.py: before its imports
# run.py: its runtime

try:
    from ai_edge_litert.interpreter import Interpreter
except ImportError:  # the same interpreter under its older name
    from tflite_runtime.interpreter import Interpreter
# run.py: the session
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class Session:
    """One model, opened once and run many times, one inference at a time.

    Arrays are handed over and come back in the layout and type that the original model has; where
    the artifact has channels last, or whole numbers, or float32 for float16, that is done here.
    """

    def __init__(
        self, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str]
    ) -> None:
        with without_information():
            self.interpreter = Interpreter(
                model_path=files[0], num_threads=int(options.get("num_threads", 1))
            )
            self.interpreter.allocate_tensors()
        self.inputs, self.outputs = inputs, outputs
        turned, half = options.get("nhwc", []), options.get("float16", [])
        taken, given = self.interpreter.get_input_details(), self.interpreter.get_output_details()
        self.taken = [
            (
                *(name, entry["index"], name in turned, name in half),
                *(entry["dtype"], entry["quantization"]),
            )
            for name, entry in zip(
                inputs, _ordered(self.interpreter, taken, inputs, 0), strict=True
            )
        ]
        self.given = [
            (entry["index"], name in turned, name in half, entry["dtype"], entry["quantization"])
            for name, entry in zip(
                outputs, _ordered(self.interpreter, given, outputs, 1), strict=True
            )
        ]
        self.stateful = bool(options.get("stateful"))
        self.set, self.get = self.interpreter.set_tensor, self.interpreter.get_tensor
        self.invoke = self.interpreter.invoke

    def run(self, feed: dict[str, np.ndarray], keep_state: bool = False) -> list[np.ndarray]:
        """Arrays by input name, as in the manifest -> arrays in the order of its outputs.

        A model that keeps state begins anew each time; `keep_state`: it goes on where it was.
        """
        if self.stateful and not keep_state:
            self.interpreter.reset_all_variables()
        for name, index, turned, half, dtype, (scale, zero) in self.taken:
            array = feed[name]
            if turned:
                array = np.ascontiguousarray(array.transpose(NHWC))
            if half:
                array = array.astype(np.float32)
            if array.dtype != dtype and scale:
                limits = np.iinfo(dtype)
                array = np.clip(np.rint(array / scale) + zero, limits.min, limits.max).astype(dtype)
            self.set(index, array)
        self.invoke()
        found = []
        for index, turned, half, dtype, (scale, zero) in self.given:
            array = self.get(index)
            if scale and dtype in (np.int8, np.uint8, np.int16):
                array = (array.astype(np.float32) - np.float32(zero)) * np.float32(scale)
            if half:
                array = array.astype(np.float16)
            found.append(np.ascontiguousarray(array.transpose(NCHW)) if turned else array)
        return found


def _ordered(
    interpreter: Any, details: list[dict[str, Any]], names: list[str], kind: int
) -> list[dict[str, Any]]:
    """The tensors in the order of the names that the signature gives them."""
    signatures = interpreter.get_signature_list()
    if len(signatures) != 1:
        return details
    runner = interpreter.get_signature_runner(next(iter(signatures)))
    known = runner.get_output_details() if kind else runner.get_input_details()
    if not set(names) <= set(known):
        return details
    return [known[name] for name in names]


@contextlib.contextmanager
def without_information() -> Iterator[None]:
    """What LiteRT's C++ prints to standard error meanwhile comes once it is over, less its lines
    of mere information (which delegate it made)."""
    try:
        kept = os.dup(2)
    except OSError:  # there is no standard error
        yield
        return
    linux = hasattr(os, "memfd_create")
    with os.fdopen(os.memfd_create("log"), "w+b") if linux else tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            log.seek(0)
            lines = [line for line in log if not line.startswith(b"INFO: ")]
            with contextlib.suppress(OSError):
                os.write(2, b"".join(lines))


def library() -> pathlib.Path:
    """LiteRT's C API as a shared library."""
    package = pathlib.Path(sys.modules[Interpreter.__module__].__file__ or "").parent
    for found in package.glob("libLiteRt.*"):
        return found
    raise Refused(f"{package.name} has no shared library with the C API; ai-edge-litert has")
