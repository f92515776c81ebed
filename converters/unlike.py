"""Where values meet that no one scale of 8 bits can hold: what must stay float for that.

Three kinds, found by the ranges that calibration saw, whichever format the graph has:

- Parts of an output. Boxes in pixels and scores in 0 to 1, joined in one tensor, have one scale:
  every score becomes 0. A join of ranges more than `APART` times apart, and what only moves or
  rescales its values on the way to an output, is left in float, so that each part keeps a scale of
  its own up to there. So is a last product by constants that are that far apart.
- Masks. -10000, or the least number there is, is added to what shall not count, or selected instead
  of it: one scale for both leaves nothing of the rest. The sum stays float with all that takes it,
  until something (Softmax, a maximum, bounds) has brought the values together again. So does what
  the mask is computed by: a little error in a share of 0 or 1 becomes a large one.
- Whole numbers. What becomes an index, or is compared with one, is another number one step on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct

from onmetal.ranges import Range

APART = 32.0
"""How many times apart ranges of parts may be: of 255 steps, 8 are left to the smallest."""
MASKING = 100.0
"""What is so many times as wide as the other operand is a mask, or might as well be."""
SWITCH = 1000.0
"""A constant that makes a mask of a 0 or 1 by multiplication is at least this."""
LEAST_WIDTH = 1e-35
"""Of a range that has a scale which float32 holds in full."""

Role = Literal[
    "join", "move", "each", "sum", "product", "bound",
    "softmax", "heavy", "whole", "compare", "other",
]  # fmt: skip
"""What an operator does to values:

