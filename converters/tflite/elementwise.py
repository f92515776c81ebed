"""Element-wise operators of one, two and more tensors, comparisons, casts."""

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.lowering import NHWC, Lowering, Order, Value, lowers
from onmetal.converters.tflite.net import Tensor
from onmetal.converters.tflite.nodes import attribute, refuse


def common_order(low: Lowering, values: list[ir.Value], rank: int) -> Order:
    """The order in which most of the values' elements are stored already, so that the fewest are
    rearranged. Constants do not count."""
    weights: dict[Order, int] = {}
    for value in values:
        tensor, order = low.value(value)
        if tensor.data is not None:
            continue
        extra = rank - len(order)
        lifted = tuple(range(extra)) + tuple(axis + extra for axis in order)
        weights[lifted] = weights.get(lifted, 0) + tensor.size
        for arranged, stored, target in low.arranged_as:  # a rearranged copy that exists already
            if arranged is tensor and stored == order and len(target) == rank and target != lifted:
                weights[target] = weights.get(target, 0) + tensor.size
    if not weights:
        return tuple(range(rank))
    return max(weights, key=lambda order: (weights[order], order == NHWC))


def aligned(low: Lowering, values: list[ir.Value]) -> tuple[list[Tensor], Order]:
    """The tensors in one order, to be broadcast. Constants lose axes of length 1 in front."""
    rank = max(len(low.shape(value)) for value in values)
    order = common_order(low, values, rank)
    tensors = []
    for value in values:
        tensor = low.arranged(value, order)
        if tensor.data is not None:
            shape = tensor.shape
            while shape and shape[0] == 1:
                shape = shape[1:]
            tensor = low.reshaped(tensor, shape)
        tensors.append(tensor)
    return tensors, order


_BINARY = {
    "Add": "ADD",
    "Sub": "SUB",
    "Mul": "MUL",
    "Div": "DIV",
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
    "And": "LOGICAL_AND",
    "Or": "LOGICAL_OR",
    "Xor": "NOT_EQUAL",
}


def _give_broadcast(low: Lowering, out: ir.Value, tensor: Tensor, order: Order) -> None:
    """Set the tensor as a node's output, reshaped to the ONNX shape in this order where leading
    axes of length 1 are missing."""
    sizes = low.shape(out)
    low.give(out, low.reshaped(tensor, tuple(sizes[axis] for axis in order)), order)


@lowers("Add", "Sub", "Mul", "Div", to="ADD, SUB, MUL, DIV", limits="floats, int32 and int64")
def arithmetic(low: Lowering, node: ir.Node) -> None:
    (left, right), order = aligned(low, [low.input(node, 0), low.input(node, 1)])
    kind = _BINARY[node.op_type]
    if left.dtype.kind not in "fi" or left.dtype.itemsize < 4:
        raise refuse(node, f"it computes with {left.dtype}, which is not supported")
    if kind == "DIV" and left.dtype.kind == "i":
        if left.dtype == np.int64:
            raise refuse(node, "whole numbers of 64 bits are not divided in TFLite")
        result = low.binary("DIV", left, right)
    elif kind == "DIV" and right.data is not None and np.all(right.data != 0):
        # Runtimes multiply faster than they divide, and quantize only products.
        inverse = low.floats(1 / right.data.astype(np.float64), "inverse")
        result = low.binary("MUL", left, inverse)
    else:
        result = low.binary(kind, left, right)
    _give_broadcast(low, node.outputs[0], result, order)


@lowers(
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    to="EQUAL, GREATER, GREATER_EQUAL, LESS, LESS_EQUAL",
)
@lowers("And", "Or", "Xor", to="LOGICAL_AND, LOGICAL_OR, NOT_EQUAL")
def truth(low: Lowering, node: ir.Node) -> None:
    (left, right), order = aligned(low, [low.input(node, 0), low.input(node, 1)])
    result = low.binary(_BINARY[node.op_type], left, right, dtype=np.bool_)
    _give_broadcast(low, node.outputs[0], result, order)


@lowers("Max", "Min", to="MAXIMUM, MINIMUM")
@lowers("Sum", to="ADD")
@lowers("Mean", to="ADD, MUL")
def variadic(low: Lowering, node: ir.Node) -> None:
    """One binary operator after another."""
    kind = {"Max": "MAXIMUM", "Min": "MINIMUM"}.get(node.op_type, "ADD")
    values = [value for value in node.inputs if value is not None]
    if len(values) == 1:
        low.values[node.outputs[0]] = low.value(values[0])
        return
    tensors, order = aligned(low, values)
    result = tensors[0]
    for tensor in tensors[1:]:
        result = low.binary(kind, result, tensor)
    if node.op_type == "Mean":
        result = low.binary("MUL", result, low.like(result, 1 / len(tensors)))
    _give_broadcast(low, node.outputs[0], result, order)


