"""Finds operators that must stay float because one 8-bit scale cannot represent their values.

There are three kinds. They are found by the ranges of calibration, in graphs of any format:

- Parts of an output. Where boxes in pixels and scores of 0 to 1 are joined in one tensor with one
  scale, every score becomes 0. A join of tensors whose ranges differ by more than `APART` times
  stays float, and so do operators that only move or rescale its values on the way to an output: up
  to the join, each part has a scale of its own. A last product by constants that differ as much
  stays float too.
- Masks. -10000, or the least number there is, is added to values that shall not count, or selected
  instead of them. With one scale for both, nothing is left of the other values. The sum stays
  float, and so do all operators after it until one (Softmax, a maximum, bounds) makes the range
  narrow again. So do the operators that compute the mask, because a small error in a share of 0 or
  1 becomes a large one in the mask.
- Whole numbers. An index, or a number that is compared, is wrong if it is off by one step.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
from msgspec import Struct

from onmetal.ranges import Range

APART = 32.0
"""The largest ratio of the parts' ranges: of 255 steps, the smallest part then has 8."""
MASKING = 100.0
"""An operand that is more than this many times as wide as the other one is treated as a mask."""
SWITCH = 1000.0
"""The least constant that makes a mask of a 0 or 1 by multiplication."""
LEAST_WIDTH = 1e-35
"""The least width of a range whose scale is a normal float32 number."""

Role = Literal[
    "join", "move", "each", "sum", "product", "bound",
    "softmax", "heavy", "whole", "compare", "other",
]  # fmt: skip
"""What an operator does to values:

join     joins several tensors, with unchanged values
move     moves values, or leaves some out
each     computes each output value from one input value
sum      adds, subtracts or selects: the output is about as wide as the widest input
product  multiplies or divides
bound    the smaller or the larger of two values
softmax  a softmax, for which only differences to the largest value matter
heavy    a product by weights, or of matrices
whole    gives whole numbers
compare  compares two values
other    any other operator
"""


class Step(Struct, frozen=True):
    """An operator of a graph of any format."""

    name: str
    role: Role
    taken: tuple[str, ...]
    """Names of the computed float tensors among its inputs."""
    given: tuple[str, ...]
    """Names of its outputs."""
    constants: tuple[np.ndarray, ...] = ()
    """The float constants that it computes with, or joins."""
    channels: tuple[float, ...] = ()
    """For a product by weights: about how large each channel of its output is."""
    divides: bool = False
    """For a product by a constant: whether it divides by the constant."""


def stay_float(
    steps: Sequence[Step],
    outputs: Iterable[str],
    ranges: Mapping[str, Range],
    widest_mask: float,
) -> frozenset[str]:
    """Names of the steps that must stay float. `steps`: in the order of computation. `widest_mask`:
    a mask before a softmax, which is sensitive to small differences, stays float if it is more than
    this many times as wide as the masked values."""
    parts, masks = _uneven_parts(steps, outputs, ranges), _masked_steps(steps, ranges, widest_mask)
    return frozenset(parts | masks | _whole_number_steps(steps))


def width(values: Range | np.ndarray) -> float:
    """The width of a range after it is extended to hold zero, as every grid does."""
    low, high = (
        (values.min(initial=0.0), values.max(initial=0.0))
        if isinstance(values, np.ndarray)
        else values
    )
    return max(float(high), 0.0) - min(float(low), 0.0)


# --- parts of an output


def _uneven_parts(
    steps: Sequence[Step], outputs: Iterable[str], ranges: Mapping[str, Range]
) -> set[str]:
    last = _last_steps(steps, outputs)
    widths: dict[str, list[float]] = {}
    """Tensor -> the width of each part that was joined in it."""
    makers = {name: step for step in last for name in step.given}
    float_steps: set[str] = set()
    for step in last:
        if step.role == "move":
            parts = _widths(step.taken or step.given, widths, ranges)
        elif step.role == "join":
            parts = [*_widths(step.taken, widths, ranges), *map(width, step.constants)]
            if _apart(parts):
                float_steps |= {step.name, *_earlier_joins(step, makers)}
        else:
            if _stretched(step, ranges):
                float_steps.add(step.name)
            continue
        widths |= dict.fromkeys(step.given, parts)
    float_tensors: set[str] = set()
    for step in last:  # once in float, all that follows up to the output is in float
        if step.name in float_steps or float_tensors & set(step.taken):
            float_steps.add(step.name)
            float_tensors |= set(step.given)
    return float_steps


