"""Slices, splits, joins, paddings and gathers of tensors."""

from typing import Any

import numpy as np
import onnx_ir as ir

from onmetal.converters.tflite.elementwise import common_order
from onmetal.converters.tflite.lowering import Lowering, lowers
from onmetal.converters.tflite.net import Tensor, constant
from onmetal.converters.tflite.nodes import attribute, refuse
from onmetal.converters.tflite.reshape import tiled


def strided(
    low: Lowering, tensor: Tensor, first: list[int], last: list[int], steps: list[int]
) -> Tensor:
    """A STRIDED_SLICE. `last`: exclusive; -1 with a negative step: down to index 0, inclusive."""
    shape = [len(range(*span)) for span in zip(first, last, steps, strict=True)]
    mask = sum(
        1 << axis
        for axis, (end, step) in enumerate(zip(last, steps, strict=True))
        if step < 0 and end < 0
    )
    ints = [low.ints(values, name) for values, name in ((first, "begin"), (last, "end"))]
    options: dict[str, Any] = {"endMask": mask} if mask else {}
    return low.emit("STRIDED_SLICE", [tensor, *ints, low.ints(steps, "strides")], shape, **options)


def part(low: Lowering, tensor: Tensor, place: int, first: int, size: int) -> Tensor:
    begin = [first if axis == place else 0 for axis in range(len(tensor.shape))]
    end = [first + size if axis == place else n for axis, n in enumerate(tensor.shape)]
    return strided(low, tensor, begin, end, [1] * len(begin))


def joined(low: Lowering, tensors: list[Tensor], place: int, name: str = "") -> Tensor:
    shape = list(tensors[0].shape)
    shape[place] = sum(tensor.shape[place] for tensor in tensors)
    return low.emit("CONCATENATION", tensors, shape, name=name, axis=place)


@lowers("Slice", to="STRIDED_SLICE", limits="constant starts, ends, axes and steps")
def slice_(low: Lowering, node: ir.Node) -> None:
    value = low.input(node)
    tensor, order = low.value(value)
    sizes, rank = low.shape(value), len(order)
    starts, ends = low.setting(node, "starts", 1), low.setting(node, "ends", 2)
    assert starts is not None and ends is not None
    axes = low.setting(node, "axes", 3)
    steps = low.setting(node, "steps", 4)
    chosen = low.axes(node, axes, rank) if axes is not None else list(range(len(starts)))
    begin, end, step = [0] * rank, list(sizes), [1] * rank
    for place, axis in enumerate(chosen):
        stride = 1 if steps is None else int(steps[place])
        span = slice(int(starts[place]), int(ends[place]), stride).indices(sizes[axis])
        begin[axis], end[axis], step[axis] = span
    if 0 in low.shape(node.outputs[0]):
        raise refuse(node, "its output is empty")
    result = strided(
        low, tensor, [begin[a] for a in order], [end[a] for a in order], [step[a] for a in order]
    )
    low.give(node.outputs[0], result, order)


@lowers("Split", to="SPLIT, SPLIT_V", limits="constant sizes")
def split(low: Lowering, node: ir.Node) -> None:
    tensor, order = low.value(low.input(node))
    place = order.index(int(attribute(node, "axis", 0)) % len(order))
    sizes = [low.shape(out)[order[place]] for out in node.outputs]
    parts = []
    for out, size in zip(node.outputs, sizes, strict=True):
        shape = tuple(size if axis == place else n for axis, n in enumerate(tensor.shape))
        parts.append(Tensor(low.name(f"{out.name}/part"), shape, tensor.dtype))
    if len(set(sizes)) == 1:
        low.emit_many("SPLIT", [low.ints(place), tensor], parts, numSplits=len(parts))
    else:
        inputs = [tensor, low.ints(sizes, "sizes"), low.ints(place)]
        low.emit_many("SPLIT_V", inputs, parts, numSplits=len(parts))
    for out, result in zip(node.outputs, parts, strict=True):
        low.give(out, result, order)


