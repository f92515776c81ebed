"""STRIDED_SLICE: two merged into one, and a shortcut of slices written as one convolution."""

import numpy as np

from onmetal.converters.tflite.net import VALID, Net, Op, constant
from onmetal.converters.tflite.passes.padding import paddings
from onmetal.converters.tflite.passes.takers import only_taker


def merge_slices(net: Net) -> bool:
    """Merge a STRIDED_SLICE of a STRIDED_SLICE into one, where both have positive steps."""
    changed = False
    producers, consumers = net.producers(), net.consumers()
    for op in net.ops:
        if op.kind != "STRIDED_SLICE" or not goes_forward(op):
            continue
        producer = producers.get(op.taken[0])
        if producer is None or producer.kind != "STRIDED_SLICE" or not goes_forward(producer):
            continue
        if only_taker(net, consumers, op.taken[0]) is None:
            continue
        (first, _, step), (begin, _, stride) = slice_bounds(producer), slice_bounds(op)
        start = first + begin * step
        size = np.array(op.outputs[0].shape)
        joined = step * stride
        values = (start, start + (size - 1) * joined + 1, joined)
        bounds = [
            constant(f"{tensor.name}.joined", np.asarray(value, np.int32))
            for tensor, value in zip(op.taken[1:], values, strict=True)
        ]
        op.inputs = [producer.inputs[0], *bounds]
        changed = True
    return changed


def slice_bounds(op: Op) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    begin, end, step = (tensor.data for tensor in op.taken[1:4])
    assert begin is not None and end is not None and step is not None
    return begin, end, step


def goes_forward(op: Op) -> bool:
    if any(tensor.data is None for tensor in op.taken[1:4]) or any(
        value for name, value in op.options.items() if name.endswith("Mask")
    ):
        return False
    begin, end, step = slice_bounds(op)
    sizes = np.array(op.taken[0].shape)
    return bool(np.all(begin >= 0) and np.all(end <= sizes) and np.all(step > 0))


def shortcut_convolutions(net: Net) -> bool:
    """Replace a STRIDED_SLICE of rows and columns with a PAD of channels by zeros (a ResNet's
    shortcut without weights) by a 1x1 convolution by ones: one fast operator instead of several
    slow ones."""
    changed = False
    producers, consumers = net.producers(), net.consumers()
    for op in list(net.ops):
        if op.kind != "STRIDED_SLICE" or not goes_forward(op) or len(op.outputs[0].shape) != 4:
            continue
        if not op.outputs[0].is_float or producers.get(op.taken[0]) is None:
            continue
        begin, _, step = slice_bounds(op)
        source = op.taken[0]
        sizes = [-(-source.shape[axis] // int(step[axis])) for axis in (1, 2)]
        from_start = not begin.any() and step[0] == step[3] == 1
        if not from_start or (step[1] == 1 and step[2] == 1):
            continue
        if [source.shape[0], *sizes, source.shape[3]] != list(op.outputs[0].shape):
            continue
        last, pads = op, [0, 0]
        taker = only_taker(net, consumers, op.outputs[0])
        if taker is not None and taker.kind == "PAD":
            around = paddings(taker)
            if around[:3] == [[0, 0]] * 3:
                last, pads = taker, around[3]
        out, channels = last.outputs[0], source.shape[3]
        weight = np.zeros((out.shape[3], 1, 1, channels), np.float32)
        for channel in range(channels):
            weight[channel + pads[0], 0, 0, channel] = 1
        new = Op(
            "CONV_2D",
            [
                source,
                constant(f"{out.name}/ones", weight),
                constant(f"{out.name}/zeros", np.zeros(out.shape[3], np.float32)),
            ],
            [out],
            {
                "padding": VALID,
                "strideH": int(step[1]),
                "strideW": int(step[2]),
                "dilationHFactor": 1,
                "dilationWFactor": 1,
            },
        )
        net.ops[net.ops.index(op)] = new
        if last is not op:
            net.ops.remove(last)
        changed = True
    return changed
