"""TensorFlow, without its messages and on the CPU: a function with static shapes, computed and
exported to ONNX by tf2onnx. Imported in worker processes alone."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from onmetal.converters.imported import Declared
from onmetal.errors import UnsupportedError

OPSET = 17
VERSION = tf.__version__
BY = f"TensorFlow {VERSION} and tf2onnx {tf2onnx.__version__}"


class Function:
    """A function from tensors, in the order of `inputs`, to tensors by name."""

    def __init__(
        self,
        call: Callable[..., dict[str, Any]],
        inputs: Sequence[Declared],
        outputs: Sequence[str],
    ) -> None:
        """`inputs`: with static shapes; `outputs`: names in the order in which `run` gives them."""
        self.inputs, self.outputs = inputs, list(outputs)
        self.signature = [
            tf.TensorSpec(entry.shape, entry.dtype, name=entry.name) for entry in inputs
        ]
        self.function = tf.function(call, input_signature=self.signature)

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        arrays = self.function(*(tf.constant(feed[entry.name]) for entry in self.inputs))
        return [np.asarray(arrays[name]) for name in self.outputs]

    def export(self) -> onnx.ModelProto:
        """As ONNX, which orders its outputs anew. Raises UnsupportedError where tf2onnx has no way
        for it."""
        try:
            proto, _ = tf2onnx.convert.from_function(
                self.function, input_signature=self.signature, opset=OPSET
            )
        except Exception as error:
            raise UnsupportedError(
                f"tf2onnx {tf2onnx.__version__} cannot convert it to ONNX: {first_line(error)}"
            ) from None
        assert isinstance(proto, onnx.ModelProto)
        self.outputs = [value.name for value in proto.graph.output]
        return proto

    def to_tflite(self) -> tuple[bytes, dict[str, str]]:
        """-> a float .tflite file, whose signature has the inputs' names; and the name there of
        each output -> its own. Raises UnsupportedError where TFLite's operators do not suffice."""
        try:
            # Else functions that TensorFlow specialized are left, which its converter refuses.
            frozen = convert_variables_to_constants_v2(
                self.function.get_concrete_function(), aggressive_inlining=True
            )
            converter = tf.lite.TFLiteConverter.from_concrete_functions([frozen], tf.Module())
            content = converter.convert()
        except Exception as error:
            raise UnsupportedError(
                f"TensorFlow {VERSION} cannot convert it to TFLite: {first_line(error)}"
            ) from None
        assert isinstance(content, bytes)
        # What a function gives by names is sorted by these.
        return content, {f"output_{i}": name for i, name in enumerate(sorted(self.outputs))}


def first_line(error: Exception) -> str:
    """The kind of an error of a framework, and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'it gives no reason'}"
