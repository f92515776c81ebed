"""QUANTIZE and DEQUANTIZE; constants that are stored smaller."""

import numpy as np

from onmetal.converters.tflite.net import Op
from onmetal.converters.tflite.to_onnx.elementwise import cast_to
from onmetal.converters.tflite.to_onnx.graph import Graph, is_quantized
from onmetal.converters.tflite.to_onnx.rules import refuse, taken, writes


@writes("QUANTIZE", to="QuantizeLinear, DequantizeLinear")
def quantize(graph: Graph, op: Op) -> None:
    """From real numbers, or from other integers."""
    tensor, out = taken(op, 0), op.outputs[0]
    if not is_quantized(out):
        raise refuse(op, f"integers of {out.dtype} are not supported")
    order = graph.order(tensor)
    graph.give(out, graph.real(tensor, order), order)


@writes("DEQUANTIZE", to="DequantizeLinear, or nothing for constants")
def dequantize(graph: Graph, op: Op) -> None:
    """A constant stays as it is stored; what reads it takes care of it."""
    tensor, out = taken(op, 0), op.outputs[0]
    if tensor.data is not None and (is_quantized(tensor) or tensor.dtype.kind == "f"):
        graph.aliases[out] = tensor
        return
    if not is_quantized(tensor) and tensor.dtype.kind != "f":
        raise refuse(op, f"integers of {tensor.dtype} without a scale are not supported")
    order = graph.order(tensor)
    name = graph.real(tensor, order)
    if tensor.dtype.kind == "f" and tensor.dtype != out.dtype:
        name = cast_to(graph, name, out.dtype)
    graph.give(out, name, order)


@writes("FAKE_QUANT", to="QuantizeLinear, DequantizeLinear", limits="8 bits")
def fake_quant(graph: Graph, op: Op) -> None:
    """Real numbers on the grid of 8 bits between two bounds, moved so that 0 is on it
    (tensorflow/lite/kernels/fake_quant.cc)."""
    tensor = taken(op, 0)
    low, high = float(op.options["min"]), float(op.options["max"])
    if int(op.options.get("numBits", 8)) != 8 or not low <= 0 <= high or low == high:
        raise refuse(op, f"numBits {op.options.get('numBits')} from {low} to {high} is refused")
    least = 1 if op.options.get("narrowRange") else 0
    scale = (high - low) / (255 - least)
    zero = min(255, max(least, round(least - low / scale)))
    order = graph.order(tensor)
    name = graph.real(tensor, order)
    if least:
        bounds = [graph.constant((end - zero) * scale, np.float32) for end in (least, 255)]
        name = graph.emit("Clip", [name, *bounds])
    grid = [graph.constant(scale, np.float32), graph.constant(zero, np.uint8)]
    integers = graph.emit("QuantizeLinear", [name, *grid])
    graph.give(op.outputs[0], graph.emit("DequantizeLinear", [integers, *grid]), order)
