"""Where a microcontroller's RAM goes: TFLite Micro's plan of a graph's buffers over time.

Its arena has two ends. The head holds what an inference needs for a while (activations, kernels'
scratch memory), planned once so that what is never needed together shares bytes; the tail holds
what stays (structures, per-channel multipliers, variable tensors). Only the head is planned.

Rules read at https://github.com/tensorflow/tflite-micro, commit 90b983c2: the lifetimes of tensors
in micro_allocation_info.cc, offsets in memory_planner/greedy_memory_planner.cc, scratch memory in
each kernel's Prepare, offsets that a file states in micro_allocator.cc. Not followed: control flow
(net.read refuses it), DETECTION_POSTPROCESS's scratch, variable tensors with offsets of their own.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from msgspec import Struct

from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.parsing import read, text

ALIGNMENT = 16
"""Bytes; TFLite Micro's MicroArenaBufferAlignment."""
UNUSED = -1
"""Stands for the operator's number, where no operator takes or gives the tensor."""

Scratch = Mapping[int, Sequence[int]]
"""Number of an operator, from 0 -> bytes of each scratch buffer that its kernel asks for."""


class Buffer(Struct, frozen=True):
    """The memory of a tensor, or a kernel's scratch memory. It is live while operators `first` to
    `last` run, counted from 1; inputs are live from 0, before the first operator."""

    name: str
    size_bytes: int
    """Rounded up to ALIGNMENT."""
    first: int
    last: int
    offset: int

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes

    def lives(self, time: int) -> bool:
        return self.first <= time <= self.last


class Peak(Struct, frozen=True):
    """The operator at which most bytes are live."""

    number: int
    """From 0."""
    kind: str
    output: str
    """The name of its first output."""
    live_bytes: int


class Plan(Struct, frozen=True):
    buffers: tuple[Buffer, ...]
    head_bytes: int
    """At least the live bytes at the peak; more where buffers of different lifetimes leave gaps."""
    peak: Peak | None
    """None: the graph has no operators."""

    def live(self, time: int) -> list[Buffer]:
        return [buffer for buffer in self.buffers if buffer.lives(time)]

    def live_bytes(self, time: int) -> int:
        return sum(buffer.size_bytes for buffer in self.live(time))


class Wanted(NamedTuple):
    """A buffer to be placed."""

    name: str
    size: int
    first: int
    last: int
    given: int | None = None
    """Its offset, where the file states one."""


def plan(
    net: Net,
    scratch: Scratch | None = None,
    order: Sequence[Tensor] | None = None,
    given: Mapping[Tensor, int] | None = None,
) -> Plan:
    """The plan that TFLite Micro makes of the graph.

    `scratch`: what kernels ask for (None: TFLite Micro's reference kernels, `reference`). `order`:
    the tensors in the file's order, which decides between buffers of one size (None: the order of
    net.write). `given`: the offsets that the file's metadata states (`offline`).
    """
    if scratch is None:
        scratch = reference(net)
    wanted = buffers_of(net, scratch, order, given)
    buffers = tuple(
        Buffer(entry.name, entry.size, entry.first, entry.last, offset)
        for entry, offset in zip(wanted, offsets(wanted), strict=True)
    )
    head = max((buffer.end for buffer in buffers), default=0)
    return Plan(buffers, head, _peak(net, wanted))


def over_time(net: Net, scratch: Scratch) -> list[int]:
    """The live bytes at each operator: no plan needs less than their maximum."""
    return _over_time(buffers_of(net, scratch), len(net.ops))


def aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def held(tensor: Tensor) -> int:
    """Bytes of the head that the tensor takes while it is live; 0 of constants and variables, which
    lie elsewhere."""
    if tensor.data is not None or tensor.variable:
        return 0
    return aligned(tensor.size * tensor.dtype.itemsize)


def buffers_of(
    net: Net,
    scratch: Scratch,
    order: Sequence[Tensor] | None = None,
    given: Mapping[Tensor, int] | None = None,
) -> list[Wanted]:
    """The buffers of tensors, then those of scratch memory, in TFLite Micro's order."""
    known, given = lives(net), given or {}
    buffers = [
        Wanted(tensor.name, size, *known.get(tensor, (UNUSED, UNUSED)), given.get(tensor))
        for tensor in (net.tensors() if order is None else order)
        if (size := held(tensor))
    ]
    for number in sorted(scratch):
        name = f"scratch memory of {net.ops[number].outputs[0].name}"
        buffers += [Wanted(name, aligned(size), number + 1, number + 1) for size in scratch[number]]
    return buffers