def _last_steps(steps: Sequence[Step], outputs: Iterable[str]) -> list[Step]:
    """The steps from which only moves, joins and computations with constants lead to an output, in
    the order of computation."""
    reached, last_steps = set(outputs), []
    for step in reversed(steps):
        if not reached & set(step.given):
            continue
        alone = step.role in ("sum", "product", "bound") and len(step.taken) == 1
        if alone or step.role in ("join", "move", "each"):
            reached |= set(step.taken)
            last_steps.append(step)
        elif step.role == "heavy":
            last_steps.append(step)
    return last_steps[::-1]


def _widths(
    names: Iterable[str], widths: Mapping[str, list[float]], ranges: Mapping[str, Range]
) -> list[float]:
    part_widths: list[float] = []
    for name in names:
        if name in widths:
            part_widths += widths[name]
        elif name in ranges:
            part_widths.append(width(ranges[name]))
    return part_widths


def _apart(widths: Iterable[float]) -> bool:
    finite_widths = [entry for entry in widths if 0.0 < entry < np.inf]
    return bool(finite_widths) and max(finite_widths) > APART * min(finite_widths)


def _slices(array: np.ndarray) -> Iterator[list[float]]:
    """For each axis, the largest magnitude in every slice along it."""
    for axis in range(array.ndim):
        other_axes = tuple(place for place in range(array.ndim) if place != axis)
        yield np.abs(array).max(axis=other_axes, initial=0.0).tolist()


def _earlier_joins(step: Step, makers: Mapping[str, Step]) -> Iterator[str]:
    """Names of the joins before a step whose values it only joins again."""
    for name in step.taken:
        maker = makers.get(name)
        if maker is not None and maker.role in ("join", "move"):
            if maker.role == "join":
                yield maker.name
            yield from _earlier_joins(maker, makers)


def _stretched(step: Step, ranges: Mapping[str, Range]) -> bool:
    """Whether weights or constants alone make the ranges of a step's outputs differ by more than
    APART."""
    if step.role == "heavy":
        return _apart(step.channels)
    if not step.constants or len(step.taken) != 1 or step.taken[0] not in ranges:
        return False
    if step.role == "product":
        return any(_apart(sizes) for array in step.constants for sizes in _slices(array))
    if step.role == "sum":
        input_width = width(ranges[step.taken[0]])
        spread = max((float(np.ptp(array)) for array in step.constants if array.size), default=0.0)
        return input_width > 0.0 and np.isfinite(spread) and spread > APART * input_width
    return False


def channels(
    weight: np.ndarray, axis: int, bias: np.ndarray | None, input_range: Range | None
) -> tuple[float, ...]:
    """About how large each output channel of a product by weights is: the norm of its weights times
    the largest magnitude of the input, plus the magnitude of its bias."""
    largest = max(map(abs, input_range)) if input_range is not None else 1.0
    other_axes = tuple(place for place in range(weight.ndim) if place != axis)
    sizes = np.sqrt(np.square(weight.astype(np.float64)).sum(axis=other_axes)) * largest
    if bias is not None and bias.size == sizes.size:
        sizes = sizes + np.abs(bias.reshape(-1))
    return tuple(sizes.tolist())


# --- masks


def _masked_steps(
    steps: Sequence[Step], ranges: Mapping[str, Range], widest_mask: float
) -> set[str]:
    ranges = {**ranges, **dict(_switched_masks(steps, ranges))}
    makers = {name: step for step in steps for name in step.given}
    takers: dict[str, list[Step]] = {}
    for step in steps:
        for name in step.taken:
            takers.setdefault(name, []).append(step)
    masked_widths: dict[str, float] = {}
    """Tensor that contains a mask -> the width of the values that were masked."""
    float_steps: set[str] = set()
    for step in steps:
        input_widths = [masked_widths[name] for name in step.taken if name in masked_widths]
        if input_widths:
            float_steps.add(step.name)
            if step.role != "heavy":
                _carry_mask(step, max(input_widths), masked_widths, ranges)
        elif step.role in ("sum", "bound") or (step.role == "join" and _pads_with_constant(step)):
            mask = _mask(step, ranges, makers, takers, widest_mask)
            if mask is not None:
                narrow, chain = mask
                float_steps |= {step.name, *chain}
                masked_widths |= dict.fromkeys(step.given, narrow)
    return float_steps


