"""Which operators of a TFLite graph are computed in integers."""

from collections.abc import Mapping

import numpy as np

from onmetal.converters import unlike
from onmetal.converters.tflite.grid import Activation
from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.operands import activations, holds_limit, pads_with_limit, results
from onmetal.converters.tflite.specification import SHARED, WEIGHTED, supported
from onmetal.errors import UnsupportedError
from onmetal.ranges import Range

FARTHEST = 1e32
"""The limit of a quantized tensor's range: kernels shift its scale by up to 20 bits in float32, and
abort the process where that overflows."""


def integer_operators(
    net: Net, ranges: Mapping[str, Range], activation: Activation, keep_float: frozenset[str]
) -> set[Op]:
    """The operators that are computed in integers. Raises UnsupportedError where none of them
    multiplies by weights or two tensors: integers save time only in such products and in the
    operators between them."""
    consumers = net.consumers()
    chosen = _computable(net, ranges, activation, keep_float)
    while True:
        # An infinity in floats has no place on a grid.
        after_limits = {
            taker
            for op in net.ops
            if op.kind == "PADV2" and op not in chosen and pads_with_limit(op)
            for taker in consumers.get(op.outputs[0], [])
        }
        if not after_limits & chosen:
            break
        chosen -= after_limits
    chosen = _linked(net, chosen)
    if not any(multiplies(op) for op in chosen):
        raise UnsupportedError("nothing in it can be quantized in TFLite")
    return chosen


def multiplies(op: Op) -> bool:
    """Whether an operator multiplies by weights, or two tensors, and sums up the products."""
    return op.kind in WEIGHTED or op.kind == "BATCH_MATMUL"


def _computable(
    net: Net, ranges: Mapping[str, Range], activation: Activation, keep_float: frozenset[str]
) -> set[Op]:
    """The operators that have an integer kernel, and all of whose tensors have a grid."""
    producers = net.producers()
    return {
        op
        for op in net.ops
        if has_integer_kernel(op, activation)
        and op.outputs[0].name not in keep_float
        and all(
            _fits_a_grid(tensor, ranges, producers) for tensor in (*activations(op), *results(op))
        )
        and _products_have_a_scale(op, ranges)
    }


def has_integer_kernel(op: Op, activation: Activation) -> bool:
    """Whether there is an integer kernel for an operator with its operands."""
    if not supported(op.kind, activation):
        return False
    if not activations(op) or any(tensor.size == 0 for tensor in op.taken):
        return False
    if op.kind in WEIGHTED:
        rule = WEIGHTED[op.kind]
        weight = op.inputs[rule.weight]
        bias = op.inputs[rule.bias] if len(op.inputs) > rule.bias else None
        known = weight is not None and weight.data is not None and weight.is_float
        finite = known and weight is not None and np.isfinite(weight.data).all()  # type: ignore[arg-type]
        return bool(finite) and (bias is None or (bias.data is not None and bias.is_float))
    if op.kind in ("DIV", "MUL") and any(holds_limit(tensor) for tensor in op.taken):
        return False
    if op.kind == "BATCH_MATMUL":
        return all(len(tensor.shape) <= 5 for tensor in op.taken)
    if op.kind in ("PRELU",):
        return op.taken[1].data is not None
    return True


def _fits_a_grid(
    tensor: Tensor, ranges: Mapping[str, Range], producers: Mapping[Tensor, Op]
) -> bool:
    if tensor.data is not None:
        return True
    maker = producers.get(tensor)
    if maker is not None and maker.kind == "PADV2" and pads_with_limit(maker):
        return tensor.name in ranges
    low, high = ranges.get(tensor.name, (-np.inf, np.inf))
    width = unlike.width((low, high))
    wide_enough = width == 0.0 or width >= unlike.LEAST_WIDTH
    return bool(low > -FARTHEST and high < FARTHEST and wide_enough)


def _products_have_a_scale(op: Op, ranges: Mapping[str, Range]) -> bool:
    """Whether kernels can compute with the scale of an operator's products."""
    if op.kind not in (*WEIGHTED, "BATCH_MATMUL", "DIV", "MUL", "SQUARED_DIFFERENCE"):
        return True
    factors = [tensor for tensor in op.taken if tensor.is_float]
    widths = [unlike.width(ranges[t.name] if t.data is None else t.data) for t in factors[:2]]
    if op.kind == "DIV":
        return widths[0] < FARTHEST * widths[1] or not widths[1]
    if op.kind == "SQUARED_DIFFERENCE":
        return max(widths) ** 2 < FARTHEST
    return bool(np.prod(widths) < FARTHEST)


def _linked(net: Net, chosen: set[Op]) -> set[Op]:
    """The chosen operators without those that only move values between float operators. One that
    moves values is kept where it is connected, directly or through others that move values, to a
    chosen operator that computes."""
    producers, consumers = net.producers(), net.consumers()
    waiting = [op for op in chosen if op.kind not in SHARED]
    linked = set(waiting)
    while waiting:
        op = waiting.pop()
        makers = [producers.get(t) for t in activations(op) if t.data is None]
        takers = [taker for out in op.outputs for taker in consumers.get(out, [])]
        for near in (*makers, *takers):
            if near is not None and near in chosen and near not in linked:
                linked.add(near)
                waiting.append(near)
    return linked
