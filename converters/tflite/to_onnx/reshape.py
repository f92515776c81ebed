"""Operators that change axes and move whole blocks."""

import numpy as np

from onmetal.converters.tflite.net import Op, Shape, Tensor
from onmetal.converters.tflite.to_onnx.elementwise import common_order, operands
from onmetal.converters.tflite.to_onnx.fused import finish
from onmetal.converters.tflite.to_onnx.graph import (
    NCHW,
    Graph,
    Order,
    permuted,
    plain,
)
from onmetal.converters.tflite.to_onnx.padding import in_bytes
from onmetal.converters.tflite.to_onnx.rules import axis_of, integers, refuse, taken, writes


@writes("RESHAPE", "SQUEEZE", "EXPAND_DIMS", to="Reshape")
def reshape(graph: Graph, op: Op) -> None:
    """To the shape that the file has for the output."""
    tensor, out = taken(op, 0), op.outputs[0]
    if tensor.size != out.size:
        raise refuse(op, f"{list(tensor.shape)} cannot become {list(out.shape)}")
    order, new_order = graph.order(tensor), plain(out)
    if _only_rows_are_read(graph, tensor, out):
        # The columns keep the order in which they are stored; the weights after it follow.
        columns = np.arange(tensor.size // tensor.shape[0]).reshape(tensor.shape[1:])
        perm = [axis - 1 for axis in order[1:]]
        graph.scrambled[out] = columns.transpose(perm).reshape(-1)
    elif (kept := _kept_order(tensor, out, order)) is not None:
        new_order = kept
    else:
        order = plain(tensor)
    name = graph.real(tensor, order)
    shape = permuted(out.shape, new_order)
    if permuted(tensor.shape, order) != shape:
        name = graph.emit("Reshape", [name, graph.ints(shape)])
    graph.give(out, name, new_order)


def _long(shape: Shape, order: Order) -> list[int]:
    """The axes longer than 1, as they are stored."""
    return [axis for axis in order if shape[axis] > 1]


def _kept_order(tensor: Tensor, out: Tensor, order: Order) -> Order | None:
    """The order in which the output is stored where only axes of length 1 come or go, so that the
    numbers stay where they are: the file's order, channels first, or new axes in front; None where
    others change."""
    before, after = (_long(t.shape, plain(t)) for t in (tensor, out))
    if [tensor.shape[axis] for axis in before] != [out.shape[axis] for axis in after]:
        return None
    renamed = dict(zip(before, after, strict=True))
    stored = [renamed[axis] for axis in _long(tensor.shape, order)]
    rank = len(out.shape)
    candidates = [plain(out)]
    if rank > 2:
        candidates.append((0, rank - 1, *range(1, rank - 1)))
    candidates.append((*(axis for axis in plain(out) if out.shape[axis] == 1), *stored))
    return next(each for each in candidates if _long(out.shape, each) == stored)


def _same_order(tensor: Tensor, order: Order) -> bool:
    """Whether the numbers are stored as in the file, as only axes of length 1 were moved."""
    long = _long(tensor.shape, order)
    return long == sorted(long)


def _only_rows_are_read(graph: Graph, tensor: Tensor, out: Tensor) -> bool:
    """Whether an image in another order is flattened for matrices with constant weights alone."""
    order = graph.order(tensor)
    takers = graph.takers.get(out, [])
    return (
        not _same_order(tensor, order)
        and order[0] == 0
        and out.shape == (tensor.shape[0], tensor.size // max(1, tensor.shape[0]))
        and out not in graph.net.outputs
        and bool(takers)
        and all(
            taker.kind == "FULLY_CONNECTED"
            and taker.inputs[0] is out
            and taker.inputs[1] is not None
            and taker.inputs[1] is not out
            and graph.is_known(taker.inputs[1])
            and taker.inputs[1].shape[1:] == out.shape[1:]
            for taker in takers
        )
    )


@writes("TRANSPOSE", to="none, or Transpose where an order is needed", limits="a constant order")
def transpose(graph: Graph, op: Op) -> None:
    tensor, out = taken(op, 0), op.outputs[0]
    perm = [int(axis) for axis in integers(graph, op, 1, "order of axes").reshape(-1)]
    name, order = graph.value(tensor)
    if sorted(axis % max(1, len(perm)) for axis in perm) != list(range(len(order))):
        raise refuse(op, f"the order {perm} does not fit {len(order)} axes")
    perm = [axis % len(perm) for axis in perm]
    graph.keep(out, name, tuple(perm.index(axis) for axis in order))


@writes("CONCATENATION", to="Concat")
def concatenation(graph: Graph, op: Op) -> None:
    rank = len(op.outputs[0].shape)
    axis = axis_of(op, int(op.options["axis"]), rank)
    parts = [tensor for tensor in op.taken if tensor.size]
    order = common_order(graph, parts, rank)
    names = operands(graph, parts, order)
    result = graph.emit("Concat", names, axis=order.index(axis)) if len(names) > 1 else names[0]
    finish(graph, op, result, order)


@writes("PACK", to="Reshape, Concat")
def pack(graph: Graph, op: Op) -> None:
    out = op.outputs[0]
    axis = axis_of(op, int(op.options.get("axis", 0)), len(out.shape))
    one = graph.ints([*out.shape[:axis], 1, *out.shape[axis + 1 :]])
    names = [graph.emit("Reshape", [graph.real(tensor), one]) for tensor in op.taken]
    graph.give(out, graph.emit("Concat", names, axis=axis))


@writes("UNPACK", to="Split, Reshape")
def unpack(graph: Graph, op: Op) -> None:
    tensor = taken(op, 0)
    axis = axis_of(op, int(op.options.get("axis", 0)), len(tensor.shape))
    count = len(op.outputs)
    parts = _split(graph, graph.real(tensor), axis, [1] * count)
    for out, part in zip(op.outputs, parts, strict=True):
        graph.give(out, graph.emit("Reshape", [part, graph.ints(out.shape)]))


def _split(graph: Graph, name: str, axis: int, sizes: list[int]) -> list[str]:
    if len(sizes) == 1:
        return [name]
    return graph.emit_all("Split", [name, graph.ints(sizes)], len(sizes), axis=axis)


@writes("SPLIT", "SPLIT_V", to="Split", limits="a constant axis")
def split(graph: Graph, op: Op) -> None:
    """Into the sizes that the outputs have in the file."""
    value, place = (1, 0) if op.kind == "SPLIT" else (0, 2)
    tensor = taken(op, value)
    listed = integers(graph, op, place, "axis").reshape(-1)
    axis = axis_of(op, int(listed[0]), len(tensor.shape))
    sizes = [out.shape[axis] for out in op.outputs]
    if sum(sizes) != tensor.shape[axis]:
        raise refuse(op, f"sizes {sizes} do not fit {list(tensor.shape)}")
    order = graph.order(tensor)
    parts = _split(graph, graph.real(tensor, order), order.index(axis), sizes)
    for out, part in zip(op.outputs, parts, strict=True):
        graph.give(out, part, order)


@writes("BROADCAST_TO", to="Expand")
def broadcast_to(graph: Graph, op: Op) -> None:
    out = op.outputs[0]
    inputs = [graph.real(taken(op, 0)), graph.ints(out.shape)]
    graph.give(out, graph.emit("Expand", inputs))


@writes("TILE", to="Tile", limits="constant repeats")
def tile(graph: Graph, op: Op) -> None:
    tensor = taken(op, 0)
    times = integers(graph, op, 1, "number of repeats").reshape(-1)
    order = graph.order(tensor)
    inputs = [graph.real(tensor, order), graph.ints([times[axis] for axis in order])]
    graph.give(op.outputs[0], graph.emit("Tile", inputs), order)


@writes("DEPTH_TO_SPACE", "SPACE_TO_DEPTH", to="DepthToSpace, SpaceToDepth")
def blocks(graph: Graph, op: Op) -> None:
    """TFLite's order of channels is ONNX's DCR."""
    size = int(op.options["blockSize"])
    name = graph.real(taken(op, 0), NCHW)
    if op.kind == "DEPTH_TO_SPACE":
        result = graph.emit("DepthToSpace", [name], blocksize=size, mode="DCR")
    else:
        result = graph.emit("SpaceToDepth", [name], blocksize=size)
    graph.give(op.outputs[0], result, NCHW)


@writes("SPACE_TO_BATCH_ND", to="Pad, Reshape, Transpose", limits="constant sizes")
def space_to_batch(graph: Graph, op: Op) -> None:
    """[n, s..., rest] -> [n * b..., s / b..., rest], as tf.space_to_batch_nd defines it."""
    tensor, out = taken(op, 0), op.outputs[0]
    sizes = [int(n) for n in integers(graph, op, 1, "block size").reshape(-1)]
    pads = integers(graph, op, 2, "padding").reshape(-1, 2)
    count, name = len(sizes), graph.real(tensor)
    rest = tensor.shape[1 + count :]
    padded = [n + int(sum(pair)) for n, pair in zip(tensor.shape[1:], pads, strict=False)]
    if pads.any():
        zeros = [0] * len(rest)
        every = graph.ints([0, *pads[:, 0], *zeros, 0, *pads[:, 1], *zeros])
        if in_bytes(tensor):
            stored = [graph.integers(tensor, plain(tensor)), every, graph.grid(tensor)[1]]
            name = graph.dequantized(graph.emit("Pad", stored), tensor)
        else:
            name = graph.emit("Pad", [name, every, graph.like(tensor, 0)])
    cut = [part for n, size in zip(padded, sizes, strict=True) for part in (n // size, size)]
    name = graph.emit("Reshape", [name, graph.ints([tensor.shape[0], *cut, *rest])])
    inner, outer = range(2, 2 * count + 1, 2), range(1, 2 * count, 2)
    last = range(2 * count + 1, 2 * count + 1 + len(rest))
    name = graph.emit("Transpose", [name], perm=[*inner, 0, *outer, *last])
    graph.give(out, graph.emit("Reshape", [name, graph.ints(out.shape)]))


@writes("BATCH_TO_SPACE_ND", to="Reshape, Transpose, Slice", limits="constant sizes")
def batch_to_space(graph: Graph, op: Op) -> None:
    """The reverse of SPACE_TO_BATCH_ND, cropped."""
    tensor, out = taken(op, 0), op.outputs[0]
    sizes = [int(n) for n in integers(graph, op, 1, "block size").reshape(-1)]
    crops = integers(graph, op, 2, "crops").reshape(-1, 2)
    count = len(sizes)
    rest = tensor.shape[1 + count :]
    batch = tensor.shape[0] // int(np.prod(sizes))
    spans = tensor.shape[1 : 1 + count]
    name = graph.emit("Reshape", [graph.real(tensor), graph.ints([*sizes, batch, *spans, *rest])])
    pairs = [place for axis in range(count) for place in (count + 1 + axis, axis)]
    last = range(2 * count + 1, 2 * count + 1 + len(rest))
    name = graph.emit("Transpose", [name], perm=[count, *pairs, *last])
    whole = [n * size for n, size in zip(spans, sizes, strict=True)]
    name = graph.emit("Reshape", [name, graph.ints([batch, *whole, *rest])])
    if crops.any():
        ends = [n - int(pair[1]) for n, pair in zip(whole, crops, strict=True)]
        axes = list(range(1, count + 1))
        name = graph.emit(
            "Slice", [name, graph.ints(crops[:, 0]), graph.ints(ends), graph.ints(axes)]
        )
    graph.give(out, name)


@writes("SHAPE", "RANK", to="a constant")
def shape(graph: Graph, op: Op) -> None:
    tensor, out = taken(op, 0), op.outputs[0]
    value = tensor.shape if op.kind == "SHAPE" else len(tensor.shape)
    graph.give(out, graph.constant(np.asarray(value, out.dtype).reshape(out.shape)))


@writes("BROADCAST_ARGS", to="a constant", limits="constant shapes")
def broadcast_args(graph: Graph, op: Op) -> None:
    shapes = [tuple(integers(graph, op, place, "shape").reshape(-1)) for place in (0, 1)]
    out = op.outputs[0]
    graph.give(out, graph.constant(np.asarray(np.broadcast_shapes(*shapes), out.dtype)))


@writes("FILL", to="Expand", limits="a constant shape")
def fill(graph: Graph, op: Op) -> None:
    """With a constant number the result is a constant."""
    number, out = taken(op, 1), op.outputs[0]
    array = graph.array(number)
    if array is None:
        inputs = [graph.real(number), graph.ints(out.shape)]
        return graph.give(out, graph.emit("Expand", inputs))
    filled = np.full(out.shape, array.reshape(-1)[0], array.dtype)
    graph.keep(out, graph.constant(filled, name=f"{out.name}/filled"), plain(out))


@writes("RANGE", to="a constant", limits="constant bounds")
def range_(graph: Graph, op: Op) -> None:
    bounds = [graph.array(taken(op, place)) for place in range(3)]
    if any(bound is None for bound in bounds):
        raise refuse(op, "its bounds are computed, which is not supported")
    first, last, step = (np.asarray(bound).reshape(-1)[0] for bound in bounds)
    out = op.outputs[0]
    graph.give(out, graph.constant(np.arange(first, last, step).astype(out.dtype)))
