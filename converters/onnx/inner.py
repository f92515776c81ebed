"""The inner tensors of an ONNX model: their names, and their values for given inputs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onmetal.converters.onnx import reference
from onmetal.errors import UnsupportedError, reason

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def known(path: str) -> set[str]:
    """The names of all outputs of the model's nodes."""
    return {name for node in onnx.load(path).graph.node for name in node.output}


def opened(path: str, names: list[str]) -> Run:
    """A function that runs the model on inputs and returns the named tensors. Raises
    UnsupportedError where the model cannot be opened."""
    model = onnx.load(path)
    output_names = {value.name for value in model.graph.output}
    for name in names:
        if name not in output_names:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    try:
        session: Any = reference.opened(model.SerializeToString(), "ORT_ENABLE_ALL")
    except Exception as error:
        raise UnsupportedError(f"{Path(path).name}: {reason(error)}") from None
    return lambda feed: session.run(names, feed)
