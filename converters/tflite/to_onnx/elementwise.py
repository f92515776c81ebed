"""Arithmetic, comparisons and choices, element by element, in the order of what is largest."""

from collections.abc import Sequence

import numpy as np
from onnx import helper

from onmetal.converters.tflite.net import Op, Tensor
from onmetal.converters.tflite.to_onnx.fused import finish
from onmetal.converters.tflite.to_onnx.graph import Graph, Order, plain
from onmetal.converters.tflite.to_onnx.rules import refuse, taken, writes


def common_order(graph: Graph, tensors: Sequence[Tensor], rank: int) -> Order:
    """The order in which most numbers are stored already, of the computed tensors that have all
    axes; of two as large, one whose channels were moved."""
    best, found = (0, False), tuple(range(rank))
    for tensor in tensors:
        if len(tensor.shape) == rank and not graph.is_constant(tensor):
            order = graph.order(tensor)
            weight = (tensor.size, order != plain(tensor))
            if weight > best:
                best, found = weight, order
    return found


def operands(graph: Graph, tensors: Sequence[Tensor], order: Order) -> list[str]:
    """Real numbers that are broadcast against each other in an order of the axes."""
    return [
        graph.real(tensor) if not tensor.shape else graph.real(tensor, order) for tensor in tensors
    ]


def pair(graph: Graph, op: Op) -> tuple[str, str, Order]:
    tensors = [taken(op, 0), taken(op, 1)]
    order = common_order(graph, tensors, len(op.outputs[0].shape))
    left, right = operands(graph, tensors, order)
    return left, right, order


_SAME_NAME = {
    "ADD": "Add",
    "SUB": "Sub",
    "MUL": "Mul",
    "DIV": "Div",
    "POW": "Pow",
    "MAXIMUM": "Max",
    "MINIMUM": "Min",
    "EQUAL": "Equal",
    "GREATER": "Greater",
    "GREATER_EQUAL": "GreaterOrEqual",
    "LESS": "Less",
    "LESS_EQUAL": "LessOrEqual",
    "LOGICAL_AND": "And",
    "LOGICAL_OR": "Or",
}


@writes(*_SAME_NAME, to="the operator of the same name")
def binary(graph: Graph, op: Op) -> None:
    left, right, order = pair(graph, op)
    finish(graph, op, graph.emit(_SAME_NAME[op.kind], [left, right]), order)


@writes("NOT_EQUAL", to="Equal, Not")
def not_equal(graph: Graph, op: Op) -> None:
    left, right, order = pair(graph, op)
    graph.give(op.outputs[0], graph.emit("Not", [graph.emit("Equal", [left, right])]), order)


@writes("SQUARED_DIFFERENCE", to="Sub, Mul")
def squared_difference(graph: Graph, op: Op) -> None:
    left, right, order = pair(graph, op)
    gap = graph.emit("Sub", [left, right])
    graph.give(op.outputs[0], graph.emit("Mul", [gap, gap]), order)


@writes("ADD_N", to="Sum, Add")
def add_n(graph: Graph, op: Op) -> None:
    order = common_order(graph, op.taken, len(op.outputs[0].shape))
    total, *others = operands(graph, op.taken, order)
    for other in others:
        total = graph.emit("Add", [total, other])
    graph.give(op.outputs[0], total, order)


def _floor_mod(graph: Graph, op: Op, left: str, right: str) -> str:
    """The remainder with the sign of the divisor."""
    tensor = taken(op, 0)
    if tensor.dtype.kind in "iu" and tensor.scale is None:
        return graph.emit("Mod", [left, right])
    rest = graph.emit("Mod", [left, right], fmod=1)
    zero = graph.like(tensor, 0)
    negative = [graph.emit("Less", [name, zero]) for name in (rest, right)]
    other_sign = graph.emit("Xor", negative)
    left_over = graph.emit("Not", [graph.emit("Equal", [rest, zero])])
    moved = graph.emit("And", [other_sign, left_over])
    return graph.emit("Where", [moved, graph.emit("Add", [rest, right]), rest])