def lives(net: Net) -> dict[Tensor, tuple[int, int]]:
    """Tensor -> the operator that makes it and the last that takes it; outputs live to the end."""
    first: dict[Tensor, int] = dict.fromkeys(net.inputs, 0)
    last = dict(first)
    for time, op in enumerate(net.ops, 1):
        for tensor in op.outputs:
            first.setdefault(tensor, time)
        for tensor in (*op.taken, *op.outputs):
            last[tensor] = time
    for tensor in net.outputs:
        first.setdefault(tensor, len(net.ops))
        last[tensor] = len(net.ops)
    return {tensor: (first.get(tensor, UNUSED), last[tensor]) for tensor in last}


def offsets(wanted: Sequence[Wanted]) -> list[int]:
    """The offset of each buffer. One that the file states is kept; the other buffers are placed by
    size, the largest first and of equal ones the last."""
    given = [n for n, entry in enumerate(wanted) if entry.given is not None]
    unfixed = [n for n in range(len(wanted) - 1, -1, -1) if wanted[n].given is None]
    return placed(wanted, [*given, *sorted(unfixed, key=lambda n: -wanted[n].size)])


def placed(wanted: Sequence[Wanted], turns: Sequence[int]) -> list[int]:
    """Place the buffers in the order of `turns`, each at the lowest offset that is free while it is
    live. -> the offset of each buffer."""
    offsets = [0] * len(wanted)
    starts: list[int] = []
    occupied: list[tuple[int, int, int, int]] = []
    """Offset, end, first and last operator of the buffers that are placed; by offset, of equal ones
    in the order in which they were placed."""
    for number in turns:
        _, size, first, last, given = wanted[number]
        place = 0 if given is None else given
        if given is None:
            for start, end, since, until in occupied:
                if since > last or first > until:
                    continue
                if start - place >= size:
                    break
                if end > place:
                    place = end
        position = bisect_right(starts, place)
        starts.insert(position, place)
        occupied.insert(position, (place, place + size, first, last))
        offsets[number] = place
    return offsets


def _over_time(wanted: Sequence[Wanted], operators: int) -> list[int]:
    change = [0] * (operators + 2)
    for entry in wanted:
        if entry.last != UNUSED:
            change[max(entry.first, 0)] += entry.size
            change[entry.last + 1] -= entry.size
    return list(accumulate(change))[1:-1]


def _peak(net: Net, wanted: Sequence[Wanted]) -> Peak | None:
    """The first operator at which most bytes are live; None: the graph has no operators."""
    live = _over_time(wanted, len(net.ops))
    if not live:
        return None
    number = live.index(max(live))
    op = net.ops[number]
    return Peak(number, op.custom or op.kind, op.outputs[0].name, live[number])


# --- what kernels ask for


def reference(net: Net, pointer_bytes: int = 8) -> dict[int, list[int]]:
    """Bytes of scratch buffers, in the order in which TFLite Micro's reference kernels ask for them
    in their Prepare. `pointer_bytes`: 8 on this machine, 4 on a microcontroller."""
    all_sizes = {number: _reference(op, pointer_bytes) for number, op in enumerate(net.ops)}
    return {number: sizes for number, sizes in all_sizes.items() if sizes}


INT = 4
"""sizeof(int) and sizeof(int32_t)."""
_REDUCING = frozenset({"REDUCE_MAX", "REDUCE_MIN", "REDUCE_ALL"})


def _reference(op: Op, pointer_bytes: int) -> list[int]:
    if op.kind in ("MEAN", "SUM") or op.kind in _REDUCING:
        source, axes = op.taken[0], op.taken[1]
        index_bytes = [INT * len(source.shape), INT * axes.size]
        sums = op.kind not in _REDUCING and not source.is_float
        return [INT * op.outputs[0].size, *index_bytes] if sums else index_bytes
    if op.kind == "SVDF":
        return svdf(op)
    if op.kind == "UNIDIRECTIONAL_SEQUENCE_LSTM":
        return [lstm_state_bytes(op)] * 4
    if op.kind == "TRANSPOSE_CONV":
        return transpose_conv(op)
    if op.kind == "ADD_N":
        return [pointer_bytes * len(op.inputs)]
    if op.kind == "MIRROR_PAD":
        return [INT * len(op.taken[0].shape)] * 2
    return []


