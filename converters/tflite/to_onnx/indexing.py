"""Slices, and what is chosen or written by indices."""

from typing import NamedTuple

import numpy as np

from onmetal.converters.tflite.net import Op, Tensor
from onmetal.converters.tflite.to_onnx.elementwise import cast_to
from onmetal.converters.tflite.to_onnx.graph import Graph, Order, is_quantized
from onmetal.converters.tflite.to_onnx.rules import axis_of, integers, refuse, taken, writes

FIRST = np.iinfo(np.int64).min
"""An end before the first element, for steps backwards."""
INT64 = np.dtype(np.int64)


class Span(NamedTuple):
    """A slice along one axis of the input."""

    axis: int
    start: int
    end: int
    step: int


def sliced(graph: Graph, name: str, order: Order, spans: list[Span]) -> str:
    """The value itself where there are no spans. `spans`: by TFLite's axes."""
    if not spans:
        return name
    starts, ends, steps = ([span[part] for span in spans] for part in (1, 2, 3))
    axes = [order.index(span.axis) for span in spans]
    lists = [graph.ints(entries) for entries in (starts, ends, axes, steps)]
    return graph.emit("Slice", [name, *lists])


@writes("SLICE", to="Slice", limits="constant begin and size")
def slice_(graph: Graph, op: Op) -> None:
    """A size of -1 reaches to the end."""
    tensor, out = taken(op, 0), op.outputs[0]
    begins = integers(graph, op, 1, "begin").reshape(-1)
    sizes = integers(graph, op, 2, "size").reshape(-1)
    spans = []
    for axis, (begin, size) in enumerate(zip(begins, sizes, strict=True)):
        length = tensor.shape[axis]
        end = length if size < 0 else int(begin + size)
        if (begin, end) != (0, length):
            spans.append(Span(axis, int(begin), end, 1))
    order = graph.order(tensor)
    graph.give(out, sliced(graph, graph.real(tensor, order), order, spans), order)


def _spans(graph: Graph, op: Op) -> tuple[list[Span], bool]:
    """-> the slices of a STRIDED_SLICE, and whether it adds or drops axes. The masks are those of
    tf.strided_slice."""
    tensor = taken(op, 0)
    lists = [integers(graph, op, 1 + n, part) for n, part in enumerate(("begin", "end", "strides"))]
    begins, ends, steps = ([int(n) for n in entries.reshape(-1)] for entries in lists)

    def masked(name: str, place: int) -> bool:
        return bool(int(op.options.get(f"{name}Mask", 0)) >> place & 1)

    spans: list[Span] = []
    axis, changed, count = 0, False, len(begins)
    for place in range(count):
        if masked("ellipsis", place):
            later = sum(not masked("newAxis", other) for other in range(place + 1, count))
            axis = len(tensor.shape) - later
            continue
        if masked("newAxis", place):
            changed = True
            continue
        if axis >= len(tensor.shape):
            raise refuse(op, f"it has more slices than {len(tensor.shape)} axes")
        size, step = tensor.shape[axis], steps[place]
        begin, end = begins[place], ends[place]
        if op.options.get("offset"):
            end += begin
        if masked("shrinkAxis", place):
            changed, begin = True, begin + size if begin < 0 else begin
            spans.append(Span(axis, begin, begin + 1, 1))
        else:
            first, last, step = slice(
                None if masked("begin", place) else begin,
                None if masked("end", place) else end,
                step,
            ).indices(size)
            if (first, last, step) != (0, size, 1):
                spans.append(Span(axis, first, last if last >= 0 else FIRST, step))
        axis += 1
    return spans, changed


@writes("STRIDED_SLICE", to="Slice, Reshape", limits="constant begin, end and strides")
def strided_slice(graph: Graph, op: Op) -> None:
    tensor, out = taken(op, 0), op.outputs[0]
    spans, changed = _spans(graph, op)
    order = tuple(range(len(tensor.shape))) if changed else graph.order(tensor)
    result = sliced(graph, graph.real(tensor, order), order, spans)
    if changed:
        result = graph.emit("Reshape", [result, graph.ints(out.shape)])
    graph.give(out, result, order if not changed else None)


@writes("REVERSE_V2", to="Slice", limits="constant axes")
def reverse(graph: Graph, op: Op) -> None:
    tensor = taken(op, 0)
    listed = integers(graph, op, 1, "axes").reshape(-1)
    axes = [axis_of(op, int(axis), len(tensor.shape)) for axis in listed]
    spans = [Span(axis, tensor.shape[axis] - 1, FIRST, -1) for axis in axes]
    order = graph.order(tensor)
    graph.give(op.outputs[0], sliced(graph, graph.real(tensor, order), order, spans), order)


@writes("REVERSE_SEQUENCE", to="ReverseSequence", limits="the first two axes")
def reverse_sequence(graph: Graph, op: Op) -> None:
    time, batch = int(op.options["seqDim"]), int(op.options["batchDim"])
    if {time, batch} != {0, 1}:
        raise refuse(op, f"seqDim {time} with batchDim {batch} is not supported: 0 and 1 are")
    lengths = cast_to(graph, graph.stored(taken(op, 1)), INT64)
    inputs = [graph.real(taken(op, 0)), lengths]
    result = graph.emit("ReverseSequence", inputs, time_axis=time, batch_axis=batch)
    graph.give(op.outputs[0], result)


