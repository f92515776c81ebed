"""Padding: folded into convolutions, trimmed, or written as the faster PAD."""

import numpy as np

from onmetal.converters.tflite.net import SAME, VALID, Net, Op, Tensor, constant
from onmetal.converters.tflite.passes.takers import only_taker


def paddings(op: Op) -> list[list[int]]:
    amounts = op.taken[1].data
    assert amounts is not None
    return [[int(a), int(b)] for a, b in amounts.reshape(-1, 2)]


def fold_pads(net: Net) -> bool:
    """PAD before a convolution goes away where SAME pads exactly so."""
    changed = False
    producers = net.producers()
    for op in net.ops:
        if op.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D") or op.options["padding"] != VALID:
            continue
        before = producers.get(op.taken[0])
        if before is None or before.kind != "PAD":
            continue
        pads = paddings(before)
        if pads[0] != [0, 0] or pads[3] != [0, 0]:
            continue
        source, kernel = before.taken[0], op.taken[1].shape[1:3]
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
    """Zeros behind the last value that a convolution reads are not padded."""
    changed = False
    producers, consumers = net.producers(), net.consumers()
    for op in net.ops:
        if op.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D") or op.options["padding"] != VALID:
            continue
        before = producers.get(op.taken[0])
        if before is None or before.kind != "PAD" or not only_taker(net, consumers, op.taken[0]):
            continue
        pads, padded = paddings(before), before.outputs[0]
        unread = [0, 0]
        for axis, side in enumerate(("H", "W")):
            reach = (op.taken[1].shape[1 + axis] - 1) * op.options[f"dilation{side}Factor"] + 1
            read = (op.outputs[0].shape[1 + axis] - 1) * op.options[f"stride{side}"] + reach
            unread[axis] = min(pads[1 + axis][1], padded.shape[1 + axis] - read)
        if any(unread):
            for axis in (0, 1):
                pads[1 + axis][1] -= unread[axis]
            shape = list(padded.shape)
            shape[1], shape[2] = shape[1] - unread[0], shape[2] - unread[1]
            padded.shape = tuple(shape)
            given = before.taken[1]
            before.inputs[1] = constant(f"{given.name}.trimmed", np.array(pads, np.int32))
            if not np.any(pads):
                op.inputs[0] = before.inputs[0]
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
    """Before a MAX_POOL_2D of values that are not negative, zeros are as good as the least float,
    and every runtime has a fast PAD."""
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
