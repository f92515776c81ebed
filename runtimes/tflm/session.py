"""Runs this model with TFLite Micro: needs `pip install tflite-micro numpy`, nothing else.

What runs here is the interpreter of microcontrollers with its reference kernels, on this machine:
a board's outputs are the same to the bit, its speed and the size of its arena are not. What the
board itself holds is in the folder `firmware`; where an Ethos-U computes, that is another file than
the one which is run here (the last of `run.files` in manifest.json).
"""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from onmetal.runtimes.run_tail import Refused

PACKAGES = ("tflite-micro",)

# run.py: before its imports
# run.py: its runtime
from tflite_micro.python.tflite_micro import runtime
from tflite_micro.tensorflow.lite.micro.python import schema_py_generated as schema

# run.py: the session
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
ARENA_BYTES = 1 << 30
"""To be given to the interpreter, which takes of it what it needs; the rest costs no memory."""


class Session:
    """One model, opened once and run many times, one inference at a time.

    Arrays are handed over and come back in the layout and type that the original model has; where
    the artifact has channels last, or whole numbers, or float32 for float16, that is done here.
    """

    def __init__(
        self, files: list[str], options: dict[str, Any], inputs: list[str], outputs: list[str]
    ) -> None:
        content = pathlib.Path(files[0]).read_bytes()
        self.interpreter = opened(content)
        self.inputs, self.outputs = inputs, outputs
        turned, half = options.get("nhwc", []), options.get("float16", [])
        known = _places(content)
        taken, given = self.interpreter.get_input_details, self.interpreter.get_output_details
        self.taken = [
            (name, place, name in turned, name in half, *_quantization(taken(place)))
            for name, place in zip(inputs, _in_order(inputs, known[0]), strict=True)
        ]
        self.given = [
            (place, name in turned, name in half, *_quantization(given(place)))
            for name, place in zip(outputs, _in_order(outputs, known[1]), strict=True)
        ]
        self.stateful = bool(options.get("stateful"))
        self.set, self.get = self.interpreter.set_input, self.interpreter.get_output
        self.invoke = self.interpreter.invoke

    def run(self, feed: dict[str, np.ndarray], keep_state: bool = False) -> list[np.ndarray]:
        """Arrays by input name, as in the manifest -> arrays in the order of its outputs.

        A model that keeps state begins anew each time; `keep_state`: it goes on where it was.
        """
        if self.stateful and not keep_state:
            self.interpreter.reset()
        for name, place, turned, half, dtype, scale, zero in self.taken:
            array = feed[name]
            if turned:
                array = np.ascontiguousarray(array.transpose(NHWC))
            if half:
                array = array.astype(np.float32)
            if array.dtype != dtype and scale:
                limits = np.iinfo(dtype)
                array = np.clip(np.rint(array / scale) + zero, limits.min, limits.max).astype(dtype)
            self.set(np.asarray(array, order="C"), place)
        self.invoke()
        found = []
        for place, turned, half, dtype, scale, zero in self.given:
            array = self.get(place)
            if scale and dtype in (np.int8, np.uint8, np.int16):
                array = (array.astype(np.float32) - np.float32(zero)) * np.float32(scale)
            if half:
                array = array.astype(np.float16)
            found.append(np.ascontiguousarray(array.transpose(NCHW)) if turned else array)
        return found


def _places(content: bytes) -> tuple[dict[str, int], dict[str, int]]:
    """Name -> its number among the file's inputs, and outputs, by its signature if it has one:
    TFLite Micro knows the numbers alone."""
    model = schema.Model.GetRootAsModel(content, 0)
    if model.SignatureDefsLength() != 1 or model.SubgraphsLength() != 1:
        return {}, {}
    signature, graph = model.SignatureDefs(0), model.Subgraphs(0)
    inputs = {graph.Inputs(n): n for n in range(graph.InputsLength())}
    outputs = {graph.Outputs(n): n for n in range(graph.OutputsLength())}
    taken = [signature.Inputs(n) for n in range(signature.InputsLength())]
    given = [signature.Outputs(n) for n in range(signature.OutputsLength())]
    return (
        {port.Name().decode(): inputs[port.TensorIndex()] for port in taken},
        {port.Name().decode(): outputs[port.TensorIndex()] for port in given},
    )


def _in_order(names: list[str], known: dict[str, int]) -> list[int]:
    """By name, or in order where the file does not know all of them."""
    return [known[name] for name in names] if set(names) <= set(known) else list(range(len(names)))


def opened(content: bytes) -> Any:
    """The interpreter, its memory planned. Raises RuntimeError with what TFLite Micro says."""
    with said() as told:
        try:
            return runtime.Interpreter.from_bytes(content, arena_size=ARENA_BYTES)
        except RuntimeError as error:
            reason = " ".join(told().split())
            raise RuntimeError(f"TFLite Micro: {reason or error}") from None


@contextlib.contextmanager
def said() -> Iterator[Callable[[], str]]:
    """What is printed to standard error meanwhile, by C++ too: TFLite Micro gives no other word."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)

        def told() -> str:
            log.seek(0)
            return log.read().decode(errors="replace")

        try:
            yield told
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _quantization(details: dict[str, Any]) -> tuple[Any, Any, Any]:
    """dtype, scale (float32; 0 where there is none) and zero point of an input or output."""
    found = details["quantization_parameters"]
    dtype, scales = details["dtype"], found["scales"]
    if not len(scales):
        return dtype, np.float32(0), 0
    return dtype, np.float32(scales[0]), int(found["zero_points"][0])


def library() -> pathlib.Path:
    """There is none: TFLite Micro is compiled into a program."""
    raise Refused("TFLite Micro is no library to load; the folder `firmware` has sources")
