"""Pools over windows: channels first; SAME does not count its padding."""

from typing import Any

from onmetal.converters.tflite.net import SAME, Op
from onmetal.converters.tflite.to_onnx.convolution import images, same_pads, strides_of
from onmetal.converters.tflite.to_onnx.fused import finish
from onmetal.converters.tflite.to_onnx.graph import NCHW, Graph
from onmetal.converters.tflite.to_onnx.rules import taken, writes


def window(op: Op) -> dict[str, Any]:
    """The attributes of a pool."""
    kernel = [int(op.options["filterHeight"]), int(op.options["filterWidth"])]
    strides, pads = strides_of(op), [0] * 4
    if op.options["padding"] == SAME:
        pads = same_pads(taken(op, 0).shape[1:3], kernel, strides, [1, 1])
    return {"kernel_shape": kernel, "strides": strides, "pads": pads}


@writes("AVERAGE_POOL_2D", "MAX_POOL_2D", to="AveragePool, GlobalAveragePool, MaxPool")
def pool(graph: Graph, op: Op) -> None:
    source = taken(op, 0)
    images(op, source)
    settings = window(op)
    name = graph.real(source, NCHW)
    whole = settings["kernel_shape"] == list(source.shape[1:3]) and not any(settings["pads"])
    if op.kind == "MAX_POOL_2D":
        result = graph.emit("MaxPool", [name], **settings)
    elif whole and op.outputs[0].shape[1:3] == (1, 1):
        result = graph.emit("GlobalAveragePool", [name])
    else:
        result = graph.emit("AveragePool", [name], count_include_pad=0, **settings)
    finish(graph, op, result, NCHW)


@writes("L2_POOL_2D", to="Mul, AveragePool, Sqrt")
def l2_pool(graph: Graph, op: Op) -> None:
    """The root of the mean of the squares."""
    source = taken(op, 0)
    images(op, source)
    name = graph.real(source, NCHW)
    mean = graph.emit("AveragePool", [graph.emit("Mul", [name, name])], **window(op))
    finish(graph, op, graph.emit("Sqrt", [mean]), NCHW)