def svdf(op: Op) -> list[int]:
    source, features, out = op.taken[0], op.taken[1], op.outputs[0]
    batch = source.shape[0]
    filters = [batch * features.shape[0] * INT]
    return filters if source.is_float else [*filters, batch * out.shape[1] * INT]


def lstm_state_bytes(op: Op) -> int:
    """Bytes of one gate's scratch buffer: [batch, cells], in the cell state's type."""
    cell = op.inputs[19]
    assert cell is not None
    return cell.size * cell.dtype.itemsize


def transpose_conv(op: Op) -> list[int]:
    """Sums of the whole output: in 32 bits beside 8, in 64 beside 16, as a bias of 16 bits is."""
    source, out = op.inputs[2], op.outputs[0]
    assert source is not None
    if source.dtype == np.int8:
        return [4 * out.size]
    if source.dtype != np.int16:
        return []
    bias = op.inputs[3] if len(op.inputs) > 3 else None
    return [8 * out.size, *([8 * bias.size] if bias is not None and bias.dtype == np.int16 else [])]


# --- of a file, in a worker


class Stored(NamedTuple):
    net: Net
    order: list[Tensor]
    """All of the file's tensors in its order, unused ones too."""
    given: dict[Tensor, int]
    """The offsets that the file's metadata states."""


def stored(source: Path) -> Stored:
    """Raises UsageError and UnsupportedError as net.read."""
    content = source.read_bytes()
    net = read(content)
    graph = schema.Model.GetRootAs(content).Subgraphs(0)
    known: dict[int, Tensor] = {}

    def learn(places: Any, tensors: Sequence[Tensor | None]) -> None:
        if tensors:  # for an empty list, the schema returns no array
            pairs = zip(places.tolist(), tensors, strict=True)
            known.update((place, tensor) for place, tensor in pairs if tensor is not None)

    learn(graph.InputsAsNumpy(), net.inputs)
    learn(graph.OutputsAsNumpy(), net.outputs)
    for number, op in enumerate(net.ops):
        entry = graph.Operators(number)
        learn(entry.InputsAsNumpy(), op.inputs)
        learn(entry.OutputsAsNumpy(), op.outputs)
        learn(entry.IntermediatesAsNumpy(), op.intermediates)
    order = [known.get(n) or _unused(content, n) for n in range(graph.TensorsLength())]
    return Stored(net, order, dict(_offline(content, order)))


OFFLINE = "OfflineMemoryAllocation"
"""The metadata entry with offsets, all of it int32: version, number of the subgraph, count of its
tensors, then the offset of each tensor, -1 where TFLite Micro is to place it."""
ONLINE = -1


def offline(order: Sequence[Tensor], given: Mapping[Tensor, int]) -> np.ndarray:
    return np.array([1, 0, len(order), *(given.get(t, ONLINE) for t in order)], "<i4")


def _offline(content: bytes, order: Sequence[Tensor]) -> Iterator[tuple[Tensor, int]]:
    model = schema.Model.GetRootAs(content)
    for number in range(model.MetadataLength()):
        entry = model.Metadata(number)
        if text(entry.Name()) == OFFLINE:
            raw = model.Buffers(entry.Buffer()).DataAsNumpy()
            stored_offsets = np.frombuffer(raw.tobytes(), "<i4")[3:]
            for tensor, offset in zip(order, stored_offsets.tolist(), strict=False):
                if offset != ONLINE:
                    yield tensor, offset


def _unused(content: bytes, place: int) -> Tensor:
    model = schema.Model.GetRootAs(content)
    entry = model.Subgraphs(0).Tensors(place)
    kinds = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    shape = tuple(int(entry.Shape(axis)) for axis in range(entry.ShapeLength()))
    tensor = Tensor(text(entry.Name()), shape, np.dtype(kinds[entry.Type()].lower()))
    tensor.variable = bool(entry.IsVariable())
    if model.Buffers(entry.Buffer()).DataLength():
        tensor.data = np.zeros(shape, tensor.dtype)
    return tensor
