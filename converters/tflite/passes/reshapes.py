"""RESHAPE and TRANSPOSE: merged, moved to where they cost less, or dropped."""

import numpy as np

from onmetal.converters.tflite.net import Net, Op, Tensor, constant
from onmetal.converters.tflite.passes.takers import only_taker


def merge_reshapes(net: Net) -> bool:
    """A RESHAPE of a RESHAPE is one; one to the shape that is there already is none."""
    changed = False
    producers = net.producers()
    for op in list(net.ops):
        if op.kind != "RESHAPE":
            continue
        source, out = op.inputs[0], op.outputs[0]
        assert source is not None
        before = producers.get(source)
        if before is not None and before.kind == "RESHAPE":
            op.inputs[0] = source = before.inputs[0]
            changed = True
        assert source is not None
        if source.shape == out.shape and out not in net.outputs:
            net.replace(out, source)
            net.ops.remove(op)
            changed = True
        elif source.shape == out.shape and source in producers and source not in net.outputs:
            # What ends in an output is made as that output.
            maker = producers[source]
            maker.outputs = [out if tensor is source else tensor for tensor in maker.outputs]
            for other in net.ops:
                other.inputs = [out if tensor is source else tensor for tensor in other.inputs]
            net.ops.remove(op)
            producers[out] = maker
            changed = True
    return changed


def lift_reshapes(net: Net) -> bool:
    """RESHAPE before an operator on each number by itself goes behind it, where it may meet another
    (as between convolutions of one axis) and lets an activation be fused."""
    changed = False
    producers, consumers = net.producers(), net.consumers()
    for op in net.ops:
        if op.kind not in ELEMENTWISE and not (op.kind in ("ADD", "MUL", "SUB") and _by_scalar(op)):
            continue
        before = producers.get(op.taken[0])
        if (
            before is None
            or before.kind != "RESHAPE"
            or not only_taker(net, consumers, op.taken[0])
        ):
            continue
        source, middle, out = before.taken[0], before.outputs[0], op.outputs[0]
        if source.data is not None or not middle.is_float or not out.is_float:
            continue
        inner = Tensor(net.unused(f"{out.name}/before"), source.shape, out.dtype)
        kind, options, rest = op.kind, op.options, op.inputs[1:]
        # The operator runs where the RESHAPE stood, and the RESHAPE where it stood.
        op.kind, op.options, op.inputs = "RESHAPE", before.options, [inner, before.inputs[1]]
        before.kind, before.options = kind, options
        before.inputs, before.outputs = [source, *rest], [inner]
        return True
    return changed


ELEMENTWISE = frozenset(
    {"ABS", "ELU", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "RELU", "RELU6"}
    | {"RELU_N1_TO_1", "RSQRT", "SQRT", "TANH"}
)
"""Operators on each number by itself."""


def _by_scalar(op: Op) -> bool:
    return len(op.taken) == 2 and op.taken[1].data is not None and op.taken[1].size == 1


def lift_transposes(net: Net) -> bool:
    """The TRANSPOSE behind what normalizes or pads an input goes to the input itself, where who
    runs the file can do it instead."""
    producers, consumers = net.producers(), net.consumers()
    for op in net.ops:
        if op.kind != "TRANSPOSE" or op.taken[1].data is None:
            continue
        before = producers.get(op.taken[0])
        if before is None or not only_taker(net, consumers, op.taken[0]):
            continue
        if not _liftable(before) or not _from_input(net, before, producers, consumers):
            continue
        perm = [int(axis) for axis in op.taken[1].data.reshape(-1)]
        source, out = before.taken[0], op.outputs[0]
        shape = tuple(source.shape[axis] for axis in perm)
        inner = Tensor(net.unused(f"{source.name}/transposed"), shape, source.dtype)
        kind, options = before.kind, before.options
        rest = [_transposed_operand(before, tensor, perm) for tensor in before.taken[1:]]
        before.kind, before.options = "TRANSPOSE", op.options
        before.inputs, before.outputs = [source, op.inputs[1]], [inner]
        op.kind, op.options, op.inputs, op.outputs = kind, options, [inner, *rest], [out]
        return True
    return False


def _liftable(op: Op) -> bool:
    if op.kind in ELEMENTWISE:
        return True
    constants = all(tensor.data is not None for tensor in op.taken[1:])
    return constants and op.kind in ("ADD", "DIV", "MAXIMUM", "MINIMUM", "MUL", "PAD", "SUB")


def _from_input(
    net: Net, op: Op, producers: dict[Tensor, Op], consumers: dict[Tensor, list[Op]]
) -> bool:
    """Whether nothing but liftable operators lies between it and an input of the graph."""
    while True:
        source = op.taken[0]
        if source.data is not None or (source.shape != op.outputs[0].shape and op.kind != "PAD"):
            return False
        if source in net.inputs:
            return len(consumers[source]) == 1
        if source not in producers or only_taker(net, consumers, source) is None:
            return False
        op = producers[source]
        if not _liftable(op):
            return False


def _transposed_operand(op: Op, tensor: Tensor, perm: list[int]) -> Tensor:
    """An operand for an input whose axes are in another order."""
    assert tensor.data is not None
    if op.kind == "PAD":
        return constant(f"{tensor.name}.turned", tensor.data.reshape(-1, 2)[perm])
    rank = len(perm)
    wide = tensor.data.reshape((1,) * (rank - tensor.data.ndim) + tensor.data.shape)
    if wide.size == 1:
        return tensor
    return constant(f"{tensor.name}.turned", np.ascontiguousarray(wide.transpose(perm)))


def drop_flattens(net: Net) -> bool:
    """FULLY_CONNECTED takes a tensor of any rank whose last axis fits: no RESHAPE before it."""
    changed = False
    producers = net.producers()
    for op in net.ops:
        if op.kind != "FULLY_CONNECTED" or op.options.get("keepNumDims"):
            continue
        before = producers.get(op.taken[0])
        if before is None or before.kind != "RESHAPE":
            continue
        source, weight = before.taken[0], op.taken[1]
        if source.shape[-1] == weight.shape[-1]:
            op.inputs[0] = source
            changed = True
    return changed


def drop_kept_axes(net: Net) -> bool:
    """A reduction that keeps its axes before a RESHAPE that drops them does not keep them."""
    changed = False
    consumers = net.consumers()
    for op in list(net.ops):
        if "keepDims" not in op.options or not op.options["keepDims"]:
            continue
        taker = only_taker(net, consumers, op.outputs[0])
        axes = op.taken[1].data
        if taker is None or taker.kind != "RESHAPE" or axes is None:
            continue
        places = {int(axis) for axis in axes.reshape(-1)}
        left = tuple(n for place, n in enumerate(op.taken[0].shape) if place not in places)
        if taker.outputs[0].shape == left:
            op.options = {**op.options, "keepDims": False}
            op.outputs = taker.outputs
            net.ops.remove(taker)
            changed = True
    return changed
