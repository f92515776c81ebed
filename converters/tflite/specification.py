"""TFLite's quantization specification as data: which operators compute in integers, and how.

From https://ai.google.dev/edge/litert/models/quantization_spec, and from the kernels of LiteRT 2.3
where it states nothing. The quantizer and the checker both use these tables.
"""

from msgspec import Struct

SHARED = frozenset(
    {"AVERAGE_POOL_2D", "BATCH_TO_SPACE_ND", "BROADCAST_TO", "CONCATENATION", "DEPTH_TO_SPACE"}
    | {"EXPAND_DIMS", "GATHER", "GATHER_ND", "MAX_POOL_2D", "MAXIMUM", "MINIMUM", "MIRROR_PAD"}
    | {"PACK", "PAD", "PADV2", "REDUCE_MAX", "REDUCE_MIN", "RESHAPE", "RESIZE_BILINEAR"}
    | {"RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "SELECT_V2", "SLICE", "SPACE_TO_BATCH_ND"}
    | {"SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQUEEZE", "STRIDED_SLICE", "TILE", "TOPK_V2"}
    | {"TRANSPOSE", "UNPACK"}
)
"""Pass-through: inputs and outputs have one scale and zero point."""

FREE = frozenset(
    {"ABS", "ADD", "ARG_MAX", "ARG_MIN", "BATCH_MATMUL", "DIV", "ELU", "EQUAL", "EXP", "GELU"}
    | {"GREATER", "GREATER_EQUAL", "HARD_SWISH", "LEAKY_RELU", "LESS", "LESS_EQUAL", "LOG"}
    | {"MEAN", "MUL", "NOT_EQUAL", "PRELU", "REDUCE_PROD", "RELU", "RELU6", "RELU_N1_TO_1"}
    | {"RSQRT", "SQRT", "SQUARED_DIFFERENCE", "SUB"}
)
"""Every tensor has a scale of its own. (SUM is not among them: reference kernels saturate it.)"""


class Weighted(Struct, frozen=True):
    """An operator with constant 8-bit weights, and a bias in the scale of its products."""

    taken: int
    """Which of its inputs is the activation."""
    weight: int
    bias: int
    axis: int | None
    """The weight's axis of per-channel scales; None where it has one scale."""


WEIGHTED = {
    "CONV_2D": Weighted(0, 1, 2, 0),
    "DEPTHWISE_CONV_2D": Weighted(0, 1, 2, 3),
    # Per-channel weights are newer than the runtimes of many boards, which use the first scale for
    # all channels without an error.
    "FULLY_CONNECTED": Weighted(0, 1, 2, None),
    "TRANSPOSE_CONV": Weighted(2, 1, 3, 0),
}

FIXED: dict[str, dict[str, tuple[float, int]]] = {
    "s8": {
        "SOFTMAX": (1 / 256, -128),
        "LOGISTIC": (1 / 256, -128),
        "TANH": (1 / 128, 0),
        "LOG_SOFTMAX": (16 / 256, 127),
        "L2_NORMALIZATION": (1 / 128, 0),
    },
    "s16": {
        "SOFTMAX": (1 / 32768, 0),
        "LOGISTIC": (1 / 32768, 0),
        "TANH": (1 / 32768, 0),
    },
}
"""Type of activations -> operator -> the scale and zero point that its output must have."""

INT16 = frozenset(
    {"ABS", "ADD", "AVERAGE_POOL_2D", "BATCH_MATMUL", "BATCH_TO_SPACE_ND", "BROADCAST_TO"}
    | {"CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "EXP", "EXPAND_DIMS"}
    | {"FULLY_CONNECTED", "GATHER", "GATHER_ND", "GELU", "LEAKY_RELU", "LOG", "LOGISTIC"}
    | {"MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "PACK", "PAD", "PADV2"}
    | {"REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "RELU", "RELU6", "RESHAPE", "RESIZE_BILINEAR"}
    | {"RESIZE_NEAREST_NEIGHBOR", "REVERSE_V2", "SELECT_V2", "SLICE", "SOFTMAX"}
    | {"SPACE_TO_BATCH_ND", "SPLIT", "SPLIT_V", "SQRT", "SQUEEZE", "STRIDED_SLICE", "SUB"}
    | {"TANH", "TOPK_V2", "TRANSPOSE", "TRANSPOSE_CONV", "UNPACK"}
)
"""Operators that compute with 16-bit activations."""

BIAS_MOST = {"s8": 2**30, "s16": 2**38}
"""The largest magnitude of an integer bias. The accumulator begins with the bias, so half of its
32-bit range is left for the products. With 16-bit activations the accumulator has 64 bits, of which
kernels rescale up to 47."""

LEAST_RATIO, MOST_RATIO = 2.0**-10, 2.0**7
"""The limits of an element-wise operator's input scale over its output scale. Beyond these, XNNPACK
refuses the operator, or the file (xnnpack/src/subgraph/*.c)."""


def supported(kind: str, activation: str) -> bool:
    if activation == "s16":
        return kind in INT16
    return kind in SHARED or kind in FREE or kind in WEIGHTED or kind in FIXED["s8"]
