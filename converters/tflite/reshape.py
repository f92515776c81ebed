"""Operators that change the shape or the order of axes; most need no operator in TFLite."""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.lowering import NHWC, Lowering, Order, Value, lowers
from onmetal.converters.tflite.net import Shape, Tensor
from onmetal.converters.tflite.nodes import attribute, refuse

Group = tuple[list[int], list[int]]
"""Axes of the old and axes of the new shape that hold the same numbers in the same order; none of
length 1."""


def groups(before: Shape, after: Shape) -> list[Group] | None:
    """The smallest groups of axes that describe a reshape; None for empty tensors."""
    if 0 in before or 0 in after:
        return None
    left = [axis for axis, size in enumerate(before) if size > 1]
    right = [axis for axis, size in enumerate(after) if size > 1]
    pairs: list[Group] = []
    i = j = 0
    while i < len(left) or j < len(right):
        before_axes, after_axes = [left[i]], [right[j]]
        i, j = i + 1, j + 1
        while (a := math.prod(before[x] for x in before_axes)) != (
            b := math.prod(after[x] for x in after_axes)
        ):
            if a < b:
                before_axes.append(left[i])
                i += 1
            else:
                after_axes.append(right[j])
                j += 1
        pairs.append((before_axes, after_axes))
    return pairs


def _adjacent(order: Order, axis_groups: list[Group]) -> bool:
    """Whether each group's axes stand side by side in the stored order, ascending."""
    for axes, _ in axis_groups:
        first = order.index(axes[0])
        if list(order[first : first + len(axes)]) != axes:
            return False
    return True


def _grouped_order(order: Order, axis_groups: list[Group], rank: int) -> Order:
    """The stored order with the axes of each group side by side: at the place of the group's last
    axis if that gives the reshaped tensor the order that most operators need (channels last for
    four axes, else ONNX's), and otherwise at the place of its first axis."""
    first: list[int] = []
    last: list[int] = []
    for place, axis in enumerate(order):
        group = next((axes for axes, _ in axis_groups if axis in axes), [axis])
        if axis not in first:
            first += group
        if not set(group) & set(order[place + 1 :]):
            last += group
    target = NHWC if rank == 4 else tuple(range(rank))
    fits = _reshaped_order(tuple(last), axis_groups, rank) == target
    return tuple(last if fits else first)


def _reshaped_order(order: Order, axis_groups: list[Group], rank: int) -> Order:
    """The stored order of the new axes. Axes of length 1 are in their ONNX places if the others are
    in ONNX order, else in front."""
    long: list[int] = []
    for axis in order:
        for old_axes, new_axes in axis_groups:
            if axis == old_axes[0]:
                long += new_axes
    if long == sorted(long):
        return tuple(range(rank))
    return (*(axis for axis in range(rank) if axis not in long), *long)


def reshape(low: Lowering, value: ir.Value, out: ir.Value) -> Value:
    """The value in the output's shape, with a TRANSPOSE only where it cannot be avoided."""
    before, after = low.shape(value), low.shape(out)
    tensor, order = low.value(value)
    axis_groups = groups(before, after)
    if axis_groups is None:
        return Value(low.reshaped(low.plain(value), after), tuple(range(len(after))))
    long = tuple(axis for axis in order if before[axis] > 1)
    if not _adjacent(long, axis_groups):
        long = _grouped_order(long, axis_groups, len(after))
        short = tuple(axis for axis in order if before[axis] == 1)
        tensor = low.arranged(value, (*short, *long))
    new = _reshaped_order(long, axis_groups, len(after))
    shape = [after[axis] for axis in new]
    return Value(low.reshaped(tensor, shape, name=f"{out.name}/shaped"), new)


def _give(low: Lowering, out: ir.Value, value: Value) -> None:
    low.values[out] = value


