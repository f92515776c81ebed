"""Inputs and outputs of a .tflite file itself, as plain values that a worker can hand on."""

from pathlib import Path
from typing import Any

from onmetal.converters.tflite.net import Tensor, signature_names
from onmetal.converters.tflite.parsing import read


def ends(path: str) -> dict[str, list[dict[str, Any]]]:
    """`inputs` and `outputs` in the file's own order, under the names of its signature: each
    tensor's dtype, shape and quantization (scale 0 where it has none)."""
    net = read(Path(path))
    inputs, outputs = signature_names(net)
    return {"inputs": _described(inputs, net.inputs), "outputs": _described(outputs, net.outputs)}


def _described(names: list[str], tensors: list[Tensor]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "dtype": tensor.dtype.name,
            "shape": list(tensor.shape),
            "scale": float(tensor.scale[0]) if tensor.scale is not None else 0.0,
            "zero_point": int(tensor.zero_point[0]) if tensor.zero_point is not None else 0,
        }
        for name, tensor in zip(names, tensors, strict=True)
    ]
