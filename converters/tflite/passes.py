"""Rewrites of a TFLite graph that pay: each is bit-identical in float, and a pass of its own.

But for hard_swishes: HARD_SWISH rounds once where three operators round thrice.
"""

from collections.abc import Callable

import numpy as np

from onmetal.converters.tflite.net import SAME, VALID, Net, Op, Tensor, constant

FUSES = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "SUB", "MUL"})
"""Operators that every kernel can end with an activation."""
_FUSED = {"RELU_N1_TO_1": 2, "RELU": 1, "RELU6": 3}


def tidy(net: Net) -> None:
    """All of them, until nothing changes."""
    net.sweep()
    for _ in range(2 * len(net.ops) + 8):
        changed = [step(net) for step in STEPS]
        net.sweep()
        if not any(changed):
            return


def _only(net: Net, consumers: dict[Tensor, list[Op]], tensor: Tensor) -> Op | None:
    """The one operator that takes the tensor, where it is no output."""
    takers = consumers.get(tensor, [])
    if len(takers) != 1 or tensor in net.outputs or takers[0].inputs.count(tensor) != 1:
        return None
    return takers[0]


def fuse_activations(net: Net) -> bool:
    """RELU, RELU6 and RELU_N1_TO_1 go into the operator before them."""
    consumers, dead = net.consumers(), set()
    for op in net.ops:
        if op.kind not in FUSES or op.activation:
            continue
        taker = _only(net, consumers, op.outputs[0])
        if taker is not None and taker.kind in _FUSED and op.outputs[0].is_float:
            op.options = {**op.options, "fusedActivationFunction": _FUSED[taker.kind]}
            op.outputs = taker.outputs
            dead.add(taker)
    net.ops = [op for op in net.ops if op not in dead]
    return bool(dead)


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
        if op.kind not in EACH and not (op.kind in ("ADD", "MUL", "SUB") and _by_scalar(op)):
            continue
        before = producers.get(op.taken[0])
        if before is None or before.kind != "RESHAPE" or not _only(net, consumers, op.taken[0]):
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


