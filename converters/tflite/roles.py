"""The role of each operator in `unlike`, which finds tensors that one grid cannot represent."""

from collections.abc import Mapping

from onmetal.converters import unlike
from onmetal.converters.tflite.net import Op
from onmetal.converters.tflite.operands import (
    activations,
    pads_with_limit,
    results,
)
from onmetal.converters.tflite.specification import (
    SHARED,
    WEIGHTED,
)
from onmetal.ranges import Range

MOVES = SHARED - (
    {"AVERAGE_POOL_2D", "CONCATENATION", "MAXIMUM", "MAX_POOL_2D", "MINIMUM", "PACK", "PADV2"}
    | {"REDUCE_MAX", "REDUCE_MIN", "RESIZE_BILINEAR", "SELECT_V2", "TOPK_V2"}
)
_ROLES: dict[str, unlike.Role] = {
    **dict.fromkeys(MOVES, "move"),
    **dict.fromkeys(("CONCATENATION", "PACK", "PADV2"), "join"),
    **dict.fromkeys(("ABS", "ELU", "EXP", "GELU", "HARD_SWISH", "LEAKY_RELU", "LOGISTIC"), "each"),
    **dict.fromkeys(("NEG", "PRELU", "RELU", "RELU6", "RELU_N1_TO_1", "SQUARE", "TANH"), "each"),
    **dict.fromkeys(("ADD", "ADD_N", "SELECT", "SELECT_V2", "SUB"), "sum"),
    **dict.fromkeys(("DIV", "MUL"), "product"),
    **dict.fromkeys(("MAXIMUM", "MINIMUM"), "bound"),
    **dict.fromkeys(("LOG_SOFTMAX", "SOFTMAX"), "softmax"),
    **dict.fromkeys(("CEIL", "FLOOR", "FLOOR_DIV", "FLOOR_MOD", "ROUND"), "whole"),
    **dict.fromkeys(("EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL"), "compare"),
    "NOT_EQUAL": "compare",
    **dict.fromkeys((*WEIGHTED, "BATCH_MATMUL"), "heavy"),
}


def unlike_step(op: Op, extremes: Mapping[str, Range]) -> unlike.Step:
    """What an operator does to values, for `unlike`."""
    role, floats = _ROLES.get(op.kind, "other"), activations(op)
    if op.kind == "DIV" and op.taken[1].data is None:
        role = "other"
    if op.kind == "CAST" and op.outputs[0].dtype.kind in "iu":
        role = "whole"
    constants = [tensor.data for tensor in floats if tensor.data is not None]
    if op.kind == "PADV2" and pads_with_limit(op):
        constants = []  # it may saturate
    return unlike.Step(
        op.outputs[0].name,
        role,
        tuple(tensor.name for tensor in floats if tensor.data is None),
        tuple(tensor.name for tensor in results(op)),
        tuple(constants),
        _channels(op, extremes),
        op.kind == "DIV",
    )


def _channels(op: Op, extremes: Mapping[str, Range]) -> tuple[float, ...]:
    if op.kind not in WEIGHTED:
        return ()
    rule = WEIGHTED[op.kind]
    source, weight = op.inputs[rule.taken], op.inputs[rule.weight]
    bias = op.inputs[rule.bias] if len(op.inputs) > rule.bias else None
    if source is None or source.name not in extremes or weight is None or weight.data is None:
        return ()
    offsets = bias.data if bias is not None else None
    return unlike.channels(weight.data, rule.axis or 0, offsets, extremes[source.name])