def _looked_up(graph: Graph, op: Op, table: Tensor, indices: str, axis: int) -> None:
    """Gather along an axis of a constant; integers are dequantized after it, not before."""
    out = op.outputs[0]
    source = graph.aliases.get(table, table)
    if is_quantized(source) and not source.per_channel:
        found = graph.emit("Gather", [graph.stored(source), indices], axis=axis)
        parts = [found, *graph.grid(source, source.dtype)]
        return graph.give(out, graph.emit("DequantizeLinear", parts))
    graph.give(out, graph.emit("Gather", [graph.real(table), indices], axis=axis))


@writes("GATHER", to="Gather, GatherND, Transpose")
def gather(graph: Graph, op: Op) -> None:
    tensor, places, out = taken(op, 0), taken(op, 1), op.outputs[0]
    rank, batch = len(tensor.shape), int(op.options.get("batchDims", 0))
    axis = axis_of(op, int(op.options.get("axis", 0)), rank)
    indices = graph.stored(places)
    if batch:
        return _gather_of_batches(graph, op, axis, batch % max(1, len(places.shape)))
    if graph.is_constant(tensor):
        return _looked_up(graph, op, tensor, indices, axis)
    order = graph.order(tensor) if len(places.shape) == 1 else tuple(range(rank))
    inputs = [graph.real(tensor, order), indices]
    result = graph.emit("Gather", inputs, axis=order.index(axis))
    graph.give(out, result, order if len(places.shape) == 1 else None)


def _gather_of_batches(graph: Graph, op: Op, axis: int, batch: int) -> None:
    """With the axis moved behind those of the batch, GatherND finds [batch, indices, rest]; then
    the axes before `axis` go in front of the indices' axes."""
    tensor, places = taken(op, 0), taken(op, 1)
    rank, count = len(tensor.shape), len(places.shape) - batch
    rest = [other for other in range(batch, rank) if other != axis]
    name = graph.real(tensor, (*range(batch), axis, *rest))
    each = graph.ints([*places.shape, 1])
    indices = cast_to(graph, graph.emit("Reshape", [graph.stored(places), each]), INT64)
    result = graph.emit("GatherND", [name, indices], batch_dims=batch)
    before = axis - batch
    stored = [
        *range(batch),
        *range(batch + before, batch + before + count),
        *range(batch, batch + before),
        *range(batch + before + count, batch + count + len(rest)),
    ]
    graph.give(op.outputs[0], result, tuple(stored))


@writes("EMBEDDING_LOOKUP", to="Gather")
def embedding(graph: Graph, op: Op) -> None:
    indices, table = taken(op, 0), taken(op, 1)
    _looked_up(graph, op, table, graph.stored(indices), 0)


@writes("GATHER_ND", to="GatherND")
def gather_nd(graph: Graph, op: Op) -> None:
    indices = cast_to(graph, graph.stored(taken(op, 1)), INT64)
    result = graph.emit("GatherND", [graph.real(taken(op, 0)), indices])
    graph.give(op.outputs[0], result)


@writes("SCATTER_ND", to="ScatterND")
def scatter_nd(graph: Graph, op: Op) -> None:
    """Into zeros; what is written twice is added."""
    out = op.outputs[0]
    indices = cast_to(graph, graph.stored(taken(op, 0)), INT64)
    zeros = np.zeros(out.shape, np.float32 if is_quantized(out) else out.dtype)
    inputs = [graph.constant(zeros), indices, graph.real(taken(op, 1))]
    graph.give(out, graph.emit("ScatterND", inputs, reduction="add"))


@writes("DYNAMIC_UPDATE_SLICE", to="ScatterND, Clip, Add")
def update_slice(graph: Graph, op: Op) -> None:
    """The start is moved so that the update is inside."""
    tensor, update = taken(op, 0), taken(op, 1)
    start = cast_to(graph, graph.stored(taken(op, 2)), INT64)
    most = np.subtract(tensor.shape, update.shape)
    start = graph.emit("Min", [start, graph.ints(most)])
    start = graph.emit("Max", [start, graph.ints(np.zeros_like(most))])
    grid = np.moveaxis(np.indices(update.shape), 0, -1)
    places = graph.emit("Add", [graph.ints(grid), start])
    inputs = [graph.real(tensor), places, graph.real(update)]
    graph.give(op.outputs[0], graph.emit("ScatterND", inputs))


@writes("ONE_HOT", to="Equal, Where", limits="a constant depth")
def one_hot(graph: Graph, op: Op) -> None:
    """Indices outside of the depth give `off` everywhere, as in TFLite."""
    places, out = taken(op, 0), op.outputs[0]
    depth = int(integers(graph, op, 1, "depth").reshape(-1)[0])
    rank = len(places.shape) + 1
    axis = axis_of(op, int(op.options.get("axis", -1)), rank)
    wide = [*places.shape[:axis], 1, *places.shape[axis:]]
    indices = graph.emit("Reshape", [graph.stored(places), graph.ints(wide)])
    line = [1] * rank
    line[axis] = depth
    numbers = graph.constant(np.arange(depth).reshape(line), places.dtype)
    chosen = graph.emit("Equal", [indices, numbers])
    values = [graph.real(taken(op, place)) for place in (2, 3)]
    graph.give(out, graph.emit("Where", [chosen, *values]))