EACH = frozenset(
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
        if before is None or not _only(net, consumers, op.taken[0]):
            continue
        if not _liftable(before) or not _from_input(net, before, producers, consumers):
            continue
        perm = [int(axis) for axis in op.taken[1].data.reshape(-1)]
        source, out = before.taken[0], op.outputs[0]
        shape = tuple(source.shape[axis] for axis in perm)
        inner = Tensor(net.unused(f"{source.name}/transposed"), shape, source.dtype)
        kind, options = before.kind, before.options
        rest = [_turned(before, tensor, perm) for tensor in before.taken[1:]]
        before.kind, before.options = "TRANSPOSE", op.options
        before.inputs, before.outputs = [source, op.inputs[1]], [inner]
        op.kind, op.options, op.inputs, op.outputs = kind, options, [inner, *rest], [out]
        return True
    return False


def _liftable(op: Op) -> bool:
    if op.kind in EACH:
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
        if source not in producers or _only(net, consumers, source) is None:
            return False
        op = producers[source]
        if not _liftable(op):
            return False


def _turned(op: Op, tensor: Tensor, perm: list[int]) -> Tensor:
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
        taker = _only(net, consumers, op.outputs[0])
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


def _pads(op: Op) -> list[list[int]]:
    found = op.taken[1].data
    assert found is not None
    return [[int(a), int(b)] for a, b in found.reshape(-1, 2)]


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
        pads = _pads(before)
        if pads[0] != [0, 0] or pads[3] != [0, 0]:
            continue
        source, kernel = before.taken[0], op.taken[1].shape[1:3]
        if all(
            _is_same(
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


def _is_same(size: int, out: int, reach: int, stride: int, begin: int) -> bool:
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
        if before is None or before.kind != "PAD" or not _only(net, consumers, op.taken[0]):
            continue
        pads, padded = _pads(before), before.outputs[0]
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
        taken = [t for t in op.taken if t.is_float]
        return all(_not_negative(t, producers, depth - 1) for t in taken)
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
        if op.outputs[0] not in net.outputs and all(_sees(op, taker) for taker in takers):
            op.kind, op.inputs = "PAD", op.inputs[:2]
            changed = True
    return changed


def _sees(pad: Op, pool: Op) -> bool:
    """Whether every window of the pooling holds a value that is not padding."""
    if pool.kind != "MAX_POOL_2D":
        return False
    kernel = (1, pool.options["filterHeight"], pool.options["filterWidth"], 1)
    return all(max(pair) < k or pair == [0, 0] for pair, k in zip(_pads(pad), kernel, strict=True))


def merge_slices(net: Net) -> bool:
    """A STRIDED_SLICE of a STRIDED_SLICE is one, where both go forward."""
    changed = False
    producers, consumers = net.producers(), net.consumers()
    for op in net.ops:
        if op.kind != "STRIDED_SLICE" or not _forward(op):
            continue
        before = producers.get(op.taken[0])
        if before is None or before.kind != "STRIDED_SLICE" or not _forward(before):
            continue
        if _only(net, consumers, op.taken[0]) is None:
            continue
        (first, _, step), (begin, _, stride) = _span(before), _span(op)
        start = first + begin * step
        size = np.array(op.outputs[0].shape)
        joined = step * stride
        values = (start, start + (size - 1) * joined + 1, joined)
        given = [
            constant(f"{tensor.name}.joined", np.asarray(value, np.int32))
            for tensor, value in zip(op.taken[1:], values, strict=True)
        ]
        op.inputs = [before.inputs[0], *given]
        changed = True
    return changed


def _span(op: Op) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    begin, end, step = (tensor.data for tensor in op.taken[1:4])
    assert begin is not None and end is not None and step is not None
    return begin, end, step


def _forward(op: Op) -> bool:
    if any(tensor.data is None for tensor in op.taken[1:4]) or any(
        value for name, value in op.options.items() if name.endswith("Mask")
    ):
        return False
    begin, end, step = _span(op)
    sizes = np.array(op.taken[0].shape)
    return bool(np.all(begin >= 0) and np.all(end <= sizes) and np.all(step > 0))


def shortcut_convolutions(net: Net) -> bool:
    """Every second row and column, with channels of zeros around (a ResNet's shortcut without
    weights), is a 1x1 convolution by ones: one fast operator instead of three slow ones."""
    changed = False
    producers, consumers = net.producers(), net.consumers()
    for op in list(net.ops):
        if op.kind != "STRIDED_SLICE" or not _forward(op) or len(op.outputs[0].shape) != 4:
            continue
        if not op.outputs[0].is_float or producers.get(op.taken[0]) is None:
            continue
        begin, _, step = _span(op)
        source = op.taken[0]
        sizes = [-(-source.shape[axis] // int(step[axis])) for axis in (1, 2)]
        whole = not begin.any() and step[0] == step[3] == 1
        if not whole or (step[1] == 1 and step[2] == 1):
            continue
        if [source.shape[0], *sizes, source.shape[3]] != list(op.outputs[0].shape):
            continue
        last, pads = op, [0, 0]
        taker = _only(net, consumers, op.outputs[0])
        if taker is not None and taker.kind == "PAD":
            around = _pads(taker)
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


def hard_swishes(net: Net) -> bool:
    """x * relu6(x + 3) / 6, however it is bracketed, is HARD_SWISH."""
    changed = False
    producers, consumers = net.producers(), net.consumers()
    for op in list(net.ops):
        if op.kind != "MUL" or op.activation:
            continue
        found = _hard_swish(op, producers)
        if found is None:
            continue
        source, sixth = found
        if not sixth:
            taker = _only(net, consumers, op.outputs[0])
            if taker is None or taker.kind != "MUL" or taker.activation:
                continue
            if not any(_scalar(t, 1 / 6) for t in taker.taken):
                continue
            op.outputs = taker.outputs
            net.ops.remove(taker)
        op.kind, op.inputs, op.options = "HARD_SWISH", [source], {}
        return True
    return changed


def _scalar(tensor: Tensor, value: float) -> bool:
    return (
        tensor.data is not None
        and tensor.size == 1
        and bool(np.isclose(float(tensor.data.reshape(-1)[0]), value, rtol=1e-5))
    )


def _hard_swish(op: Op, producers: dict[Tensor, Op]) -> tuple[Tensor, bool] | None:
    """-> x, and whether the division by 6 was found."""
    for source, other in (op.taken[:2], op.taken[1::-1]):
        sixth = False
        gate = producers.get(other)
        if gate is not None and gate.kind == "MUL" and any(_scalar(t, 1 / 6) for t in gate.taken):
            sixth = True
            gate = next((producers.get(t) for t in gate.taken if not _scalar(t, 1 / 6)), None)
        if gate is None or gate.kind != "ADD" or gate.activation != 3:
            continue
        if source in gate.taken and any(_scalar(t, 3.0) for t in gate.taken):
            return source, sixth
    return None


STEPS: tuple[Callable[[Net], bool], ...] = (
    fuse_activations,
    lift_reshapes,
    lift_transposes,
    merge_reshapes,
    drop_kept_axes,
    drop_flattens,
    fold_pads,
    trim_pads,
    zero_pads,
    merge_slices,
    shortcut_convolutions,
    hard_swishes,
)