def _flattens(low: Lowering, value: ir.Value, out: ir.Value) -> bool:
    """Whether all consumers of the output [n, k] are products by constants, so that their weights
    can be reordered instead of the flattened tensor."""
    before, after = low.shape(value), low.shape(out)
    if len(after) != 2 or before[:1] != after[:1] or out in low.outputs or not out.uses():
        return False
    if low.order(value)[0] != 0:
        return False
    for use in out.uses():
        is_left_factor = use.node.op_type in ("Gemm", "MatMul") and use.idx == 0
        if not is_left_factor or attribute(use.node, "transA", 0):
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
    axis_groups = groups(before, after)
    long = tuple(axis for axis in order if before[axis] > 1)
    if axis_groups is not None and not _adjacent(long, axis_groups) and _flattens(low, value, out):
        places = np.arange(math.prod(before[1:])).reshape(before[1:])
        stored = places.transpose([axis - 1 for axis in order if axis != 0])
        low.scrambled[out] = stored.reshape(-1)
        result = low.reshaped(tensor, after, name=f"{out.name}/flat")
        low.values[out] = Value(result, (0, 1))
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
    """TFLite's mode is DCR. For CRD the channels are reordered first."""
    block = int(attribute(node, "blocksize"))
    tensor = low.arranged(low.input(node), (0, 2, 3, 1))
    batch, height, width, channels = tensor.shape
    depth = channels // (block * block)
    if attribute(node, "mode", "DCR") == "CRD":
        places = np.arange(channels).reshape(depth, block * block).T.reshape(-1)
        if block > 1 and depth > 1:
            index = low.ints(places, "channels")
            tensor = low.emit("GATHER", [tensor, index], tensor.shape, axis=3)
    shape = (batch, height * block, width * block, depth)
    result = low.emit("DEPTH_TO_SPACE", [tensor], shape, blockSize=block)
    low.give(node.outputs[0], result, (0, 2, 3, 1))


@lowers("SpaceToDepth", to="SPACE_TO_DEPTH")
def space_to_depth(low: Lowering, node: ir.Node) -> None:
    block = int(attribute(node, "blocksize"))
    tensor = low.arranged(low.input(node), (0, 2, 3, 1))
    batch, height, width, channels = tensor.shape
    shape = (batch, height // block, width // block, channels * block * block)
    result = low.emit("SPACE_TO_DEPTH", [tensor], shape, blockSize=block)
    low.give(node.outputs[0], result, (0, 2, 3, 1))


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
    result = low.emit("BROADCAST_TO", [tensor, low.ints(shape, "shape")], shape)
    low.give(out, result, order)


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
    array = low.constant(node.outputs[0])
    if array is None:
        entry = next(iter(node.attributes.values()))
        if entry.type == ir.AttributeType.TENSOR:
            array = entry.value.numpy()
        elif entry.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
            array = np.asarray(entry.value, np.float32)
        elif entry.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
            array = np.asarray(entry.value, np.int64)
        else:
            raise refuse(node, f"a constant of {entry.type.name} is not supported")
        node.outputs[0].const_value = ir.tensor(array)


@lowers("ConstantOfShape", "Shape", "Size", "Range", "EyeLike", to="nothing", limits="of constants")
def folded(low: Lowering, node: ir.Node) -> None:
    """Operators whose output depends only on shapes or constants, but was not folded before."""
    out = node.outputs[0]
    if node.op_type in ("Shape", "Size"):
        shape = low.shape(low.input(node))
        start, end = attribute(node, "start", 0), attribute(node, "end", len(shape))
        sizes = np.asarray(shape[start:end], np.int64)
        out.const_value = ir.tensor(sizes if node.op_type == "Shape" else np.prod(sizes))
        return
    if node.op_type == "EyeLike":
        rows, columns = low.shape(out)
        eye = np.eye(rows, columns, int(attribute(node, "k", 0)), dtype=low.dtype(out))
        out.const_value = ir.tensor(eye)
        return
    arrays = [low.constant(value) for value in node.inputs]
    if any(array is None for array in arrays):
        raise refuse(node, "its inputs are computed, not constant")
    if node.op_type == "ConstantOfShape":
        fill = attribute(node, "value")
        kind = np.zeros(1, np.float32) if fill is None else fill.numpy()
        assert arrays[0] is not None
        out.const_value = ir.tensor(np.full(arrays[0].astype(int).tolist(), kind.reshape(-1)[0]))
    else:
        first, last, step = (array.reshape(-1)[0] for array in arrays if array is not None)
        out.const_value = ir.tensor(np.arange(first, last, step, dtype=first.dtype))
