"""What changes the shape or the order of axes: mostly nothing is written, only named anew."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.lowering import NHWC, Lowering, Order, Value, lowers
from onmetal.converters.tflite.net import Shape, Tensor
from onmetal.converters.tflite.nodes import attribute, refuse

Group = tuple[list[int], list[int]]
"""Axes before and axes after that hold the same numbers in the same order; none of length 1."""


def groups(before: Shape, after: Shape) -> list[Group] | None:
    """The finest groups of axes by which a reshape can be told; None for empty tensors."""
    if 0 in before or 0 in after:
        return None
    left = [axis for axis, size in enumerate(before) if size > 1]
    right = [axis for axis, size in enumerate(after) if size > 1]
    found: list[Group] = []
    i = j = 0
    while i < len(left) or j < len(right):
        taken, given = [left[i]], [right[j]]
        i, j = i + 1, j + 1
        while (a := math.prod(before[x] for x in taken)) != (
            b := math.prod(after[x] for x in given)
        ):
            if a < b:
                taken.append(left[i])
                i += 1
            else:
                given.append(right[j])
                j += 1
        found.append((taken, given))
    return found


def _adjacent(order: Order, found: list[Group]) -> bool:
    """Whether each group's axes stand side by side in the stored order, ascending."""
    for taken, _ in found:
        first = order.index(taken[0])
        if list(order[first : first + len(taken)]) != taken:
            return False
    return True


def _gathered(order: Order, found: list[Group], rank: int) -> Order:
    """The stored order with every group's axes brought together: where the first or the last of
    each stands, whichever leaves what comes next as its operators will want it."""
    first: list[int] = []
    last: list[int] = []
    for place, axis in enumerate(order):
        group = next((taken for taken, _ in found if axis in taken), [axis])
        if axis not in first:
            first += group
        if not set(group) & set(order[place + 1 :]):
            last += group
    wanted = NHWC if rank == 4 else tuple(range(rank))
    fits = _after(tuple(last), found, rank) == wanted
    return tuple(last if fits else first)


def _after(order: Order, found: list[Group], rank: int) -> Order:
    """The stored order of the new axes. Those of length 1 stand where they belong if the others are
    in their ONNX order, else in front."""
    long: list[int] = []
    for axis in order:
        for taken, given in found:
            if axis == taken[0]:
                long += given
    if long == sorted(long):
        return tuple(range(rank))
    return (*(axis for axis in range(rank) if axis not in long), *long)


def reshape(low: Lowering, value: ir.Value, out: ir.Value) -> Value:
    """The value in the output's shape, as it can be had for the least moving."""
    before, after = low.shape(value), low.shape(out)
    tensor, order = low.value(value)
    found = groups(before, after)
    if found is None:
        return Value(low.reshaped(low.plain(value), after), tuple(range(len(after))))
    long = tuple(axis for axis in order if before[axis] > 1)
    if not _adjacent(long, found):
        long = _gathered(long, found, len(after))
        short = tuple(axis for axis in order if before[axis] == 1)
        tensor = low.arranged(value, (*short, *long))
    new = _after(long, found, len(after))
    shape = [after[axis] for axis in new]
    return Value(low.reshaped(tensor, shape, name=f"{out.name}/shaped"), new)


def _give(low: Lowering, out: ir.Value, found: Value) -> None:
    low.values[out] = found


def _flattens(low: Lowering, value: ir.Value, out: ir.Value) -> bool:
    """Whether the output [n, k] goes to nothing but products by constants, whose weights can be
    reordered instead of what is flattened."""
    before, after = low.shape(value), low.shape(out)
    if len(after) != 2 or before[:1] != after[:1] or out in low.outputs or not out.uses():
        return False
    if low.order(value)[0] != 0:
        return False
    for use in out.uses():
        plain = use.node.op_type in ("Gemm", "MatMul") and use.idx == 0
        if not plain or attribute(use.node, "transA", 0):
            return False
        weight = low.constant(use.node.inputs[1])
        if weight is None or weight.ndim != 2:
            return False
    return True


@lowers("Reshape", "Flatten", "Squeeze", "Unsqueeze", to="RESHAPE", limits="constant shapes")
def reshaping(low: Lowering, node: ir.Node) -> None:
    value, out = low.input(node), node.outputs[0]
    tensor, order = low.value(value)
    before, after = low.shape(value), low.shape(out)
    found = groups(before, after)
    long = tuple(axis for axis in order if before[axis] > 1)
    if found is not None and not _adjacent(long, found) and _flattens(low, value, out):
        places = np.arange(math.prod(before[1:])).reshape(before[1:])
        stored = places.transpose([axis - 1 for axis in order if axis != 0])
        low.scrambled[out] = stored.reshape(-1)
        made = low.reshaped(tensor, after, name=f"{out.name}/flat")
        low.values[out] = Value(made, (0, 1))
        return
    _give(low, out, reshape(low, value, out))


