"""Padding: folded into convolutions, trimmed, or written as the faster PAD."""

import numpy as np

from onmetal.converters.tflite.net import SAME, VALID, Net, Op, Tensor, constant
from onmetal.converters.tflite.passes.takers import only_taker


def paddings(op: Op) -> list[list[int]]:
    amounts = op.taken[1].data
    assert amounts is not None
    return [[int(a), int(b)] for a, b in amounts.reshape(-1, 2)]


def fold_pads(net: Net) -> bool:
    """Remove a PAD before a convolution where SAME pads in exactly the same way."""
    changed = False
    producers = net.producers()
    for op in net.ops:
        if op.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D") or op.options["padding"] != VALID:
            continue
        producer = producers.get(op.taken[0])
        if producer is None or producer.kind != "PAD":
            continue
        pads = paddings(producer)
        if pads[0] != [0, 0] or pads[3] != [0, 0]:
            continue
        source, kernel = producer.taken[0], op.taken[1].shape[1:3]
        if all(
            _is_same_padding(
                source.shape[1 + axis],
                op.outputs[0].shape[1 + axis],
                (kernel[axis] - 1) * op.options[f"dilation{side}Factor"] + 1,
                op.options[f"stride{side[0]}"],
                pads[1 + axis][0],
            )
            for axis, side in enumerate(("H", "W"))
        ):
            op.inputs[0] = source
            op.options = {**op.options, "padding": SAME}
            changed = True
    return changed


def _is_same_padding(size: int, out: int, reach: int, stride: int, begin: int) -> bool:
    total = max(0, (out - 1) * stride + reach - size)
    return out == -(-size // stride) and begin == total // 2


def trim_pads(net: Net) -> bool:
    """Remove padding behind the last value that a convolution reads."""
    changed = False
    producers, consumers = net.producers(), net.consumers()
    for op in net.ops:
        if op.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D") or op.options["padding"] != VALID:
            continue
        producer = producers.get(op.taken[0])
        if (
            producer is None
            or producer.kind != "PAD"
            or not only_taker(net, consumers, op.taken[0])
        ):
            continue
        pads, padded = paddings(producer), producer.outputs[0]
        unread = [0, 0]
        for axis, side in enumerate(("H", "W")):
            reach = (op.taken[1].shape[1 + axis] - 1) * op.options[f"dilation{side}Factor"] + 1
            read_size = (op.outputs[0].shape[1 + axis] - 1) * op.options[f"stride{side}"] + reach
            unread[axis] = min(pads[1 + axis][1], padded.shape[1 + axis] - read_size)
        if any(unread):
            for axis in (0, 1):
                pads[1 + axis][1] -= unread[axis]
            shape = list(padded.shape)
            shape[1], shape[2] = shape[1] - unread[0], shape[2] - unread[1]
            padded.shape = tuple(shape)
            amounts = producer.taken[1]
            producer.inputs[1] = constant(f"{amounts.name}.trimmed", np.array(pads, np.int32))
            if not np.any(pads):
                op.inputs[0] = producer.inputs[0]
            changed = True
    return changed


def _not_negative(tensor: Tensor, producers: dict[Tensor, Op], depth: int = 8) -> bool:
    op = producers.get(tensor)
    if op is None or not depth:
        return False
    if op.activation in (1, 3) or op.kind in ("RELU", "RELU6", "LOGISTIC", "SOFTMAX", "ABS", "EXP"):
        return True
    if op.kind in ("MAX_POOL_2D", "AVERAGE_POOL_2D", "RESHAPE", "PAD", "MEAN", "CONCATENATION"):
        floats = [t for t in op.taken if t.is_float]
        return all(_not_negative(t, producers, depth - 1) for t in floats)
    return False


def zero_pads(net: Net) -> bool:
    """Replace PADV2 by PAD before a MAX_POOL_2D of values that are not negative: padding with zeros
    gives the same maximum as with the least float, and every runtime has a fast PAD."""
    changed = False
    producers, consumers = net.producers(), net.consumers()
    for op in net.ops:
        if op.kind != "PADV2" or not _not_negative(op.taken[0], producers):
            continue
        fill = op.taken[2].data
        if fill is None or fill.size != 1 or float(fill.reshape(-1)[0]) > 0:
            continue
        takers = consumers.get(op.outputs[0], [])
        if op.outputs[0] not in net.outputs and all(
            _windows_hold_values(op, taker) for taker in takers
        ):
            op.kind, op.inputs = "PAD", op.inputs[:2]
            changed = True
    return changed


def _windows_hold_values(pad: Op, pool: Op) -> bool:
    """Whether every window of the pooling holds a value that is not padding."""
    if pool.kind != "MAX_POOL_2D":
        return False
    kernel = (1, pool.options["filterHeight"], pool.options["filterWidth"], 1)
    return all(
        max(pair) < k or pair == [0, 0] for pair, k in zip(paddings(pad), kernel, strict=True)
    )
