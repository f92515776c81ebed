"""A region of a TFLite graph written as operators on bands of rows."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from onmetal.converters.tflite.net import VALID, Net, Op, Tensor, constant
from onmetal.runtimes.tflm.regions import (
    PADS,
    WINDOWS,
    Need,
    OnlyPadding,
    Region,
    Rows,
    need_for,
    padding_of,
)


def _borders(rows: int, bands: int) -> list[Rows]:
    return list(pairwise(round(rows * n / bands) for n in range(bands + 1)))


def _needed(ops: Sequence[Op], result: Tensor, rows: Rows) -> dict[Tensor, Rows]:
    """The rows of each tensor of a region that these rows of its result depend on."""
    needed = {result: rows}
    for op in reversed(ops):
        need = need_for(op, needed[op.outputs[0]])
        for tensor in op.taken:
            if tensor.data is None:
                first, last = needed.get(tensor, need.rows)
                needed[tensor] = min(first, need.rows[0]), max(last, need.rows[1])
    return needed


class _BandWriter:
    """The operators of one region in bands; they share the constants that several of them take."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.ops: list[Op] = []
        self.constants: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def band(self, ops: Sequence[Op], rows: Rows) -> Tensor:
        """Append the operators for these rows of the result. -> its tensor. Raises OnlyPadding."""
        source, result = self.region.source, self.region.result
        needed = _needed(ops, result, rows)
        label = f"rows {rows[0]} to {rows[1]} of {result.name}"
        all_rows = 0, source.shape[1]
        there = {source: (self.cut(source, all_rows, needed[source], f"{source.name} for {label}"))}
        for op in ops:
            out = op.outputs[0]
            need = need_for(op, needed[out])
            name = label if out is result else f"{out.name} for {label}"
            inputs: list[Tensor | None] = []
            for number, tensor in enumerate(op.inputs):
                if tensor in there:
                    part = f"{name}/taken {number}"
                    inputs.append(self.cut(there[tensor], needed[tensor], need.rows, part))
                else:
                    inputs.append(tensor)
            there[out] = self.like(out, name, needed[out][1] - needed[out][0])
            self.operator(op, inputs, need, there[out])
        return there[result]

    def cut(self, tensor: Tensor, there: Rows, rows: Rows, name: str) -> Tensor:
        """A SLICE of these rows from a tensor that holds the rows `there`."""
        if there == rows:
            return tensor
        out = self.like(tensor, name, rows[1] - rows[0])
        begin = self.number("begin", (0, rows[0] - there[0], 0, 0), (4,))
        self.ops.append(Op("SLICE", [tensor, begin, self.number("size", out.shape, (4,))], [out]))
        return out

    def operator(self, op: Op, inputs: list[Tensor | None], need: Need, out: Tensor) -> None:
        """Append the operator on these rows of its inputs."""
        options = op.options
        if op.kind in PADS:
            pads = [int(pad) for pad in np.asarray(op.taken[1].data).reshape(-1)]
            pads[2:4] = need.top, need.bottom
            inputs[1] = self.number("paddings", pads, (4, 2))
        elif op.kind in WINDOWS:
            source = inputs[0]
            assert source is not None
            pads = [0, 0, need.top, need.bottom, *padding_of(op, 2), 0, 0]
            inputs[0] = self.pad(source, pads, f"{out.name}/padded")
            options = {**options, "padding": VALID}
        self.ops.append(Op(op.kind, inputs, [out], options))

    def pad(self, tensor: Tensor, pads: list[int], name: str) -> Tensor:
        if not any(pads):
            return tensor
        out = self.like(tensor, name, tensor.shape[1] + sum(pads[2:4]))
        out.shape = (*out.shape[:2], tensor.shape[2] + sum(pads[4:6]), tensor.shape[3])
        self.ops.append(Op("PAD", [tensor, self.number("paddings", pads, (4, 2))], [out]))
        return out

    def like(self, tensor: Tensor, name: str, rows: int) -> Tensor:
        shape = 1, rows, *tensor.shape[2:]
        return Tensor(name, shape, tensor.dtype, None, tensor.scale, tensor.zero_point)

    def number(self, role: str, values: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        key = role, tuple(values)
        if key not in self.constants:
            name = f"{self.region.result.name}/{role} {' '.join(map(str, values))}"
            self.constants[key] = constant(name, np.array(values, np.int32).reshape(shape))
        return self.constants[key]


def banded(net: Net, region: Region, bands: int) -> Net | None:
    """The graph with the region in bands; None where a band would be of padding alone. Tensors and
    operators outside of it are the same objects."""
    ops = net.ops[region.first : region.last + 1]
    writer = _BandWriter(region)
    try:
        parts = [writer.band(ops, rows) for rows in _borders(region.result.shape[1], bands)]
    except OnlyPadding:
        return None
    joined = {"axis": 1, "fusedActivationFunction": 0}
    writer.ops.append(Op("CONCATENATION", [*parts], [region.result], joined))
    after = [*net.ops[: region.first], *writer.ops, *net.ops[region.last + 1 :]]
    return Net(net.inputs, net.outputs, after, net.names)