@lowers("Transpose", to="nothing")
def transpose(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    rank = len(order)
    perm = [int(axis) for axis in attribute(node, "perm", range(rank)[::-1])]
    _give(low, node.outputs[0], Value(tensor, tuple(perm.index(axis) for axis in order)))


@lowers("DepthToSpace", to="DEPTH_TO_SPACE, GATHER")
def depth_to_space(low: Lowering, node: ir.Node) -> None:
    """TFLite's is DCR. For CRD the channels are brought to that order first."""
    block = int(attribute(node, "blocksize"))
    tensor = low.arranged(low.input(node), (0, 2, 3, 1))
    batch, height, width, channels = tensor.shape
    left = channels // (block * block)
    if attribute(node, "mode", "DCR") == "CRD":
        places = np.arange(channels).reshape(left, block * block).T.reshape(-1)
        if block > 1 and left > 1:
            index = low.ints(places, "channels")
            tensor = low.emit("GATHER", [tensor, index], tensor.shape, axis=3)
    shape = (batch, height * block, width * block, left)
    made = low.emit("DEPTH_TO_SPACE", [tensor], shape, blockSize=block)
    low.give(node.outputs[0], made, (0, 2, 3, 1))


@lowers("SpaceToDepth", to="SPACE_TO_DEPTH")
def space_to_depth(low: Lowering, node: ir.Node) -> None:
    block = int(attribute(node, "blocksize"))
    tensor = low.arranged(low.input(node), (0, 2, 3, 1))
    batch, height, width, channels = tensor.shape
    shape = (batch, height // block, width // block, channels * block * block)
    made = low.emit("SPACE_TO_DEPTH", [tensor], shape, blockSize=block)
    low.give(node.outputs[0], made, (0, 2, 3, 1))


@lowers("Expand", to="BROADCAST_TO", limits="constant shapes")
def expand(low: Lowering, node: ir.Node) -> None:
    value, out = low.input(node), node.outputs[0]
    after = low.shape(out)
    rank, extra = len(after), len(after) - len(low.shape(value))
    order = tuple(range(extra)) + tuple(axis + extra for axis in low.order(value))
    tensor = low.arranged(value, order)
    shape = [after[axis] for axis in order]
    if rank == 0 or tuple(shape) == tensor.shape:
        _give(low, out, Value(tensor, order))
        return
    made = low.emit("BROADCAST_TO", [tensor, low.ints(shape, "shape")], shape)
    low.give(out, made, order)


@lowers("Tile", to="TILE", limits="constant repeats")
def tile(low: Lowering, node: ir.Node) -> None:
    repeats = low.setting(node, "repeats", 1)
    assert repeats is not None
    tensor, order = low.value(low.input(node))
    times = [int(repeats[axis]) for axis in order]
    low.give(node.outputs[0], tiled(low, tensor, times), order)


def tiled(low: Lowering, tensor: Tensor, times: Sequence[int]) -> Tensor:
    shape = [size * count for size, count in zip(tensor.shape, times, strict=True)]
    return low.emit("TILE", [tensor, low.ints(list(times), "times")], shape)


@lowers("Constant", to="nothing", limits="floats and whole numbers")
def constant(low: Lowering, node: ir.Node) -> None:
    found = low.constant(node.outputs[0])
    if found is None:
        entry = next(iter(node.attributes.values()))
        if entry.type == ir.AttributeType.TENSOR:
            found = entry.value.numpy()
        elif entry.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
            found = np.asarray(entry.value, np.float32)
        elif entry.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
            found = np.asarray(entry.value, np.int64)
        else:
            raise refuse(node, f"a constant of {entry.type.name} is not supported")
        node.outputs[0].const_value = ir.tensor(found)


@lowers("ConstantOfShape", "Shape", "Size", "Range", "EyeLike", to="nothing", limits="of constants")
def folded(low: Lowering, node: ir.Node) -> None:
    """What only shapes decide, and no fold before this reached."""
    out = node.outputs[0]
    if node.op_type in ("Shape", "Size"):
        shape = low.shape(low.input(node))
        start, end = attribute(node, "start", 0), attribute(node, "end", len(shape))
        found = np.asarray(shape[start:end], np.int64)
        out.const_value = ir.tensor(found if node.op_type == "Shape" else np.prod(found))
        return
    if node.op_type == "EyeLike":
        rows, columns = low.shape(out)
        eye = np.eye(rows, columns, int(attribute(node, "k", 0)), dtype=low.dtype(out))
        out.const_value = ir.tensor(eye)
        return
    given = [low.constant(value) for value in node.inputs]
    if any(array is None for array in given):
        raise refuse(node, "its inputs are computed, not constant")
    if node.op_type == "ConstantOfShape":
        fill = attribute(node, "value")
        kind = np.zeros(1, np.float32) if fill is None else fill.numpy()
        assert given[0] is not None
        out.const_value = ir.tensor(np.full(given[0].astype(int).tolist(), kind.reshape(-1)[0]))
    else:
        first, last, step = (array.reshape(-1)[0] for array in given if array is not None)
        out.const_value = ir.tensor(np.arange(first, last, step, dtype=first.dtype))
