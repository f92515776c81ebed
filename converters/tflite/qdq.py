"""QuantizeLinear and DequantizeLinear: a model that is quantized already keeps its own scales.

Where a float tensor is quantized and immediately dequantized, its values are on a grid. The pair is
removed from the graph, the grid is recorded as the tensor's range, and the quantizer later uses
that range. Pairs whose grid TFLite does not have (a scale for each channel, other types) stay.
"""

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.lowering import Lowering, lowers
from onmetal.converters.tflite.net import Net, Tensor
from onmetal.converters.tflite.nodes import refuse
from onmetal.converters.tflite.operands import selects
from onmetal.converters.tflite.specification import SHARED
from onmetal.ranges import Range

BYTE = 128
"""The difference between uint8 and int8 zero points; TFLite's activations are int8."""


def _grid(low: Lowering, node: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of an int8 tensor."""
    scale, zero = low.constant(low.input(node, 1)), low.constant(low.given(node, 2))
    if scale is None or scale.size != 1:
        raise refuse(node, "scales that are computed, or one for each channel, are not supported")
    if zero is None:
        zero = np.zeros(1, np.uint8)
    if zero.dtype not in (np.uint8, np.int8):
        raise refuse(node, f"integers of {zero.dtype} are not supported: uint8 and int8 are")
    moved = zero.astype(np.int64).reshape(1) - (BYTE if zero.dtype == np.uint8 else 0)
    return scale.astype(np.float32).reshape(1), moved


@lowers("QuantizeLinear", to="QUANTIZE, or nothing", limits="one constant scale; 8 bits")
def quantize_linear(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    out = Tensor(low.name(f"{node.outputs[0].name}/int8"), tensor.shape, np.dtype(np.int8))
    out.scale, out.zero_point = _grid(low, node)
    low.emit_quantized("QUANTIZE", tensor, out)
    low.give(node.outputs[0], out, order)


@lowers("DequantizeLinear", to="DEQUANTIZE, or nothing", limits="one constant scale; 8 bits")
def dequantize_linear(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    if tensor.dtype != np.int8 or tensor.scale is None:
        raise refuse(node, "what it takes is not of a QuantizeLinear")
    out = Tensor(low.name(f"{node.outputs[0].name}/real"), tensor.shape, np.dtype(np.float32))
    low.emit_quantized("DEQUANTIZE", tensor, out)
    low.give(node.outputs[0], out, order)


def absorb(net: Net) -> dict[str, Range]:
    """Remove the pairs. -> the range of each tensor whose values are on a grid."""
    ranges: dict[str, Range] = {}
    for op in list(net.ops):
        if op.kind != "QUANTIZE" or op.outputs[0] in net.outputs:
            continue
        integers, real = op.outputs[0], op.taken[0]
        takers = net.consumers().get(integers, [])
        if not takers or any(taker.kind != "DEQUANTIZE" for taker in takers):
            continue
        grid_range = _range(integers)
        if ranges.setdefault(real.name, grid_range) != grid_range:
            continue
        for taker in takers:
            net.replace(taker.outputs[0], real)
            net.ops.remove(taker)
        net.ops.remove(op)
    return ranges


def spread(net: Net, ranges: dict[str, Range]) -> None:
    """Add the ranges of outputs of operators that only move values which are on a grid."""
    for op in net.ops:
        if op.kind not in SHARED and not selects(op):
            continue
        source = next((t for t in op.taken if t.is_float and t.data is None), None)
        if source is not None and source.name in ranges:
            for out in op.outputs:
                ranges.setdefault(out.name, ranges[source.name])


def _range(tensor: Tensor) -> Range:
    assert tensor.scale is not None and tensor.zero_point is not None
    scale, zero = float(tensor.scale[0]), int(tensor.zero_point[0])
    return (-128 - zero) * scale, (127 - zero) * scale
