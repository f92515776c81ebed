"""The largest early operators computed in bands of rows, so that less of them is in memory at once.

A region, from one tensor to a later and smaller one, is computed band by band: a SLICE of the rows
that the band needs, the region's operators on them, a CONCATENATION of what they give. What lies
between exists only as bands. Rows at the edges of bands are computed twice: that is the price, with
some structures for the operators added. (Patches of MCUNetV2, arXiv:2110.15352, by rows alone.)

Bit-identical in integers: every number is made by the same sums. Padding is written out as a PAD
with the zero point, of rows only where a band touches the border. Weights are shared, not copied.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from onmetal.converters.tflite import parsing, writing
from onmetal.converters.tflite.net import SAME, VALID, Net, Op, Tensor, constant
from onmetal.errors import NeedlessError
from onmetal.runtimes.tflm import reorder
from onmetal.runtimes.tflm.memory import held

BANDS = range(2, 11)
"""TFLite Micro's CONCATENATION takes ten tensors at most."""
LEAST_GAIN = 0.05
"""Of the arena: what a split must save to be worth it."""
PRICE = 0.2
"""Of the arena, for computing everything twice: 10 % more multiplications must save 2 %."""
MOST_OPERATORS = 24
"""In a region: halos grow with each."""
MOST_TRIED = 2000
"""Regions times numbers of bands."""
MOST_PLACED = 4
"""Selections that are ordered and placed; of the rest, only what lives at their peak is known."""
STATES = 8000
"""Sets of operators that are looked at to order each of them."""
TAIL_BYTES = {
    "CONCATENATION": 176,
    "SLICE": 112,
    "PAD": 152,
    "PADV2": 160,
    "CONV_2D": 192,
    "DEPTHWISE_CONV_2D": 192,
}
"""What an operator and its output take of the arena's tail, by TFLite Micro's recording allocator
on 64 bits; convolutions 8 bytes a channel besides. Others take up to OTHER_BYTES."""
OTHER_BYTES = 160
TENSOR_BYTES = 24
"""Of the tail, for a constant that is added."""

Rows = tuple[int, int]
"""From the first to behind the last."""

