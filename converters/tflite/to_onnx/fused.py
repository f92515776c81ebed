"""Activations that are fused into another operator, with the bounds of the output's integers."""

import math

import numpy as np

from onmetal.converters.tflite.net import Op, Tensor
from onmetal.converters.tflite.to_onnx.graph import Graph, Order, is_quantized
from onmetal.errors import UnsupportedError

NONE, RELU, RELU_N1_TO_1, RELU6, TANH = 0, 1, 2, 3, 4
BOUNDS = {
    NONE: (-math.inf, math.inf),
    RELU: (0.0, math.inf),
    RELU_N1_TO_1: (-1.0, 1.0),
    RELU6: (0.0, 6.0),
}
"""Code of the schema's ActivationFunctionType -> the least and the greatest value."""


def finish(graph: Graph, op: Op, name: str, order: Order | None = None) -> None:
    """Set a value, after the fused activation, as the one that computes an operator's output."""
    graph.give(op.outputs[0], activated(graph, op.outputs[0], name, op.activation), order)


def activated(graph: Graph, tensor: Tensor, name: str, activation: int) -> str:
    """The value after the activation. A bound that the output's integers have already is not
    written, as QuantizeLinear saturates there."""
    if activation == NONE:
        return name
    if activation == TANH:
        return graph.emit("Tanh", [name])
    if activation not in BOUNDS:
        raise UnsupportedError(
            f"tensor {tensor.name!r}: the fused activation SIGN_BIT is not supported"
        )
    low, high = BOUNDS[activation]
    if is_quantized(tensor):
        low, high = _beyond_grid(tensor, low, high)
    return clipped(graph, tensor, name, low, high)


def _beyond_grid(tensor: Tensor, low: float, high: float) -> tuple[float, float]:
    """The bounds that cut off some of the tensor's integers; infinite ones for the others."""
    assert tensor.scale is not None and tensor.zero_point is not None
    scale, zero = float(tensor.scale[0]), int(tensor.zero_point[0])
    limits = np.iinfo(tensor.dtype)
    if math.isfinite(low) and zero + round(low / scale) <= limits.min:
        low = -math.inf
    if math.isfinite(high) and zero + round(high / scale) >= limits.max:
        high = math.inf
    return low, high


def clipped(graph: Graph, tensor: Tensor, name: str, low: float, high: float) -> str:
    """`tensor`: whose type the value has."""
    if low == 0.0 and high == math.inf:
        return graph.emit("Relu", [name])
    if low == -math.inf and high == math.inf:
        return name
    bounds = [graph.like(tensor, bound) if math.isfinite(bound) else "" for bound in (low, high)]
    return graph.emit("Clip", [name, *bounds])