join     puts several tensors into one, unchanged
move     moves them, or leaves some out
each     computes with every number by itself
sum      adds, subtracts or selects: what it gives is as wide as the widest that it takes
product  multiplies by, or divides by
bound    the smaller or the larger of two
softmax  feels differences only as far as exp() does
heavy    a product by weights, or of matrices
whole    makes whole numbers of them
compare  compares two
other    anything else
"""


class Step(Struct, frozen=True):
    """An operator of a graph of any format."""

    name: str
    role: Role
    taken: tuple[str, ...]
    """The computed floats that it takes."""
    given: tuple[str, ...]
    constants: tuple[np.ndarray, ...] = ()
    """The float constants that it computes with, or joins."""
    channels: tuple[float, ...] = ()
    """Of a product by weights: about how large each channel of its output is."""
    divides: bool = False
    """Of a product by a constant: whether it is divided by it."""


def stay_float(
    steps: Sequence[Step],
    outputs: Iterable[str],
    ranges: Mapping[str, Range],
    felt: float,
) -> frozenset[str]:
    """Names of the steps that must stay float. `steps` in the order of computation; `felt`: from
    how many times the width of what it masks on a mask before a softmax stays float, which feels
    small differences."""
    parts, masks = _parts(steps, outputs, ranges), _masked(steps, ranges, felt)
    return frozenset(parts | masks | _whole(steps))


def width(values: Range | np.ndarray) -> float:
    """Of a range that holds zero, as every grid does."""
    low, high = (
        (values.min(initial=0.0), values.max(initial=0.0))
        if isinstance(values, np.ndarray)
        else values
    )
    return max(float(high), 0.0) - min(float(low), 0.0)


# --- parts of an output


def _parts(steps: Sequence[Step], outputs: Iterable[str], ranges: Mapping[str, Range]) -> set[str]:
    last = _last(steps, outputs)
    widths: dict[str, list[float]] = {}
    """What was joined in a tensor: of each part its width."""
    makers = {name: step for step in last for name in step.given}
    found: set[str] = set()
    for step in last:
        if step.role == "move":
            parts = _widths(step.taken or step.given, widths, ranges)
        elif step.role == "join":
            parts = [*_widths(step.taken, widths, ranges), *map(width, step.constants)]
            if _apart(parts):
                found |= {step.name, *_joins(step, makers)}
        else:
            if _stretched(step, ranges):
                found.add(step.name)
            continue
        widths |= dict.fromkeys(step.given, parts)
    floats: set[str] = set()
    for step in last:  # what follows in float does so up to the output
        if step.name in found or floats & set(step.taken):
            found.add(step.name)
            floats |= set(step.given)
    return found


def _last(steps: Sequence[Step], outputs: Iterable[str]) -> list[Step]:
    """Those that lead to an output with nothing between but moves, joins and constants."""
    reached, found = set(outputs), []
    for step in reversed(steps):
        if not reached & set(step.given):
            continue
        alone = step.role in ("sum", "product", "bound") and len(step.taken) == 1
        if alone or step.role in ("join", "move", "each"):
            reached |= set(step.taken)
            found.append(step)
        elif step.role == "heavy":
            found.append(step)
    return found[::-1]


def _widths(
    taken: Iterable[str], widths: Mapping[str, list[float]], ranges: Mapping[str, Range]
) -> list[float]:
    found: list[float] = []
    for name in taken:
        if name in widths:
            found += widths[name]
        elif name in ranges:
            found.append(width(ranges[name]))
    return found


def _apart(widths: Iterable[float]) -> bool:
    some = [entry for entry in widths if 0.0 < entry < np.inf]
    return bool(some) and max(some) > APART * min(some)


def _slices(array: np.ndarray) -> Iterator[list[float]]:
    """Along each axis, the greatest magnitude in every slice."""
    for axis in range(array.ndim):
        others = tuple(place for place in range(array.ndim) if place != axis)
        yield np.abs(array).max(axis=others, initial=0.0).tolist()


def _joins(step: Step, makers: Mapping[str, Step]) -> Iterator[str]:
    """The joins before it whose values it only joins again."""
    for name in step.taken:
        before = makers.get(name)
        if before is not None and before.role in ("join", "move"):
            if before.role == "join":
                yield before.name
            yield from _joins(before, makers)


def _stretched(step: Step, ranges: Mapping[str, Range]) -> bool:
    """Whether weights or constants alone put its results far apart."""
    if step.role == "heavy":
        return _apart(step.channels)
    if not step.constants or len(step.taken) != 1 or step.taken[0] not in ranges:
        return False
    if step.role == "product":
        return any(_apart(sizes) for array in step.constants for sizes in _slices(array))
    if step.role == "sum":
        taken = width(ranges[step.taken[0]])
        spread = max((float(np.ptp(array)) for array in step.constants if array.size), default=0.0)
        return taken > 0.0 and np.isfinite(spread) and spread > APART * taken
    return False


def channels(
    weight: np.ndarray, axis: int, bias: np.ndarray | None, taken: Range | None
) -> tuple[float, ...]:
    """About how large each channel is that a product by weights gives: as far as its bias and the
    norm of its weights, times the largest number that it takes, let it be."""
    largest = max(map(abs, taken)) if taken is not None else 1.0
    others = tuple(place for place in range(weight.ndim) if place != axis)
    sizes = np.sqrt(np.square(weight.astype(np.float64)).sum(axis=others)) * largest
    if bias is not None and bias.size == sizes.size:
        sizes = sizes + np.abs(bias.reshape(-1))
    return tuple(sizes.tolist())


# --- masks


def _masked(steps: Sequence[Step], ranges: Mapping[str, Range], felt: float) -> set[str]:
    ranges = {**ranges, **dict(_switched(steps, ranges))}
    makers = {name: step for step in steps for name in step.given}
    takers: dict[str, list[Step]] = {}
    for step in steps:
        for name in step.taken:
            takers.setdefault(name, []).append(step)
    base: dict[str, float] = {}
    """Tensor with a mask in it -> the width of what was masked."""
    found: set[str] = set()
    for step in steps:
        known = [base[name] for name in step.taken if name in base]
        if known:
            found.add(step.name)
            if step.role != "heavy":
                _carry(step, max(known), base, ranges)
        elif step.role in ("sum", "bound") or (step.role == "join" and _fills(step)):
            mask = _mask(step, ranges, makers, takers, felt)
            if mask is not None:
                narrow, chain = mask
                found |= {step.name, *chain}
                base |= dict.fromkeys(step.given, narrow)
    return found


def _carry(step: Step, narrow: float, base: dict[str, float], ranges: Mapping[str, Range]) -> None:
    """What a masked tensor becomes is masked as long as it is wide."""
    for array in step.constants if step.role == "product" else ():
        factor = float(np.abs(array).max(initial=0.0))
        if 0.0 < factor < np.inf:
            narrow = narrow / factor if step.divides else narrow * factor
    if step.role == "softmax":  # shares, or their logarithms
        narrow = max(narrow, 1.0)
    for name in step.given:
        if name not in ranges or width(ranges[name]) > APART * narrow:
            base[name] = narrow


def _mask(
    step: Step,
    ranges: Mapping[str, Range],
    makers: Mapping[str, Step],
    takers: Mapping[str, list[Step]],
    felt: float,
) -> tuple[float, set[str]] | None:
    """-> the width of what is masked, and the names of the steps that compute the mask."""
    computed = [(width(ranges[name]), name) for name in step.taken if name in ranges]
    constant = max((_reach(array) for array in step.constants), default=0.0)
    operands = sorted([*computed, *([(constant, "")] if step.constants else [])])
    if len(operands) < 2:
        return None
    narrow, (wide, name) = operands[0][0], operands[-1]
    if not operands[0][1] or narrow == 0.0:
        return None  # what is masked is computed, and not dead
    if step.role == "bound":
        reached = max((width(ranges[out]) for out in step.given if out in ranges), default=0.0)
        wide = min(wide, reached)
    chain = _computed_by(name, makers) if name else set()
    if wide > MASKING * narrow:
        return narrow, chain or set()
    if chain is not None and wide > felt * narrow and _softened(step, takers):
        return narrow, chain
    return None


def _fills(step: Step) -> bool:
    """Whether it surrounds numbers with a constant."""
    return len(step.taken) == 1 and any(map(_reach, step.constants))


def _reach(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))


def _computed_by(name: str, makers: Mapping[str, Step]) -> set[str] | None:
    """The steps before a mask; None where it comes of a product by weights: then it is none."""
    found, whole = _before([name], makers)
    return found if whole else None


def _before(names: Sequence[str], makers: Mapping[str, Step]) -> tuple[set[str], bool]:
    """The steps that compute some tensors, back to products by weights; whether there is none of
    these."""
    waiting, found, whole = list(names), set(), True
    while waiting:
        step = makers.get(waiting.pop())
        if step is None or step.name in found:
            continue
        if step.role in ("heavy", "softmax"):
            whole = False
            continue
        found.add(step.name)
        waiting += step.taken
    return found, whole


def _softened(step: Step, takers: Mapping[str, list[Step]]) -> bool:
    """Whether a softmax takes what it gives, over moves, sums and products by constants."""
    waiting, known = [step], {step.name}
    while waiting:
        for name in waiting.pop().given:
            for taker in takers.get(name, []):
                if taker.role == "softmax":
                    return True
                if taker.role not in ("heavy", "other") and taker.name not in known:
                    known.add(taker.name)
                    waiting.append(taker)
    return False


def _switched(steps: Sequence[Step], ranges: Mapping[str, Range]) -> Iterator[tuple[str, Range]]:
    """Masks that no calibration sample had: products of what was always 0 by a large constant."""
    for step in steps:
        if step.role == "product" and not step.divides and len(step.taken) == 1:
            factor = max((_reach(array) for array in step.constants), default=0.0)
            low, high = ranges.get(step.taken[0], (1.0, 1.0))
            if low == high == 0.0 and factor >= SWITCH:
                yield from ((name, (-factor, 0.0)) for name in step.given)


# --- whole numbers


def _whole(steps: Sequence[Step]) -> set[str]:
    makers = {name: step for step in steps for name in step.given}
    found: set[str] = set()
    for step in steps:
        if step.role in ("whole", "compare"):
            before, whole = _before(step.taken, makers)
            if step.role == "whole" or whole:
                found |= {step.name, *before}
    return found