@lowers("Concat", to="CONCATENATION")
def concat(low: Lowering, node: ir.Node) -> None:
    values = [value for value in node.inputs if value is not None]
    rank = len(low.shape(values[0]))
    order = common_order(low, values, rank)
    place = order.index(int(attribute(node, "axis")) % rank)
    tensors = [low.arranged(v, order) for v in values if 0 not in low.shape(v)]
    result = joined(low, tensors, place)
    low.give(node.outputs[0], result, order)


@lowers(
    "Pad",
    to="PAD, PADV2, MIRROR_PAD, STRIDED_SLICE, TILE, CONCATENATION",
    limits="constant pads; modes constant, reflect and edge",
)
def pad(low: Lowering, node: ir.Node) -> None:
    """Negative pads become a STRIDED_SLICE first."""
    value = low.input(node)
    tensor, order = low.value(value)
    rank = len(order)
    pads = low.setting(node, "pads", 1)
    assert pads is not None
    axes_value = low.given(node, 3)
    axes = low.axes(node, low.constant(axes_value), rank) if axes_value else list(range(rank))
    sides = [[0, 0] for _ in range(rank)]
    for place, axis in enumerate(axes):
        sides[order.index(axis)] = [int(pads[place]), int(pads[place + len(axes)])]
    if any(side < 0 for pair in sides for side in pair):
        begin = [max(0, -before) for before, _ in sides]
        end = [n - max(0, -after) for n, (_, after) in zip(tensor.shape, sides, strict=True)]
        tensor = strided(low, tensor, begin, end, [1] * rank)
        sides = [[max(0, before), max(0, after)] for before, after in sides]
    mode = attribute(node, "mode", "constant")
    if mode == "constant":
        fill = low.setting(node, "value", 2)
        result = _filled(low, tensor, sides, 0.0 if fill is None else float(fill.reshape(-1)[0]))
    elif mode == "reflect":
        result = _grown(low, "MIRROR_PAD", [tensor], sides, mode=0)
    elif mode == "edge":
        result = tensor
        for place, (before, after) in enumerate(sides):
            result = _edges(low, result, place, before, after)
    else:
        raise refuse(node, f"mode {mode!r} is not supported")
    low.give(node.outputs[0], result, order)


def _grown(
    low: Lowering, kind: str, inputs: list[Tensor], sides: list[list[int]], **options: Any
) -> Tensor:
    shape = [n + sum(pair) for n, pair in zip(inputs[0].shape, sides, strict=True)]
    inputs = [inputs[0], low.ints(sides, "pads"), *inputs[1:]]
    return low.emit(kind, inputs, shape, **options)


def _filled(low: Lowering, tensor: Tensor, sides: list[list[int]], fill: float) -> Tensor:
    if fill == 0:
        return _grown(low, "PAD", [tensor], sides)
    return _grown(low, "PADV2", [tensor, low.like(tensor, fill)], sides)


def _edges(low: Lowering, tensor: Tensor, place: int, before: int, after: int) -> Tensor:
    """Pad an axis by repeating its outermost values."""
    parts = [tensor]
    if before:
        parts.insert(0, _repeated(low, part(low, tensor, place, 0, 1), place, before))
    if after:
        last = part(low, tensor, place, tensor.shape[place] - 1, 1)
        parts.append(_repeated(low, last, place, after))
    return joined(low, parts, place) if len(parts) > 1 else tensor


def _repeated(low: Lowering, tensor: Tensor, place: int, count: int) -> Tensor:
    times = [count if axis == place else 1 for axis in range(len(tensor.shape))]
    return tiled(low, tensor, times) if count > 1 else tensor


