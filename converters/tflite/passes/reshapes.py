"""RESHAPE and TRANSPOSE: merged, moved to where they cost less, or dropped."""

import numpy as np

from onmetal.converters.tflite.net import Net, Op, Tensor, constant
from onmetal.converters.tflite.passes.takers import only_taker


def merge_reshapes(net: Net) -> bool:
    """Merge a RESHAPE of a RESHAPE into one, and remove one that does not change the shape."""
    changed = False
    producers = net.producers()
    for op in list(net.ops):
        if op.kind != "RESHAPE":
            continue
        source, out = op.inputs[0], op.outputs[0]
        assert source is not None
        producer = producers.get(source)
        if producer is not None and producer.kind == "RESHAPE":
            op.inputs[0] = source = producer.inputs[0]
            changed = True
        assert source is not None
        if source.shape == out.shape and out not in net.outputs:
            net.replace(out, source)
            net.ops.remove(op)
            changed = True
        elif source.shape == out.shape and source in producers and source not in net.outputs:
            # The producer writes the output of the graph directly.
            maker = producers[source]
            maker.outputs = [out if tensor is source else tensor for tensor in maker.outputs]
            for consumer in net.ops:
                consumer.inputs = [
                    out if tensor is source else tensor for tensor in consumer.inputs
                ]
            net.ops.remove(op)
            producers[out] = maker
            changed = True
    return changed


def lift_reshapes(net: Net) -> bool:
    """Move a RESHAPE from before an elementwise operator to behind it. There it may be merged with
    another one (as between one-dimensional convolutions), and an activation can be fused."""
    changed = False
    producers, consumers = net.producers(), net.consumers()
    for op in net.ops:
        if op.kind not in ELEMENTWISE and not (op.kind in ("ADD", "MUL", "SUB") and _by_scalar(op)):
            continue
        producer = producers.get(op.taken[0])
        if (
            producer is None
            or producer.kind != "RESHAPE"
            or not only_taker(net, consumers, op.taken[0])
        ):
            continue
        source, middle, out = producer.taken[0], producer.outputs[0], op.outputs[0]
        if source.data is not None or not middle.is_float or not out.is_float:
            continue
        inner = Tensor(net.unused(f"{out.name}/before"), source.shape, out.dtype)
        kind, options, other_inputs = op.kind, op.options, op.inputs[1:]
        # The two operators change places.
        op.kind, op.options, op.inputs = "RESHAPE", producer.options, [inner, producer.inputs[1]]
        producer.kind, producer.options = kind, options
        producer.inputs, producer.outputs = [source, *other_inputs], [inner]
        return True
    return changed


ELEMENTWISE = frozenset(
    {"ABS", "ELU", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "RELU", "RELU6"}
    | {"RELU_N1_TO_1", "RSQRT", "SQRT", "TANH"}
)
"""Operators that compute each output value from one input value."""


def _by_scalar(op: Op) -> bool:
    return len(op.taken) == 2 and op.taken[1].data is not None and op.taken[1].size == 1


def lift_transposes(net: Net) -> bool:
    """Move a TRANSPOSE from behind operators that normalize or pad an input to the input itself,
    where the program that runs the file can transpose instead."""
    producers, consumers = net.producers(), net.consumers()
    for op in net.ops:
        if op.kind != "TRANSPOSE" or op.taken[1].data is None:
            continue
        producer = producers.get(op.taken[0])
        if producer is None or not only_taker(net, consumers, op.taken[0]):
            continue
        if not _liftable(producer) or not _from_input(net, producer, producers, consumers):
            continue
        perm = [int(axis) for axis in op.taken[1].data.reshape(-1)]
        source, out = producer.taken[0], op.outputs[0]
        shape = tuple(source.shape[axis] for axis in perm)
        inner = Tensor(net.unused(f"{source.name}/transposed"), shape, source.dtype)
        kind, options = producer.kind, producer.options
        operands = [_transposed_operand(producer, tensor, perm) for tensor in producer.taken[1:]]
        producer.kind, producer.options = "TRANSPOSE", op.options
        producer.inputs, producer.outputs = [source, op.inputs[1]], [inner]
        op.kind, op.options, op.inputs, op.outputs = kind, options, [inner, *operands], [out]
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
    """Whether only operators over which a TRANSPOSE can be moved lie between `op` and an input of
    the graph."""
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
    """A constant operand for an input whose axes were transposed by `perm`."""
    assert tensor.data is not None
    if op.kind == "PAD":
        return constant(f"{tensor.name}.turned", tensor.data.reshape(-1, 2)[perm])
    rank = len(perm)
    wide = tensor.data.reshape((1,) * (rank - tensor.data.ndim) + tensor.data.shape)
    if wide.size == 1:
        return tensor
    return constant(f"{tensor.name}.turned", np.ascontiguousarray(wide.transpose(perm)))


def drop_flattens(net: Net) -> bool:
    """Remove a RESHAPE before FULLY_CONNECTED, which accepts any rank if the last axis fits."""
    changed = False
    producers = net.producers()
    for op in net.ops:
        if op.kind != "FULLY_CONNECTED" or op.options.get("keepNumDims"):
            continue
        producer = producers.get(op.taken[0])
        if producer is None or producer.kind != "RESHAPE":
            continue
        source, weight = producer.taken[0], op.taken[1]
        if source.shape[-1] == weight.shape[-1]:
            op.inputs[0] = source
            changed = True
    return changed


def drop_kept_axes(net: Net) -> bool:
    """Remove a RESHAPE that drops the reduced axes; the reduction then does not keep them."""
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
        remaining_shape = tuple(
            n for place, n in enumerate(op.taken[0].shape) if place not in places
        )
        if taker.outputs[0].shape == remaining_shape:
            op.options = {**op.options, "keepDims": False}
            op.outputs = taker.outputs
            net.ops.remove(taker)
            changed = True
    return changed