def _carry_mask(
    step: Step, narrow: float, masked_widths: dict[str, float], ranges: Mapping[str, Range]
) -> None:
    """Mark a step's outputs as masked if they are still much wider than the masked values."""
    for array in step.constants if step.role == "product" else ():
        factor = float(np.abs(array).max(initial=0.0))
        if 0.0 < factor < np.inf:
            narrow = narrow / factor if step.divides else narrow * factor
    if step.role == "softmax":  # shares, or their logarithms
        narrow = max(narrow, 1.0)
    for name in step.given:
        if name not in ranges or width(ranges[name]) > APART * narrow:
            masked_widths[name] = narrow


def _mask(
    step: Step,
    ranges: Mapping[str, Range],
    makers: Mapping[str, Step],
    takers: Mapping[str, list[Step]],
    widest_mask: float,
) -> tuple[float, set[str]] | None:
    """-> the width of the masked values, and the names of the steps that compute the mask; None
    where the step applies no mask."""
    computed = [(width(ranges[name]), name) for name in step.taken if name in ranges]
    constant = max((_largest_magnitude(array) for array in step.constants), default=0.0)
    operands = sorted([*computed, *([(constant, "")] if step.constants else [])])
    if len(operands) < 2:
        return None
    narrow, (wide, name) = operands[0][0], operands[-1]
    if not operands[0][1] or narrow == 0.0:
        return None  # masked values are computed, and not always zero
    if step.role == "bound":
        reached = max((width(ranges[out]) for out in step.given if out in ranges), default=0.0)
        wide = min(wide, reached)
    chain = _computed_by(name, makers) if name else set()
    if wide > MASKING * narrow:
        return narrow, chain or set()
    if chain is not None and wide > widest_mask * narrow and _leads_to_softmax(step, takers):
        return narrow, chain
    return None


def _pads_with_constant(step: Step) -> bool:
    """Whether a step surrounds values with a constant other than zero."""
    return len(step.taken) == 1 and any(map(_largest_magnitude, step.constants))


def _largest_magnitude(array: np.ndarray) -> float:
    return float(np.abs(array).max(initial=0.0))


def _computed_by(name: str, makers: Mapping[str, Step]) -> set[str] | None:
    """Names of the steps that compute a mask; None where a product by weights or a softmax is among
    them, so that it is no mask."""
    step_names, product_free = _steps_before([name], makers)
    return step_names if product_free else None


def _steps_before(names: Sequence[str], makers: Mapping[str, Step]) -> tuple[set[str], bool]:
    """-> names of the steps that compute some tensors, back to products by weights or softmaxes;
    and whether there was none of these."""
    waiting, step_names, product_free = list(names), set(), True
    while waiting:
        step = makers.get(waiting.pop())
        if step is None or step.name in step_names:
            continue
        if step.role in ("heavy", "softmax"):
            product_free = False
            continue
        step_names.add(step.name)
        waiting += step.taken
    return step_names, product_free


def _leads_to_softmax(step: Step, takers: Mapping[str, list[Step]]) -> bool:
    """Whether a softmax reads a step's output, through any steps except `heavy` and `other`."""
    waiting, visited = [step], {step.name}
    while waiting:
        for name in waiting.pop().given:
            for taker in takers.get(name, []):
                if taker.role == "softmax":
                    return True
                if taker.role not in ("heavy", "other") and taker.name not in visited:
                    visited.add(taker.name)
                    waiting.append(taker)
    return False


def _switched_masks(
    steps: Sequence[Step], ranges: Mapping[str, Range]
) -> Iterator[tuple[str, Range]]:
    """The ranges of masks that no calibration sample switched on: products by a large constant of
    values that were always 0."""
    for step in steps:
        if step.role == "product" and not step.divides and len(step.taken) == 1:
            factor = max((_largest_magnitude(array) for array in step.constants), default=0.0)
            low, high = ranges.get(step.taken[0], (1.0, 1.0))
            if low == high == 0.0 and factor >= SWITCH:
                yield from ((name, (-factor, 0.0)) for name in step.given)


# --- whole numbers


def _whole_number_steps(steps: Sequence[Step]) -> set[str]:
    makers = {name: step for step in steps for name in step.given}
    float_steps: set[str] = set()
    for step in steps:
        if step.role in ("whole", "compare"):
            earlier, product_free = _steps_before(step.taken, makers)
            if step.role == "whole" or product_free:
                float_steps |= {step.name, *earlier}
    return float_steps