WINDOWS = frozenset({"AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D"})
EACH = frozenset(
    {"ABS", "ADD", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL", "PRELU"}
    | {"QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "SUB", "TANH"}
)
"""Operators whose rows depend on the same rows of what they take."""
PADS = frozenset({"PAD", "PADV2"})


class Cut(Struct, frozen=True):
    """What was computed in bands."""

    source: str
    """The tensor that they are taken of."""
    result: str
    """The tensor that they become."""
    bands: int


class Why(Struct, frozen=True):
    """Bytes before and after, of the head (reorder.needs) and of what is added besides."""

    before_bytes: int
    after_bytes: int
    regions: tuple[Cut, ...]
    """What was split; empty: no split pays."""
    recomputed: float
    """Multiplications more, as a part of the whole network's."""
    operators_added: int
    tail_bytes: int
    """More in the tail of the arena, on a host of 64 bits; less on 32."""
    flash_bytes: int
    """By how much the file grows."""


class Region(NamedTuple):
    """Operators first to last (numbers), all of them between the two tensors, and only they."""

    first: int
    last: int
    source: Tensor
    result: Tensor


class Way(NamedTuple):
    """A region in bands, and what that costs."""

    region: Region
    bands: int
    peak: int
    """Bytes that live at most while it runs."""
    tail: int
    macs: int
    """More."""

    def price(self, per_mac: float) -> float:
        """In bytes."""
        return self.tail + per_mac * self.macs


# --- which rows an operator needs


class Need(NamedTuple):
    rows: Rows
    """Of what it takes."""
    top: int
    bottom: int
    """Rows of padding."""


class _OutOfReach(Exception):
    """A band that would be padding alone."""


def _window(op: Op) -> tuple[int, int]:
    """Rows and columns that it reaches over."""
    if op.kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        return op.options["filterHeight"], op.options["filterWidth"]
    _, high, wide, _ = op.taken[1].shape
    down, across = op.options.get("dilationHFactor", 1), op.options.get("dilationWFactor", 1)
    return (high - 1) * down + 1, (wide - 1) * across + 1


def _padding(op: Op, axis: int) -> tuple[int, int]:
    """Before the first and behind the last row (axis 1) or column (2) of what it takes."""
    if op.kind in PADS:
        before, behind = np.asarray(op.taken[1].data).reshape(-1, 2)[axis]
        return int(before), int(behind)
    if op.options["padding"] != SAME:
        return 0, 0
    stride = op.options["strideH" if axis == 1 else "strideW"]
    last = (op.outputs[0].shape[axis] - 1) * stride + _window(op)[axis - 1]
    total = max(last - op.taken[0].shape[axis], 0)
    return total // 2, total - total // 2


def _need(op: Op, rows: Rows) -> Need:
    """Of each tensor that it takes, for these rows of its output."""
    if op.kind in EACH or op.kind == "CONCATENATION":
        return Need(rows, 0, 0)
    high, above = op.taken[0].shape[1], _padding(op, 1)[0]
    if op.kind in PADS:
        first, last = rows[0] - above, rows[1] - above
    else:
        stride = op.options["strideH"]
        first = rows[0] * stride - above
        last = (rows[1] - 1) * stride + _window(op)[0] - above
    kept = max(first, 0), min(last, high)
    if kept[0] >= kept[1]:
        raise _OutOfReach
    return Need(kept, kept[0] - first, last - kept[1])


def _splits(op: Op, known: set[Tensor]) -> bool:
    """Whether it can be computed by rows from the known tensors and constants."""
    if len(op.outputs) != 1 or not _image(op.outputs[0]):
        return False
    moving = [tensor for tensor in op.taken if tensor.data is None]
    if not moving or any(tensor not in known for tensor in moving) or op.taken[0] not in known:
        return False
    out = op.outputs[0]
    if op.kind in EACH:
        return all(tensor.shape == out.shape for tensor in moving) and all(
            len(tensor.shape) < 3 or tensor.shape[-3] == 1
            for tensor in op.taken
            if tensor.data is not None
        )
    if op.kind == "CONCATENATION":
        return len(moving) == len(op.inputs) and op.options["axis"] in (2, 3, -1, -2)
    if op.kind in PADS:
        pads = op.taken[1].data
        return len(moving) == 1 and pads is not None and pads.size == 8 and not pads.flat[:2].any()
    if op.kind not in WINDOWS or len(moving) != 1:
        return False
    # Pooling leaves out what is padded, which no PAD before it can say.
    pools = op.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D")
    return not pools or not any((*_padding(op, 1), *_padding(op, 2)))


def _image(tensor: Tensor) -> bool:
    """Of one inference, in integers, with rows to be split."""
    whole = tensor.dtype in (np.int8, np.int16) and not tensor.per_channel
    return whole and len(tensor.shape) == 4 and tensor.shape[0] == 1 and tensor.shape[1] > 1


# --- regions


def regions(found: Net) -> list[Region]:
    """All that can be split, of operators that stand together, by the first of them."""
    last = {tensor: number for number, op in enumerate(found.ops) for tensor in op.taken}
    last |= dict.fromkeys(found.outputs, len(found.ops))
    result = list(_regions_from(found, [t for t in found.inputs if _image(t)], 0, last))
    for number, op in enumerate(found.ops):
        sources = [tensor for tensor in op.outputs if _image(tensor)]
        result += _regions_from(found, sources, number + 1, last)
    return result


def _regions_from(
    found: Net, sources: Sequence[Tensor], first: int, last: dict[Tensor, int]
) -> Iterator[Region]:
    """`last`: the last operator that takes a tensor; what nothing takes is in no region."""
    for source in sources:
        inner: list[Tensor] = []
        for number, op in enumerate(found.ops[first : first + MOST_OPERATORS], first):
            if not _splits(op, {source, *inner}):
                break
            if all(last.get(tensor, len(found.ops)) <= number for tensor in inner):
                yield Region(first, number, source, op.outputs[0])
            inner.append(op.outputs[0])


def _borders(rows: int, bands: int) -> list[Rows]:
    return list(pairwise(round(rows * n / bands) for n in range(bands + 1)))


def _needed(ops: Sequence[Op], result: Tensor, rows: Rows) -> dict[Tensor, Rows]:
    """Of each tensor of a region, the rows without which these of its result cannot be made."""
    needed = {result: rows}
    for op in reversed(ops):
        need = _need(op, needed[op.outputs[0]])
        for tensor in op.taken:
            if tensor.data is None:
                first, last = needed.get(tensor, need.rows)
                needed[tensor] = min(first, need.rows[0]), max(last, need.rows[1])
    return needed


# --- writing the bands


class _Writer:
    """The operators of one region in bands; constants that several of them take are made once."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.ops: list[Op] = []
        self.constants: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def band(self, ops: Sequence[Op], rows: Rows) -> Tensor:
        """These rows of the result. Raises _OutOfReach."""
        source, result = self.region.source, self.region.result
        needed = _needed(ops, result, rows)
        label = f"rows {rows[0]} to {rows[1]} of {result.name}"
        whole = 0, source.shape[1]
        there = {source: (self.cut(source, whole, needed[source], f"{source.name} for {label}"))}
        for op in ops:
            out = op.outputs[0]
            need = _need(op, needed[out])
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
        """Rows of a tensor that has others too."""
        if there == rows:
            return tensor
        out = self.like(tensor, name, rows[1] - rows[0])
        begin = self.number("begin", (0, rows[0] - there[0], 0, 0), (4,))
        self.ops.append(Op("SLICE", [tensor, begin, self.number("size", out.shape, (4,))], [out]))
        return out

    def operator(self, op: Op, inputs: list[Tensor | None], need: Need, out: Tensor) -> None:
        """`inputs`: the rows needed."""
        options = op.options
        if op.kind in PADS:
            pads = [int(pad) for pad in np.asarray(op.taken[1].data).reshape(-1)]
            pads[2:4] = need.top, need.bottom
            inputs[1] = self.number("paddings", pads, (4, 2))
        elif op.kind in WINDOWS:
            source = inputs[0]
            assert source is not None
            pads = [0, 0, need.top, need.bottom, *_padding(op, 2), 0, 0]
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

    def number(self, what: str, values: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        key = what, tuple(values)
        if key not in self.constants:
            name = f"{self.region.result.name}/{what} {' '.join(map(str, values))}"
            self.constants[key] = constant(name, np.array(values, np.int32).reshape(shape))
        return self.constants[key]


def banded(found: Net, region: Region, bands: int) -> Net | None:
    """The graph with the region in bands; None where a band would be of padding alone. Tensors and
    operators outside of it are the same objects."""
    ops = found.ops[region.first : region.last + 1]
    writer = _Writer(region)
    try:
        parts = [writer.band(ops, rows) for rows in _borders(region.result.shape[1], bands)]
    except _OutOfReach:
        return None
    joined = {"axis": 1, "fusedActivationFunction": 0}
    writer.ops.append(Op("CONCATENATION", [*parts], [region.result], joined))
    after = [*found.ops[: region.first], *writer.ops, *found.ops[region.last + 1 :]]
    return Net(found.inputs, found.outputs, after, found.names)


# --- what it costs


def macs(op: Op) -> int:
    """Multiplications of an operator with weights."""
    if op.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        return 0
    out, weights = op.outputs[0], op.taken[1]
    return out.size * (weights.size // out.shape[-1])


def tail_bytes(ops: Sequence[Op]) -> int:
    """More in the arena's tail for these operators, whose constants are there already but for what
    slices and pads by."""
    total, known = 0, set[Tensor]()
    for op in ops:
        total += TAIL_BYTES.get(op.kind, OTHER_BYTES)
        if op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            total += 8 * op.outputs[0].shape[-1]
        if op.kind in ("SLICE", "PAD"):
            known.update(op.taken[1:])
    return total + TENSOR_BYTES * len(known)


# --- which to split


def split(found: Net, core: str | None = None) -> tuple[Net, Why]:
    """The graph whose arena is smallest, by all regions and numbers of bands that there are, as
    reorder.reordered has it; the same one, where none saves LEAST_GAIN of the head and its price.

    Only regions of operators that stand together are looked at, so reorder first.
    """
    before = reorder.needs(found, core, reorder.places(found, core))
    per_mac = PRICE * before / max(1, sum(map(macs, found.ops)))
    live, ways = reorder.lowest(found, core), _ways(found, core)
    choices = []
    for limit in sorted({way.peak for way in ways} | set(live)):
        some = _cheapest(live, ways, limit, per_mac)
        if some:
            choices.append((limit + sum(way.price(per_mac) for way in some), some))
    best, chosen, after, least = found, list[Way](), before, (1 - LEAST_GAIN) * before
    for _, some in sorted(choices, key=lambda choice: choice[0])[:MOST_PLACED]:
        made, placed = reorder.reordered(_applied(found, some), core, STATES)
        cost = placed.after_bytes + sum(way.price(per_mac) for way in some)
        if cost < least:
            best, chosen, after, least = made, some, placed.after_bytes, cost
    return best, _why(found, best, chosen, before, after)


def _why(found: Net, best: Net, ways: Sequence[Way], before: int, after: int) -> Why:
    return Why(
        before,
        after,
        tuple(Cut(way.region.source.name, way.region.result.name, way.bands) for way in ways),
        round(sum(way.macs for way in ways) / max(1, sum(map(macs, found.ops))), 4),
        len(best.ops) - len(found.ops),
        sum(way.tail for way in ways),
        len(writing.write(best)) - len(writing.write(found)),
    )


def _ways(found: Net, core: str | None) -> list[Way]:
    """Regions in bands that need less than they do whole; where there are too many to be tried,
    those that need most first."""
    live = reorder.lowest(found, core)
    tried = []
    for region in regions(found):
        worst = max(live[region.first : region.last + 1])
        # What the bands become lives twice when they are joined.
        if worst > max(live) / 4 and 2 * held(region.result) < worst:
            rows = region.result.shape[1]
            tried += [(worst, region, bands) for bands in BANDS if bands <= rows]
    tried.sort(key=lambda item: -item[0])
    ways = [_way(found, core, live, region, bands) for _, region, bands in tried[:MOST_TRIED]]
    return [way for way in ways if way is not None]


def _way(
    found: Net, core: str | None, live: Sequence[int], region: Region, bands: int
) -> Way | None:
    made = banded(found, region, bands)
    if made is None:
        return None
    old = slice(region.first, region.last + 1)
    new = slice(region.first, region.last + 1 + len(made.ops) - len(found.ops))
    peak = max(reorder.lowest(made, core)[new])
    if peak >= max(live[old]):
        return None
    more = sum(map(macs, made.ops[new])) - sum(map(macs, found.ops[old]))
    return Way(region, bands, peak, tail_bytes(made.ops[new]) - tail_bytes(found.ops[old]), more)


def _cheapest(
    live: Sequence[int], ways: Sequence[Way], limit: int, per_mac: float
) -> list[Way] | None:
    """Regions that do not overlap, with which no operator needs more than the limit, for the lowest
    price; None: there are none. (The cheapest path along the operators.)"""
    ends: dict[int, list[Way]] = {}
    for way in ways:
        if way.peak <= limit:
            ends.setdefault(way.region.last, []).append(way)
    never = float("inf")
    costs, steps = [0.0], list[Way | None]()
    for number, needed in enumerate(live):
        costs.append(costs[number] if needed <= limit else never)
        steps.append(None)
        for way in ends.get(number, ()):
            cost = costs[way.region.first] + way.price(per_mac)
            if cost < costs[-1]:
                costs[-1], steps[-1] = cost, way
    if costs[-1] == never:
        return None
    found, number = list[Way](), len(live)
    while number:
        step = steps[number - 1]
        found += [] if step is None else [step]
        number = number - 1 if step is None else step.region.first
    return found[::-1]


def _applied(found: Net, ways: Sequence[Way]) -> Net:
    """From the last to the first, so that numbers stay what they are."""
    for way in reversed(ways):
        made = banded(found, way.region, way.bands)
        assert made is not None
        found = made
    return found


# --- of a file, in a worker


def lowered(path: str, folder: str, core: str | None, splitting: bool = True) -> dict[str, Any]:
    """Writes `model.tflite` where there is one that needs less of the arena and gives the same
    outputs to the bit. `core`: as targets.Chip has it; `splitting`: whether to split operators.

    -> `found`: whether it was written; `head_bytes`: [before, after], of the arena's head, as
    reorder.needs has it; `tail_bytes`: what the tail takes more, on a host of 64 bits; `how`:
    {`reordered`: reorder.Why of the whole operators, `split`: Why, or None where nothing was}, as
    dictionaries.

    Raises UsageError and UnsupportedError as parsing.read does; NeedlessError, where it is to be
    split and that does not pay.
    """
    found = parsing.read(Path(path))
    before = reorder.needs(found, core)
    best, why = reorder.reordered(found, core)
    how: dict[str, Any] = {"reordered": msgspec.to_builtins(why), "split": None}
    tail = 0
    if splitting:
        best, cut = split(best, core)
        if not cut.regions:
            raise NeedlessError(
                "splitting does not pay: no part of it in bands of rows needs clearly less memory"
            )
        how["split"], tail = msgspec.to_builtins(cut), cut.tail_bytes
    given = reorder.places(best, core)
    after = reorder.needs(best, core, given)
    made = after + tail < before
    if made:
        (Path(folder) / "model.tflite").write_bytes(reorder.write(best, given))
    return {
        "found": made,
        "head_bytes": [before, after if made else before],
        "tail_bytes": tail if made else 0,
        "how": how,
    }
