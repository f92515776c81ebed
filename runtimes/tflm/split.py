"""The largest early operators computed in bands of rows, so that less of them is in memory at once.

A region, from one tensor to a later and smaller one, is computed band by band: a SLICE of the rows
that the band needs, the region's operators on them, a CONCATENATION of their results. Tensors in
between exist only as bands. Rows at the edges of bands are computed twice: that is the price, with
some structures for the operators added. (Patches of MCUNetV2, arXiv:2110.15352, by rows alone.)

Bit-identical in integers: every number comes from the same sums. Padding is written out as a PAD
with the zero point, of rows only where a band touches the border. Weights are shared, not copied.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from onmetal.converters.tflite import parsing, writing
from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.errors import NeedlessError
from onmetal.runtimes.tflm import reorder
from onmetal.runtimes.tflm.bands import banded
from onmetal.runtimes.tflm.memory import held
from onmetal.runtimes.tflm.regions import Region, regions

BANDS = range(2, 11)
"""TFLite Micro's CONCATENATION takes ten tensors at most."""
LEAST_GAIN = 0.05
"""The share of the arena that a split must save to be worth it."""
PRICE = 0.2
"""The share of the arena that computing everything twice must save: so 10 % more multiplications
must save 2 %."""
MOST_TRIED = 2000
"""Most pairs of a region and a number of bands that are computed."""
MOST_PLACED = 4
"""Most selections whose operators are ordered and tensors placed; of the rest, only the bytes that
live at their peak are known."""
STATES = 8000
"""Most sets of operators that are examined to order one selection."""
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
"""Bytes of the tail for each constant that is added."""


class Cut(Struct, frozen=True):
    """A region that is computed in bands."""

    source: str
    """The tensor that the bands are slices of."""
    result: str
    """The tensor that the bands are joined to."""
    bands: int


class Why(Struct, frozen=True):
    """What a split saves of the arena's head (reorder.needs), and what it adds elsewhere."""

    before_bytes: int
    after_bytes: int
    regions: tuple[Cut, ...]
    """The regions that were split; empty where no split pays."""
    recomputed: float
    """Additional multiplications, as a share of the whole network's."""
    operators_added: int
    tail_bytes: int
    """Additional bytes in the tail of the arena, on a host of 64 bits; fewer on one of 32."""
    flash_bytes: int
    """By how much the file grows."""


class Way(NamedTuple):
    """A region in bands, and what that costs."""

    region: Region
    bands: int
    peak: int
    """Most live bytes while it runs."""
    tail: int
    macs: int
    """Additional multiplications."""

    def price(self, per_mac: float) -> float:
        """In bytes."""
        return self.tail + per_mac * self.macs


