"""Models in other formats than ONNX, as OpenVINO reads them by itself: with the inputs and outputs
of the model, in its order, and static shapes."""

from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters.openvino_ir.quiet import openvino, operators
from onmetal.errors import UnsupportedError

Ends = dict[str, list[dict[str, Any]]]


def wanted(prepared: Path) -> Ends:
    """The `inputs` and `outputs` of the model: their names and shapes. `prepared`: a .tflite file,
    or the folder of a SavedModel beside which its graph in ONNX lies."""
    if prepared.suffix == ".tflite":
        from onmetal.converters.tflite.ends import ends

        return ends(str(prepared))
    import onnx  # not at the top: processes that only need the options do not load it

    graph = onnx.load(str(prepared.with_name("model.onnx")), load_external_data=False).graph
    return {
        end: [
            {
                "name": value.name,
                "shape": [axis.dim_value for axis in value.type.tensor_type.shape.dim],
            }
            for value in values
        ]
        for end, values in (("inputs", graph.input), ("outputs", graph.output))
    }


def static(model: Any, ends: Ends) -> Any:
    """The model with the inputs and outputs that are wanted, in their order.

    Raises UnsupportedError where they cannot be told apart.
    """
    parameters = _ordered(model.inputs, ends["inputs"])
    results = _ordered(model.outputs, ends["outputs"])
    model.reshape({port: tensor["shape"] for port, tensor in parameters})
    for port, tensor in (*parameters, *results):
        port.get_tensor().add_names({tensor["name"]})
    return openvino.Model(
        [_real(port, tensor) for port, tensor in results],
        [port.get_node() for port, _ in parameters],
        "model",
    )


def _real(port: Any, tensor: dict[str, Any]) -> Any:
    """The output; a quantized one as the real numbers that it stands for, as from LiteRT."""
    if not tensor.get("scale") or port.element_type.size > 2:
        return port.get_node()
    stored = operators.convert(port.get_node().input_value(0), np.float32)
    shifted = operators.subtract(stored, np.float32(tensor["zero_point"]))
    real = operators.multiply(shifted, np.float32(tensor["scale"]))
    port.get_tensor().set_names(set())
    real.output(0).get_tensor().set_names({tensor["name"]})
    return operators.result(real)


def _ordered(ports: list[Any], tensors: list[dict[str, Any]]) -> list[tuple[Any, dict[str, Any]]]:
    """Each tensor's port: by its name; where none has a name that is wanted, by its place."""
    if len(ports) != len(tensors):
        raise UnsupportedError(
            f"OpenVINO reads {len(ports)} inputs or outputs where the model has {len(tensors)}"
        )
    by_name = [
        next((port for port in ports if tensor["name"] in port.names), None) for tensor in tensors
    ]
    if all(port is not None for port in by_name):
        return list(zip(by_name, tensors, strict=True))
    if any(port is not None for port in by_name):
        names = sorted(name for port in ports for name in port.names)
        raise UnsupportedError(
            "OpenVINO names the inputs or outputs in another way than the model: "
            + ", ".join(names)
        )
    return list(zip(ports, tensors, strict=True))
