"""The tensors of an OpenVINO model, and their values for given inputs."""

from collections.abc import Callable

import numpy as np

from onmetal.converters.openvino_ir.quiet import openvino
from onmetal.errors import UsageError, reason

Run = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def known(path: str) -> set[str]:
    """The names of all its tensors. Raises UsageError where OpenVINO cannot read it."""
    try:
        model = openvino.Core().read_model(path)
    except RuntimeError as error:
        raise UsageError(f"{path}: OpenVINO cannot read it: {reason(error)}") from None
    return {
        name for node in model.get_ordered_ops() for port in node.outputs() for name in port.names
    }


def opened(path: str, names: list[str]) -> Run:
    """A function that runs the model. -> the values of the named tensors."""
    core = openvino.Core()
    model = core.read_model(path)
    output_names = {name for port in model.outputs for name in port.names}
    model.add_outputs([name for name in names if name not in output_names])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()

    def run(feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        request.infer(feed)
        return [request.get_tensor(name).data.copy() for name in names]

    return run
