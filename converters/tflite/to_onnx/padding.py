"""Padding. Quantized tensors are padded as integers: OpenVINO cannot compile a Pad of real numbers
behind a Reshape between a QuantizeLinear and a DequantizeLinear."""

import numpy as np

from onmetal.converters.tflite.net import Op, Tensor
from onmetal.converters.tflite.to_onnx.graph import Graph, Order, is_quantized
from onmetal.converters.tflite.to_onnx.rules import given, integers, refuse, taken, writes


def pads_of(graph: Graph, op: Op, order: Order) -> tuple[np.ndarray, str]:
    """-> the pads, int64 [axes, 2] in the file's order; and ONNX's, all begins before all ends, in
    the order of the stored axes."""
    pads = integers(graph, op, 1, "list of pads").reshape(-1, 2)
    if len(pads) != len(order) or pads.min(initial=0) < 0:
        raise refuse(op, f"pads {pads.tolist()} do not fit {len(order)} axes")
    return pads, graph.ints([pads[axis, side] for side in (0, 1) for axis in order])


def in_bytes(tensor: Tensor) -> bool:
    """Whether a tensor is padded as integers. ONNX Runtime has no Pad of int16."""
    return is_quantized(tensor) and tensor.dtype != np.int16


def _fill(graph: Graph, op: Op, tensor: Tensor) -> str:
    """The number around the tensor, as it is stored."""
    number = given(op, 2) if op.kind == "PADV2" else None
    if not in_bytes(tensor):
        if number is None:
            return graph.like(tensor, 0)
        return graph.emit("Reshape", [graph.real(number), graph.ints([])])
    zero = graph.grid(tensor)[1]
    if number is None:
        return zero
    real = graph.emit("Reshape", [graph.real(number), graph.ints([])])
    return graph.quantized(real, tensor, f"{op.outputs[0].name}/fill")


@writes("PAD", "PADV2", to="Pad", limits="constant pads")
def pad(graph: Graph, op: Op) -> None:
    tensor, out = taken(op, 0), op.outputs[0]
    order = graph.order(tensor)
    every = pads_of(graph, op, order)[1]
    fill = _fill(graph, op, tensor)
    if not in_bytes(tensor):
        result = graph.emit("Pad", [graph.real(tensor, order), every, fill])
        return graph.give(out, result, order)
    graph.keep(out, graph.emit("Pad", [graph.integers(tensor, order), every, fill]), order)


@writes("MIRROR_PAD", to="Pad, Gather", limits="constant pads")
def mirror_pad(graph: Graph, op: Op) -> None:
    """REFLECT as ONNX has it; SYMMETRIC, which repeats the edge, by the indices of each axis."""
    tensor, out = taken(op, 0), op.outputs[0]
    order = graph.order(tensor)
    pads, every = pads_of(graph, op, order)
    quantized = in_bytes(tensor)
    name = graph.integers(tensor, order) if quantized else graph.real(tensor, order)
    if int(op.options.get("mode", 0)) == 0:
        name = graph.emit("Pad", [name, every], mode="reflect")
    else:
        for place, axis in enumerate(order):
            if pads[axis].any():
                indices = np.pad(np.arange(tensor.shape[axis]), pads[axis], mode="symmetric")
                name = graph.emit("Gather", [name, graph.ints(indices)], axis=place)
    if quantized:
        return graph.keep(out, name, order)
    graph.give(out, name, order)
