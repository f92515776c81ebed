"""Keras and TensorFlow: imported here alone, without their messages, on the CPU."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ["CUDA_VISIBLE_DEVICES"] = ""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from onmetal.converters.imported import Declared
from onmetal.errors import UnsupportedError

OPSET = 17
BY = f"Keras {keras.__version__}, TensorFlow {tf.__version__} and tf2onnx {tf2onnx.__version__}"


def load(path: Path, trust: bool = False) -> Any:
    """The model, not compiled. Raises UnsupportedError where Keras cannot load it."""
    try:
        return keras.models.load_model(str(path), compile=False, safe_mode=not trust)
    except Exception as error:
        raise UnsupportedError(
            f"Keras {keras.__version__} cannot load it: {_first_line(error)}"
        ) from None


def declared(model: Any) -> list[Declared]:
    """Raises UnsupportedError where the model has no inputs of known shapes."""
    if not getattr(model, "inputs", None):
        raise UnsupportedError(
            "the model was built by calling it and declares no inputs; call "
            "model.export('model_folder'), which writes a SavedModel, and deploy that"
        )
    return [
        Declared(str(tensor.name), str(np.dtype(tensor.dtype)), tuple(tensor.shape))
        for tensor in model.inputs
    ]


class Function:
    """A Keras model as a function of its inputs by name, with their static shapes."""

    def __init__(self, model: Any, inputs: Sequence[Declared], outputs: Sequence[str]) -> None:
        self.outputs = list(outputs)
        self.names = [entry.name for entry in inputs]
        self.signature = [
            tf.TensorSpec(entry.shape, entry.dtype, name=entry.name) for entry in inputs
        ]
        names = output_names(model)

        def call(*arrays: Any) -> dict[str, Any]:
            given = list(arrays) if len(arrays) > 1 else arrays[0]
            tensors = tf.nest.flatten(model(given, training=False))
            return dict(zip(names, tensors, strict=True))

        self.function = tf.function(call, input_signature=self.signature)

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        arrays = self.function(*(tf.constant(feed[name]) for name in self.names))
        return [np.asarray(arrays[name]) for name in self.outputs]

    def export(self) -> onnx.ModelProto:
        """Raises UnsupportedError where tf2onnx has no way for it."""
        try:
            proto, _ = tf2onnx.convert.from_function(
                self.function, input_signature=self.signature, opset=OPSET
            )
        except Exception as error:
            raise UnsupportedError(
                f"tf2onnx {tf2onnx.__version__} cannot convert it to ONNX: {_first_line(error)}"
            ) from None
        assert isinstance(proto, onnx.ModelProto)
        return proto


def output_names(model: Any) -> list[str]:
    """The names of the outputs, in Keras's order of them; equal ones are numbered."""
    names: list[str] = []
    for number, tensor in enumerate(model.outputs):
        known = getattr(model, "output_names", None) or []
        name = known[number] if number < len(known) else str(tensor.name)
        names.append(name if name not in names else f"{name}_{number}")
    return names


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'it gives no reason'}"
