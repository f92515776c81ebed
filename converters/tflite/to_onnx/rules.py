"""The table of rules that write TFLite operators as ONNX, and the errors for what is refused."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from onmetal.converters.tflite.net import Net, Op, Tensor
from onmetal.converters.tflite.to_onnx.graph import Graph
from onmetal.errors import UnsupportedError

Function = Callable[[Graph, Op], None]


class Rule(NamedTuple):
    function: Function
    to: str
    """The ONNX operators that a TFLite operator becomes."""
    limits: str
    """Which parts of the operator are supported, or which are not; empty where all are."""


TABLE: dict[str, Rule] = {}


def writes(*kinds: str, to: str, limits: str = "") -> Callable[[Function], Function]:
    """Registers a rule: a function that, given an operator, emits the nodes that compute its
    outputs and calls `give` for each of them."""

    def register(function: Function) -> Function:
        for kind in kinds:
            assert kind not in TABLE, kind
            TABLE[kind] = Rule(function, to, limits)
        return function

    return register


def label(op: Op) -> str:
    kind = f"{op.kind} {op.custom}" if op.custom else op.kind
    return f"{kind} {op.outputs[0].name if op.outputs else ''!r}"


def refuse(op: Op, reason: str) -> UnsupportedError:
    return UnsupportedError(f"{label(op)}: {reason}")


def missing(net: Net) -> list[str]:
    """One operator of each kind for which there is no rule, by kind and output."""
    first = {(op.kind, op.custom): op for op in reversed(net.ops) if op.kind not in TABLE}
    return sorted(label(op) for op in first.values())


def taken(op: Op, place: int) -> Tensor:
    """An input that the operator must have."""
    tensor = op.inputs[place] if place < len(op.inputs) else None
    if tensor is None:
        raise refuse(op, f"it has no input {place}")
    return tensor


def given(op: Op, place: int) -> Tensor | None:
    """An input that the operator may have."""
    return op.inputs[place] if place < len(op.inputs) else None


def integers(graph: Graph, op: Op, place: int, what: str) -> np.ndarray:
    """A constant input of integers, int64. Raises UnsupportedError where it is computed."""
    array = graph.array(taken(op, place))
    if array is None:
        raise refuse(op, f"its {what} is computed, which is not supported; it must be constant")
    return array.astype(np.int64)


def axis_of(op: Op, axis: int, rank: int) -> int:
    """An axis as a number from 0 on."""
    found = axis + rank if axis < 0 else axis
    if not 0 <= found < max(rank, 1):
        raise refuse(op, f"axis {axis} does not fit {rank} axes")
    return found
