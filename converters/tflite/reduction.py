"""Reductions along axes, ArgMax, TopK, CumSum."""

from typing import Any

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.lowering import Lowering, Order, lowers
from onmetal.converters.tflite.net import Tensor
from onmetal.converters.tflite.nodes import attribute, refuse

_KINDS = {
    "ReduceMean": "MEAN",
    "ReduceSum": "SUM",
    "ReduceMax": "REDUCE_MAX",
    "ReduceMin": "REDUCE_MIN",
    "ReduceProd": "REDUCE_PROD",
    "ReduceL1": "SUM",
    "ReduceL2": "SUM",
    "ReduceSumSquare": "SUM",
    "ReduceLogSum": "SUM",
    "ReduceLogSumExp": "SUM",
}

PLAIN = frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd"})
"""Reductions that do not change a single number."""


def without(order: Order, axes: set[int]) -> Order:
    """The order of the remaining axes, renumbered, after `axes` are dropped."""
    remaining = [axis for axis in order if axis not in axes]
    return tuple(sorted(remaining).index(axis) for axis in remaining)


def reduce(
    low: Lowering, kind: str, tensor: Tensor, places: list[int], keep: bool = True
) -> Tensor:
    shape = [
        1 if place in places else size
        for place, size in enumerate(tensor.shape)
        if keep or place not in places
    ]
    axes = low.ints(sorted(places), "axes")
    return low.emit(kind, [tensor, axes], shape, keepDims=keep)


@lowers(*_KINDS, to="MEAN, SUM, REDUCE_MAX, REDUCE_MIN, REDUCE_PROD, ABS, MUL, SQRT, LOG, EXP")
def reduction(low: Lowering, node: ir.Node) -> None:
    value, kind = low.input(node), node.op_type
    tensor, order = low.value(value)
    listed = low.setting(node, "axes", 1)
    if listed is None or listed.size == 0:
        listed = None
        if attribute(node, "noop_with_empty_axes", 0):
            if kind not in PLAIN:
                raise refuse(node, "noop_with_empty_axes without axes is not supported")
            low.values[node.outputs[0]] = low.value(value)
            return
    axes = set(low.axes(node, listed, len(order)))
    if len(order) == 4 and axes == {2, 3}:  # accelerators support height and width
        order = (0, 2, 3, 1)
        tensor = low.arranged(value, order)
    places = [place for place, axis in enumerate(order) if axis in axes]
    keep = bool(attribute(node, "keepdims", 1))
    top = None
    if kind == "ReduceL1":
        tensor = low.unary("ABS", tensor)
    elif kind in ("ReduceL2", "ReduceSumSquare"):
        tensor = low.binary("MUL", tensor, tensor)
    elif (
        kind == "ReduceLogSumExp"
    ):  # the largest value is subtracted first, so that exp stays small
        top = reduce(low, "REDUCE_MAX", tensor, places)
        tensor = low.unary("EXP", low.binary("SUB", tensor, top))
    if _KINDS[kind] == "SUM" and tensor.is_float:
        # As a mean, since not all kernels sum integers right.
        count = float(np.prod([tensor.shape[place] for place in places]))
        result = reduce(low, "MEAN", tensor, places, keep)
        result = low.binary("MUL", result, low.like(result, count))
    else:
        result = reduce(low, _KINDS[kind], tensor, places, keep)
    if kind == "ReduceL2":
        result = low.unary("SQRT", result)
    elif kind in ("ReduceLogSum", "ReduceLogSumExp"):
        result = low.unary("LOG", result)
    if top is not None:
        result = low.binary("ADD", result, low.reshaped(top, result.shape))
    low.give(node.outputs[0], result, order if keep else without(order, axes))


@lowers("ArgMax", "ArgMin", to="ARG_MAX, ARG_MIN", limits="select_last_index=0")
def arg(low: Lowering, node: ir.Node) -> None:
    if attribute(node, "select_last_index", 0):
        raise refuse(node, "select_last_index=1 is not supported")
    tensor, order = low.value(low.input(node))
    axis = int(attribute(node, "axis", 0)) % len(order)
    place = order.index(axis)
    shape = [size for position, size in enumerate(tensor.shape) if position != place]
    kind = "ARG_MAX" if node.op_type == "ArgMax" else "ARG_MIN"
    code = 4  # schema.TensorType.INT64
    result = low.emit(kind, [tensor, low.ints(place)], shape, dtype=np.int64, outputType=code)
    if attribute(node, "keepdims", 1):
        kept_shape = [
            1 if position == place else size for position, size in enumerate(tensor.shape)
        ]
        low.give(node.outputs[0], low.reshaped(result, kept_shape), order)
    else:
        low.give(node.outputs[0], result, without(order, {axis}))


@lowers("TopK", to="TOPK_V2, CAST", limits="constant k, largest=1")
def top_k(low: Lowering, node: ir.Node) -> None:
    count = low.setting(node, "k", 1)
    assert count is not None
    if not attribute(node, "largest", 1):
        raise refuse(node, "largest=0 is not supported")
    value = low.input(node)
    order = low.order(value)
    axis = int(attribute(node, "axis", -1)) % len(order)
    order = (*(other for other in order if other != axis), axis)
    tensor = low.arranged(value, order)
    shape = (*tensor.shape[:-1], int(count.reshape(-1)[0]))
    name = str(node.outputs[0].name or node.name)
    best = Tensor(low.name(f"{name}/best"), shape, tensor.dtype)
    indices = Tensor(low.name(f"{name}/where"), shape, np.dtype(np.int32))
    low.emit_many("TOPK_V2", [tensor, low.ints(shape[-1])], [best, indices])
    if node.outputs[0].name:
        low.give(node.outputs[0], best, order)
    if len(node.outputs) > 1 and node.outputs[1].name:
        low.give(node.outputs[1], low.emit("CAST", [indices], shape, dtype=np.int64), order)


@lowers("CumSum", to="CUMSUM", limits="constant axis")
def cumsum(low: Lowering, node: ir.Node) -> None:
    axis = low.setting(node, "axis", 1)
    assert axis is not None
    tensor, order = low.value(low.input(node))
    place = order.index(int(axis.reshape(-1)[0]) % len(order))
    options: dict[str, Any] = {
        "exclusive": bool(attribute(node, "exclusive", 0)),
        "reverse": bool(attribute(node, "reverse", 0)),
    }
    result = low.emit("CUMSUM", [tensor, low.ints(place)], tensor.shape, **options)
    low.give(node.outputs[0], result, order)
