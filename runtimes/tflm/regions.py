"""Regions of a TFLite graph that can be computed in bands of rows, and the rows that bands need."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from onmetal.converters.tflite.net import SAME, Net, Op, Tensor

MOST_OPERATORS = 24
"""Most operators in a region: the rows that bands share grow with each."""
Rows = tuple[int, int]
"""The first row, and the one behind the last."""
WINDOWS = frozenset({"AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D"})
ROW_WISE = frozenset(
    {"ABS", "ADD", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC", "MAXIMUM", "MINIMUM", "MUL", "PRELU"}
    | {"QUANTIZE", "RELU", "RELU6", "RELU_N1_TO_1", "SUB", "TANH"}
)
"""Operators whose rows depend on the same rows of their inputs."""
PADS = frozenset({"PAD", "PADV2"})


class Region(NamedTuple):
    """Operators number `first` to `last`: exactly those that compute `result` from `source`."""

    first: int
    last: int
    source: Tensor
    result: Tensor


class Need(NamedTuple):
    """The rows of an operator's inputs that rows of its output depend on."""

    rows: Rows
    top: int
    bottom: int
    """Rows of padding."""


class OnlyPadding(Exception):
    """Raised for a band that would consist of padding alone."""


def _window(op: Op) -> tuple[int, int]:
    """How many rows and columns its window spans."""
    if op.kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
        return op.options["filterHeight"], op.options["filterWidth"]
    _, high, wide, _ = op.taken[1].shape
    down, across = op.options.get("dilationHFactor", 1), op.options.get("dilationWFactor", 1)
    return (high - 1) * down + 1, (wide - 1) * across + 1


def padding_of(op: Op, axis: int) -> tuple[int, int]:
    """The padding before the first and behind the last row (axis 1) or column (2) of its input."""
    if op.kind in PADS:
        before, behind = np.asarray(op.taken[1].data).reshape(-1, 2)[axis]
        return int(before), int(behind)
    if op.options["padding"] != SAME:
        return 0, 0
    stride = op.options["strideH" if axis == 1 else "strideW"]
    last = (op.outputs[0].shape[axis] - 1) * stride + _window(op)[axis - 1]
    total = max(last - op.taken[0].shape[axis], 0)
    return total // 2, total - total // 2


def need_for(op: Op, rows: Rows) -> Need:
    """The rows of each of its inputs for these rows of its output. Raises OnlyPadding."""
    if op.kind in ROW_WISE or op.kind == "CONCATENATION":
        return Need(rows, 0, 0)
    high, above = op.taken[0].shape[1], padding_of(op, 1)[0]
    if op.kind in PADS:
        first, last = rows[0] - above, rows[1] - above
    else:
        stride = op.options["strideH"]
        first = rows[0] * stride - above
        last = (rows[1] - 1) * stride + _window(op)[0] - above
    inside = max(first, 0), min(last, high)
    if inside[0] >= inside[1]:
        raise OnlyPadding
    return Need(inside, inside[0] - first, last - inside[1])


def _computable_by_rows(op: Op, available: set[Tensor]) -> bool:
    """Whether the operator can be computed by rows from the available tensors and constants."""
    if len(op.outputs) != 1 or not _has_rows(op.outputs[0]):
        return False
    moving = [tensor for tensor in op.taken if tensor.data is None]
    if (
        not moving
        or any(tensor not in available for tensor in moving)
        or op.taken[0] not in available
    ):
        return False
    out = op.outputs[0]
    if op.kind in ROW_WISE:
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
    # Pooling ignores its padding, which no PAD operator before it can express.
    pools = op.kind not in ("CONV_2D", "DEPTHWISE_CONV_2D")
    return not pools or not any((*padding_of(op, 1), *padding_of(op, 2)))


def _has_rows(tensor: Tensor) -> bool:
    """Whether the tensor has batch 1, integers, and more than one row."""
    is_integer = tensor.dtype in (np.int8, np.int16) and not tensor.per_channel
    return is_integer and len(tensor.shape) == 4 and tensor.shape[0] == 1 and tensor.shape[1] > 1


def regions(net: Net) -> list[Region]:
    """All regions of consecutive operators that can be split, in the order of the first of them."""
    last = {tensor: number for number, op in enumerate(net.ops) for tensor in op.taken}
    last |= dict.fromkeys(net.outputs, len(net.ops))
    result = list(_regions_from(net, [t for t in net.inputs if _has_rows(t)], 0, last))
    for number, op in enumerate(net.ops):
        sources = [tensor for tensor in op.outputs if _has_rows(tensor)]
        result += _regions_from(net, sources, number + 1, last)
    return result


def _regions_from(
    net: Net, sources: Sequence[Tensor], first: int, last: dict[Tensor, int]
) -> Iterator[Region]:
    """`last`: the last operator that takes each tensor; one that none takes is in no region."""
    for source in sources:
        inner: list[Tensor] = []
        for number, op in enumerate(net.ops[first : first + MOST_OPERATORS], first):
            if not _computable_by_rows(op, {source, *inner}):
                break
            if all(last.get(tensor, len(net.ops)) <= number for tensor in inner):
                yield Region(first, number, source, op.outputs[0])
            inner.append(op.outputs[0])