@writes("FLOOR_MOD", to="Mod, Where")
def floor_mod(graph: Graph, op: Op) -> None:
    left, right, order = pair(graph, op)
    graph.give(op.outputs[0], _floor_mod(graph, op, left, right), order)


@writes("FLOOR_DIV", to="Div, Floor, Mod")
def floor_div(graph: Graph, op: Op) -> None:
    """Of integers (x - mod(x, y)) / y, which is exact."""
    left, right, order = pair(graph, op)
    if taken(op, 0).dtype.kind == "f":
        result = graph.emit("Floor", [graph.emit("Div", [left, right])])
    else:
        rest = _floor_mod(graph, op, left, right)
        result = graph.emit("Div", [graph.emit("Sub", [left, rest]), right])
    graph.give(op.outputs[0], result, order)


@writes("SELECT", "SELECT_V2", to="Where")
def select(graph: Graph, op: Op) -> None:
    """The condition of SELECT may have one axis, the first one of what is chosen."""
    condition, first, second = (taken(op, place) for place in range(3))
    rank = len(op.outputs[0].shape)
    order = common_order(graph, [condition, first, second], rank)
    if op.kind == "SELECT" and len(condition.shape) == 1 and rank > 1:
        whole = (*condition.shape, *[1] * (rank - 1))
        mask = graph.emit("Reshape", [graph.stored(condition), graph.ints(whole)])
        mask = graph.arranged(mask, tuple(range(rank)), order, whole)
    else:
        mask = operands(graph, [condition], order)[0]
    result = graph.emit("Where", [mask, *operands(graph, [first, second], order)])
    graph.give(op.outputs[0], result, order)


_UNARY = {
    "ABS": "Abs",
    "NEG": "Neg",
    "EXP": "Exp",
    "LOG": "Log",
    "SQRT": "Sqrt",
    "SIN": "Sin",
    "COS": "Cos",
    "FLOOR": "Floor",
    "CEIL": "Ceil",
    "ROUND": "Round",
    "SIGN": "Sign",
    "LOGICAL_NOT": "Not",
}


def through(graph: Graph, op: Op, *kinds: str) -> None:
    """One node after the other, on the first input."""
    tensor = taken(op, 0)
    order = graph.order(tensor)
    name = graph.real(tensor, order)
    for kind in kinds:
        name = graph.emit(kind, [name])
    graph.give(op.outputs[0], name, order)


@writes(*_UNARY, to="the operator of the same name")
def unary(graph: Graph, op: Op) -> None:
    through(graph, op, _UNARY[op.kind])


@writes("RSQRT", to="Sqrt, Reciprocal")
def rsqrt(graph: Graph, op: Op) -> None:
    through(graph, op, "Sqrt", "Reciprocal")


@writes("SQUARE", to="Mul")
def square(graph: Graph, op: Op) -> None:
    tensor = taken(op, 0)
    order = graph.order(tensor)
    name = graph.real(tensor, order)
    graph.give(op.outputs[0], graph.emit("Mul", [name, name]), order)


@writes("ZEROS_LIKE", to="a constant")
def zeros_like(graph: Graph, op: Op) -> None:
    tensor = op.outputs[0]
    graph.give(tensor, graph.constant(np.zeros(tensor.shape, tensor.dtype)))


_CAST = {np.dtype(kind) for kind in (np.float32, np.float16, np.float64, np.bool_)} | {
    np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)
}


@writes("CAST", to="Cast")
def cast(graph: Graph, op: Op) -> None:
    tensor, out = taken(op, 0), op.outputs[0]
    if out.dtype not in _CAST:
        raise refuse(op, f"the type {out.dtype} is not supported")
    order = graph.order(tensor)
    graph.keep(out, cast_to(graph, graph.stored(tensor, order), out.dtype), order)


def cast_to(graph: Graph, name: str, dtype: np.dtype) -> str:
    return graph.emit("Cast", [name], to=helper.np_dtype_to_tensor_dtype(dtype))