NOT_NEGATIVE = frozenset({"ArgMax", "ArgMin", "TopK", "Shape", "Size", "NonZero"})
MOVES = frozenset(
    {"Cast", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose"}
    | {"Unsqueeze"}
)
"""Operators whose output values are all values of their first input."""


def may_be_negative(value: ir.Value) -> bool:
    """Whether computed indices may be negative, which counts from the end. An input of the graph is
    assumed not to hold negative ones (docs/tflite.md)."""
    maker = value.producer()
    while maker is not None and maker.op_type in MOVES and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    return maker is not None and maker.op_type not in NOT_NEGATIVE


def counted_from_front(low: Lowering, index: Tensor, sizes: Tensor) -> Tensor:
    """Indices from 0 on, from indices where -1 stands for the last one; `sizes`: of the axes,
    shaped to be broadcast."""
    below = low.binary("LESS", index, low.like(index, 0), dtype=np.bool_)
    again = low.binary("ADD", index, sizes)
    return low.emit("SELECT_V2", [below, again, index], index.shape, dtype=index.dtype)


@lowers("Gather", to="GATHER", limits="indices in the graph's input must not be negative")
def gather(low: Lowering, node: ir.Node) -> None:
    value, index_value = low.input(node, 0), low.input(node, 1)
    tensor, order = low.value(value)
    rank = len(order)
    axis = int(attribute(node, "axis", 0)) % rank
    place = order.index(axis)
    indices = low.constant(index_value)
    if indices is not None:
        indices = np.where(indices < 0, indices + low.shape(value)[axis], indices)
        index = low.ints(indices, "indices")
    else:
        index = low.plain(index_value)
        if may_be_negative(index_value):
            size = low.like(index, low.shape(value)[axis])
            index = counted_from_front(low, index, size)
    extra = len(index.shape)
    shape = (*tensor.shape[:place], *index.shape, *tensor.shape[place + 1 :])
    new: list[int] = []
    for label in order:
        if label == axis:
            new += range(axis, axis + extra)
        else:
            new.append(label if label < axis else label + extra - 1)
    result = low.emit("GATHER", [tensor, index], shape, axis=place)
    low.give(node.outputs[0], result, tuple(new))


@lowers(
    "GatherND",
    to="GATHER_ND",
    limits="batch_dims=0; indices in the graph's input must not be negative",
)
def gather_nd(low: Lowering, node: ir.Node) -> None:
    if attribute(node, "batch_dims", 0):
        raise refuse(node, "batch_dims other than 0 is not supported")
    value, index_value = low.input(node, 0), low.input(node, 1)
    indices = low.constant(index_value)
    if indices is not None:
        sizes = np.asarray(low.shape(value)[: indices.shape[-1]])
        index = low.ints(np.where(indices < 0, indices + sizes, indices), "indices")
    else:
        index = low.plain(index_value)
        if may_be_negative(index_value):
            sizes = np.array(low.shape(value)[: index.shape[-1]], index.dtype)
            index = counted_from_front(low, index, constant(low.name("sizes"), sizes))
    out = node.outputs[0]
    low.give(out, low.emit("GATHER_ND", [low.plain(value), index], low.shape(out)))


@lowers("OneHot", to="ONE_HOT, LESS, ADD, SELECT_V2", limits="constant depth and values")
def one_hot(low: Lowering, node: ir.Node) -> None:
    depth, values = low.constant(low.input(node, 1)), low.constant(low.input(node, 2))
    if depth is None or values is None:
        raise refuse(node, "its depth and values are computed, not constant")
    out = node.outputs[0]
    index = low.plain(low.input(node))
    count = low.like(index, int(depth.reshape(-1)[0]))
    if index.data is not None:
        index = constant(
            low.name("indices"), np.where(index.data < 0, index.data + count.data, index.data)
        )
    else:
        index = counted_from_front(low, index, count)
    rank = len(low.shape(out))
    axis = int(attribute(node, "axis", -1)) % rank
    scalars = [low.like(Tensor("", (), values.dtype), values[place]) for place in (1, 0)]
    result = low.emit(
        "ONE_HOT",
        [index, low.ints(int(depth.reshape(-1)[0])), *scalars],
        low.shape(out),
        dtype=values.dtype,
        axis=axis,
    )
    low.give(out, result)
