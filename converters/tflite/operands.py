"""The float tensors of an operator, and constants that stand for a limit instead of a number."""

import numpy as np

from onmetal.converters.tflite.net import Op, Tensor
from onmetal.converters.tflite.specification import (
    WEIGHTED,
)

HUGE = 1e30
"""Constants beyond this stand for a limit, not for a number."""


def activations(op: Op) -> list[Tensor]:
    """The float inputs of an operator without its weights and bias."""
    if op.kind in WEIGHTED:
        source = op.inputs[WEIGHTED[op.kind].taken]
        return [source] if source is not None and source.is_float else []
    return [tensor for tensor in op.taken if tensor.is_float]


def results(op: Op) -> list[Tensor]:
    return [tensor for tensor in op.outputs if tensor.is_float]


def selects(op: Op) -> bool:
    """Whether an operator is a 1x1 convolution that only moves values: its weights are 0 or 1, with
    at most one 1 for each output channel."""
    if op.kind != "CONV_2D" or op.activation:
        return False
    weight, bias = op.taken[1].data, op.taken[2].data if len(op.taken) > 2 else None
    assert weight is not None
    if weight.shape[1:3] != (1, 1) or (bias is not None and bias.any()):
        return False
    flat = weight.reshape(weight.shape[0], -1)
    return bool(np.isin(flat, (0, 1)).all() and (flat.sum(axis=1) <= 1).all())


def pads_with_limit(pad: Op) -> bool:
    """Whether a PADV2 pads with the least float, as before a maximum."""
    return holds_limit(pad.taken[2])


def holds_limit(tensor: Tensor) -> bool:
    return tensor.data is not None and tensor.is_float and bool(np.any(np.abs(tensor.data) >= HUGE))