@lowers("Mod", to="FLOOR_MOD", limits="fmod=0")
def modulo(low: Lowering, node: ir.Node) -> None:
    if attribute(node, "fmod", 0):
        raise refuse(node, "fmod=1 is not supported")
    (left, right), order = aligned(low, [low.input(node, 0), low.input(node, 1)])
    _give_broadcast(low, node.outputs[0], low.binary("FLOOR_MOD", left, right), order)


@lowers("Pow", to="MUL, SQRT, DIV, POW", limits="of whole numbers constant powers, 0 and more")
def power(low: Lowering, node: ir.Node) -> None:
    """Squares, cubes, roots and inverses by operators that are fast in runtimes."""
    value, exponent = low.input(node, 0), low.constant(low.input(node, 1))
    tensor, order = low.value(value)
    scalar = float(exponent.reshape(-1)[0]) if exponent is not None and exponent.size == 1 else None
    if exponent is not None and exponent.ndim > len(order):
        scalar = None
    if not tensor.is_float and (exponent is None or np.any(exponent < 0)):
        raise refuse(node, "whole numbers to powers that are or may be negative are not supported")
    if scalar in (2.0, 3.0) and tensor.is_float:
        result = low.binary("MUL", tensor, tensor)
        if scalar == 3.0:
            result = low.binary("MUL", result, tensor)
    elif scalar == 0.5:
        result = low.unary("SQRT", tensor)
    elif scalar == -1.0:
        result = low.binary("DIV", low.like(tensor, 1.0), tensor)
    else:
        (left, right), order = aligned(low, [value, low.input(node, 1)])
        if right.dtype != left.dtype:
            right = low.emit("CAST", [right], right.shape, dtype=left.dtype)
        result = low.binary("POW", left, right)
    _give_broadcast(low, node.outputs[0], result, order)


_UNARY = {
    "Abs": "ABS",
    "Ceil": "CEIL",
    "Cos": "COS",
    "Exp": "EXP",
    "Floor": "FLOOR",
    "Log": "LOG",
    "Round": "ROUND",
    "Sin": "SIN",
    "Sqrt": "SQRT",
    "Sigmoid": "LOGISTIC",
    "Tanh": "TANH",
    "Relu": "RELU",
    "HardSwish": "HARD_SWISH",
    "Sign": "SIGN",
    "Not": "LOGICAL_NOT",
}


@lowers(*_UNARY, to=", ".join(sorted(_UNARY.values())))
def unary(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    low.give(node.outputs[0], low.unary(_UNARY[node.op_type], tensor), order)


@lowers("Neg", to="MUL, NEG")
def negative(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    if tensor.is_float:  # a product is what runtimes quantize
        result = low.binary("MUL", tensor, low.like(tensor, -1.0))
    else:
        result = low.unary("NEG", tensor)
    low.give(node.outputs[0], result, order)


@lowers("Reciprocal", to="DIV")
def reciprocal(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    low.give(node.outputs[0], low.binary("DIV", low.like(tensor, 1.0), tensor), order)


@lowers("Identity", "Dropout", to="nothing", limits="no mask output")
def identity(low: Lowering, node: ir.Node) -> None:
    if (
        len(node.outputs) > 1
        and node.outputs[1].name
        and (node.outputs[1].uses() or node.outputs[1] in low.outputs)
    ):
        raise refuse(node, "the mask of Dropout is not supported")
    low.values[node.outputs[0]] = low.value(low.input(node))
    if low.input(node) in low.scrambled:
        low.scrambled[node.outputs[0]] = low.scrambled[low.input(node)]


@lowers("Cast", to="CAST")
def cast(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    dtype = low.dtype(node.outputs[0])
    if dtype == np.float64:
        raise refuse(node, "float64 is not supported")
    if dtype == tensor.dtype:
        low.values[node.outputs[0]] = Value(tensor, order)
        return
    result = low.emit("CAST", [tensor], tensor.shape, dtype=dtype)
    low.give(node.outputs[0], result, order)


@lowers("Where", to="SELECT_V2")
def where(low: Lowering, node: ir.Node) -> None:
    tensors, order = aligned(low, [low.input(node, place) for place in range(3)])
    shape = np.broadcast_shapes(*(tensor.shape for tensor in tensors))
    result = low.emit("SELECT_V2", tensors, shape, dtype=tensors[1].dtype)
    _give_broadcast(low, node.outputs[0], result, order)


@lowers("IsNaN", to="NOT_EQUAL")
def is_nan(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    result = low.binary("NOT_EQUAL", tensor, tensor, dtype=np.bool_)
    low.give(node.outputs[0], result, order)