def macs(op: Op) -> int:
    """Multiplications of an operator with weights."""
    if op.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"):
        return 0
    out, weights = op.outputs[0], op.taken[1]
    return out.size * (weights.size // out.shape[-1])


def tail_bytes(ops: Sequence[Op]) -> int:
    """Additional bytes in the arena's tail for these operators, whose constants are there already
    but for the numbers by which SLICE and PAD work."""
    total, constants = 0, set[Tensor]()
    for op in ops:
        total += TAIL_BYTES.get(op.kind, OTHER_BYTES)
        if op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            total += 8 * op.outputs[0].shape[-1]
        if op.kind in ("SLICE", "PAD"):
            constants.update(op.taken[1:])
    return total + TENSOR_BYTES * len(constants)


def split(net: Net, core: str | None = None) -> tuple[Net, Why]:
    """The graph whose arena is smallest, by all regions and numbers of bands that there are, as
    reorder.reordered has it; the same one, where none saves LEAST_GAIN of the head and its price.

    Only regions of operators that stand together are looked at, so reorder first.
    """
    before = reorder.needs(net, core, reorder.places(net, core))
    per_mac = PRICE * before / max(1, sum(map(macs, net.ops)))
    live, ways = reorder.lowest(net, core), _ways(net, core)
    choices = []
    for limit in sorted({way.peak for way in ways} | set(live)):
        ways_within = _cheapest(live, ways, limit, per_mac)
        if ways_within:
            choices.append((limit + sum(way.price(per_mac) for way in ways_within), ways_within))
    best, chosen, after, least = net, list[Way](), before, (1 - LEAST_GAIN) * before
    for _, ways_within in sorted(choices, key=lambda choice: choice[0])[:MOST_PLACED]:
        placed_net, placed = reorder.reordered(_applied(net, ways_within), core, STATES)
        cost = placed.after_bytes + sum(way.price(per_mac) for way in ways_within)
        if cost < least:
            best, chosen, after, least = placed_net, ways_within, placed.after_bytes, cost
    return best, _why(net, best, chosen, before, after)


def _why(net: Net, best: Net, ways: Sequence[Way], before: int, after: int) -> Why:
    return Why(
        before,
        after,
        tuple(Cut(way.region.source.name, way.region.result.name, way.bands) for way in ways),
        round(sum(way.macs for way in ways) / max(1, sum(map(macs, net.ops))), 4),
        len(best.ops) - len(net.ops),
        sum(way.tail for way in ways),
        len(writing.write(best)) - len(writing.write(net)),
    )


def _ways(net: Net, core: str | None) -> list[Way]:
    """Regions in bands that need less memory than they do whole; where there are too many to be
    tried, those that need most first."""
    live = reorder.lowest(net, core)
    candidates = []
    for region in regions(net):
        worst = max(live[region.first : region.last + 1])
        # While the bands are joined, both they and the result are live.
        if worst > max(live) / 4 and 2 * held(region.result) < worst:
            rows = region.result.shape[1]
            candidates += [(worst, region, bands) for bands in BANDS if bands <= rows]
    candidates.sort(key=lambda item: -item[0])
    ways = [_way(net, core, live, region, bands) for _, region, bands in candidates[:MOST_TRIED]]
    return [way for way in ways if way is not None]


def _way(net: Net, core: str | None, live: Sequence[int], region: Region, bands: int) -> Way | None:
    banded_net = banded(net, region, bands)
    if banded_net is None:
        return None
    old = slice(region.first, region.last + 1)
    new = slice(region.first, region.last + 1 + len(banded_net.ops) - len(net.ops))
    peak = max(reorder.lowest(banded_net, core)[new])
    if peak >= max(live[old]):
        return None
    added_macs = sum(map(macs, banded_net.ops[new])) - sum(map(macs, net.ops[old]))
    return Way(
        region, bands, peak, tail_bytes(banded_net.ops[new]) - tail_bytes(net.ops[old]), added_macs
    )


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
    chosen, number = list[Way](), len(live)
    while number:
        step = steps[number - 1]
        chosen += [] if step is None else [step]
        number = number - 1 if step is None else step.region.first
    return chosen[::-1]


def _applied(net: Net, ways: Sequence[Way]) -> Net:
    """From the last to the first, so that numbers stay what they are."""
    for way in reversed(ways):
        banded_net = banded(net, way.region, way.bands)
        assert banded_net is not None
        net = banded_net
    return net


def shrink_arena(
    path: str, folder: str, core: str | None, splitting: bool = True
) -> dict[str, Any]:
    """Writes `model.tflite` where there is one that needs less of the arena and gives the same
    outputs to the bit. `core`: as targets.Chip has it; `splitting`: whether to split operators.

    -> `found`: whether it was written; `head_bytes`: [before, after], of the arena's head, as
    reorder.needs has it; `tail_bytes`: additional bytes in its tail, on a host of 64 bits; `how`:
    {`reordered`: reorder.Why of the whole operators, `split`: Why, or None where nothing was}, as
    dictionaries.

    Raises UsageError and UnsupportedError as parsing.read does; NeedlessError, where it is to be
    split and that does not pay.
    """
    net = parsing.read(Path(path))
    before = reorder.needs(net, core)
    best, why = reorder.reordered(net, core)
    changes: dict[str, Any] = {"reordered": msgspec.to_builtins(why), "split": None}
    tail = 0
    if splitting:
        best, cut = split(best, core)
        if not cut.regions:
            raise NeedlessError(
                "splitting does not pay: no part of it in bands of rows needs clearly less memory"
            )
        changes["split"], tail = msgspec.to_builtins(cut), cut.tail_bytes
    placement = reorder.places(best, core)
    after = reorder.needs(best, core, placement)
    written = after + tail < before
    if written:
        (Path(folder) / "model.tflite").write_bytes(reorder.write(best, placement))
    return {
        "found": written,
        "head_bytes": [before, after if written else before],
        "tail_bytes": tail if written else 0,
        "how": changes,
    }
