"""Reductions over axes, along the axes as they are stored."""

from typing import Any

import numpy as np

from onmetal.converters.tflite.net import Op
from onmetal.converters.tflite.to_onnx.elementwise import cast_to
from onmetal.converters.tflite.to_onnx.graph import NCHW, Graph, Order, is_quantized
from onmetal.converters.tflite.to_onnx.rules import axis_of, integers, refuse, taken, writes

AXES_ARE_INPUTS = 18
"""The opset from which on all reductions take their axes as an input."""


def reduced(graph: Graph, kind: str, name: str, axes: list[int], keep: bool) -> str:
    """`axes`: of the stored value."""
    if kind == "ReduceSum" or graph.opset >= AXES_ARE_INPUTS:
        return graph.emit(kind, [name, graph.ints(axes)], keepdims=int(keep))
    return graph.emit(kind, [name], axes=axes, keepdims=int(keep))


def without(order: Order, axes: list[int]) -> Order:
    """The order of the axes that are left, numbered anew."""
    left = sorted(axis for axis in order if axis not in axes)
    return tuple(left.index(axis) for axis in order if axis not in axes)


_REDUCTIONS = {
    "MEAN": "ReduceMean",
    "SUM": "ReduceSum",
    "REDUCE_MAX": "ReduceMax",
    "REDUCE_MIN": "ReduceMin",
    "REDUCE_PROD": "ReduceProd",
    "REDUCE_ANY": "ReduceMax",
    "REDUCE_ALL": "ReduceMin",
}


@writes(*_REDUCTIONS, to="ReduceMean, ReduceSum, …, GlobalAveragePool", limits="constant axes")
def reduction(graph: Graph, op: Op) -> None:
    tensor, out = taken(op, 0), op.outputs[0]
    listed = integers(graph, op, 1, "axes").reshape(-1)
    axes = sorted({axis_of(op, int(axis), len(tensor.shape)) for axis in listed})
    keep, order = bool(op.options.get("keepDims")), graph.order(tensor)
    name = graph.real(tensor, order)
    if not axes:
        return graph.give(out, name, order)
    if op.kind == "MEAN" and axes == [1, 2] and len(order) == 4 and tensor.dtype.kind != "b":
        floats = is_quantized(tensor) or tensor.dtype == np.float32
        if floats and order == NCHW:
            return _global_average(graph, op, keep)
    places = [place for place, axis in enumerate(order) if axis in axes]
    result = _reduced_as(graph, op, name, places, keep)
    graph.give(out, result, order if keep else without(order, axes))


def _global_average(graph: Graph, op: Op, keep: bool) -> None:
    tensor, out = taken(op, 0), op.outputs[0]
    result = graph.emit("GlobalAveragePool", [graph.real(tensor, NCHW)])
    if keep:
        return graph.give(out, result, NCHW)
    if is_quantized(out):
        result = graph.again(result, out)
    graph.give(out, graph.emit("Reshape", [result, graph.ints(out.shape)]))


def _reduced_as(graph: Graph, op: Op, name: str, places: list[int], keep: bool) -> str:
    """In the type in which ONNX Runtime computes the reduction."""
    tensor = taken(op, 0)
    kind = _REDUCTIONS[op.kind]
    if op.kind in ("REDUCE_ANY", "REDUCE_ALL"):
        whole = cast_to(graph, name, np.dtype(np.int32))
        return cast_to(graph, reduced(graph, kind, whole, places, keep), np.dtype(np.bool_))
    if is_quantized(tensor) or tensor.dtype.kind == "f":
        return reduced(graph, kind, name, places, keep)
    if op.kind == "MEAN":  # of integers: the quotient without its fraction
        count = tensor.size // max(1, op.outputs[0].size)
        total = reduced(graph, "ReduceSum", name, places, keep)
        return graph.emit("Div", [total, graph.constant(count, tensor.dtype)])
    return reduced(graph, kind, name, places, keep)


@writes("ARG_MAX", "ARG_MIN", to="ArgMax, ArgMin, Cast", limits="a constant axis")
def arg(graph: Graph, op: Op) -> None:
    """The first of equal ones."""
    tensor, out = taken(op, 0), op.outputs[0]
    listed = integers(graph, op, 1, "axis").reshape(-1)
    axis = axis_of(op, int(listed[0]), len(tensor.shape))
    order = graph.order(tensor)
    kind = "ArgMax" if op.kind == "ARG_MAX" else "ArgMin"
    result = graph.emit(
        kind, [graph.real(tensor, order)], axis=order.index(axis), keepdims=0, select_last_index=0
    )
    if out.dtype != np.int64:
        result = cast_to(graph, result, out.dtype)
    graph.give(out, result, without(order, [axis]))


@writes("TOPK_V2", to="TopK, Cast", limits="a constant k")
def topk(graph: Graph, op: Op) -> None:
    tensor, (values, places) = taken(op, 0), op.outputs
    count = int(integers(graph, op, 1, "k").reshape(-1)[0])
    order = graph.order(tensor)
    axis = order.index(len(tensor.shape) - 1)
    more: dict[str, Any] = {"axis": axis, "largest": 1, "sorted": 1}
    inputs = [graph.real(tensor, order), graph.ints([count])]
    greatest, indices = graph.emit_all("TopK", inputs, 2, **more)
    graph.give(values, greatest, order)
    graph.give(places, cast_to(graph, indices, places.dtype), order)


@writes("CUMSUM", to="CumSum", limits="a constant axis")
def cumsum(graph: Graph, op: Op) -> None:
    tensor = taken(op, 0)
    listed = integers(graph, op, 1, "axis").reshape(-1)
    axis = axis_of(op, int(listed[0]), len(tensor.shape))
    order = graph.order(tensor)
    result = graph.emit(
        "CumSum",
        [graph.real(tensor, order), graph.ints(order.index(axis))],
        exclusive=int(bool(op.options.get("exclusive"))),
        reverse=int(bool(op.options.get("reverse"))),
    )
    graph.give(op.outputs[0], result, order)


@writes("L2_NORMALIZATION", to="ReduceL2, Max, Div")
def l2_normalization(graph: Graph, op: Op) -> None:
    """x / sqrt(max(sum(x^2), 1e-6)) along the last axis
    (tensorflow/lite/kernels/internal/reference/l2normalization.h)."""
    tensor = taken(op, 0)
    if op.activation:
        raise refuse(op, "a fused activation is not supported")
    order = graph.order(tensor)
    name = graph.real(tensor, order)
    length = reduced(graph, "ReduceL2", name, [order.index(len(tensor.shape) - 1)], True)
    if not is_quantized(tensor):
        length = graph.emit("Max", [length, graph.constant(1e-3, np.float32)])
    graph.give(op.outputs[0], graph.emit("Div", [name, length]), order)


@writes("LOCAL_RESPONSE_NORMALIZATION", to="LRN")
def local_response(graph: Graph, op: Op) -> None:
    """x / (bias + alpha * sum of x^2 over 2 radius + 1 channels)^beta; ONNX's alpha is of their
    mean."""
    size = 2 * int(op.options["radius"]) + 1
    result = graph.emit(
        "LRN",
        [graph.real(taken(op, 0), NCHW)],
        size=size,
        alpha=float(op.options["alpha"]) * size,
        beta=float(op.options["beta"]),
        bias=float(op.options["bias"]),
    )
    graph.give(op.outputs[0], result, NCHW)
