"""Activations, in the order in which their input is stored."""

import math

import numpy as np

from onmetal.converters.tflite.net import Op
from onmetal.converters.tflite.to_onnx.elementwise import through
from onmetal.converters.tflite.to_onnx.fused import BOUNDS, RELU, RELU6, RELU_N1_TO_1, clipped
from onmetal.converters.tflite.to_onnx.graph import Graph, plain
from onmetal.converters.tflite.to_onnx.rules import taken, writes

_UNARY = {"LOGISTIC": "Sigmoid", "TANH": "Tanh", "HARD_SWISH": "HardSwish", "ELU": "Elu"}
_CLIPS = {
    "RELU": BOUNDS[RELU],
    "RELU6": BOUNDS[RELU6],
    "RELU_N1_TO_1": BOUNDS[RELU_N1_TO_1],
    "RELU_0_TO_1": (0.0, 1.0),
}


@writes(*_UNARY, to="Sigmoid, Tanh, HardSwish, Elu")
def unary(graph: Graph, op: Op) -> None:
    through(graph, op, _UNARY[op.kind])


@writes(*_CLIPS, to="Relu, Clip")
def relu(graph: Graph, op: Op) -> None:
    tensor = taken(op, 0)
    order = graph.order(tensor)
    low, high = _CLIPS[op.kind]
    result = clipped(graph, tensor, graph.real(tensor, order), low, high)
    graph.give(op.outputs[0], result, order)


@writes("LEAKY_RELU", to="LeakyRelu")
def leaky_relu(graph: Graph, op: Op) -> None:
    tensor = taken(op, 0)
    order = graph.order(tensor)
    slope = float(op.options.get("alpha", 0.0))
    result = graph.emit("LeakyRelu", [graph.real(tensor, order)], alpha=slope)
    graph.give(op.outputs[0], result, order)


@writes("PRELU", to="PRelu")
def prelu(graph: Graph, op: Op) -> None:
    tensor, slopes = taken(op, 0), taken(op, 1)
    order = graph.order(tensor)
    inputs = [graph.real(tensor, order), graph.real(slopes, order)]
    graph.give(op.outputs[0], graph.emit("PRelu", inputs), order)


@writes("GELU", to="Erf or Tanh, Mul, Add")
def gelu(graph: Graph, op: Op) -> None:
    """x/2 * (1 + erf(x / sqrt(2))), or with tanh(sqrt(2 / pi) * (x + 0.044715 x^3)) in place of
    erf, as in tensorflow/lite/kernels/internal/reference/gelu.h; opset 17 has no Gelu."""
    tensor = taken(op, 0)
    order = graph.order(tensor)
    name = graph.real(tensor, order)

    def times(left: str, factor: float) -> str:
        return graph.emit("Mul", [left, graph.constant(factor, np.float32)])

    if op.options.get("approximate"):
        cube = graph.emit("Mul", [graph.emit("Mul", [name, name]), name])
        inner = graph.emit("Add", [name, times(cube, 0.044715)])
        curve = graph.emit("Tanh", [times(inner, math.sqrt(2 / math.pi))])
    else:
        root = graph.constant(math.sqrt(2), np.float32)
        curve = graph.emit("Erf", [graph.emit("Div", [name, root])])
    plus = graph.emit("Add", [curve, graph.constant(1.0, np.float32)])
    result = times(graph.emit("Mul", [name, plus]), 0.5)
    graph.give(op.outputs[0], result, order)


@writes("SOFTMAX", "LOG_SOFTMAX", to="Softmax, LogSoftmax, Mul")
def softmax(graph: Graph, op: Op) -> None:
    """Along the last axis of the file's order."""
    tensor = taken(op, 0)
    order = graph.order(tensor)
    name = graph.real(tensor, order)
    beta = float(op.options.get("beta", 1.0)) if op.kind == "SOFTMAX" else 1.0
    if beta != 1.0:
        name = graph.emit("Mul", [name, graph.constant(beta, np.float32)])
    axis = order.index(plain(tensor)[-1])
    kind = "Softmax" if op.kind == "SOFTMAX" else "LogSoftmax"
    graph.give(op.outputs[0], graph.emit(kind, [name], axis=axis), order)
