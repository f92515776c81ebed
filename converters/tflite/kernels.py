"""The types and ranks with which TFLite's kernels compute each operator."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from onmetal.converters.tflite.net import Tensor

WHOLE = frozenset(
    {"ADD", "BROADCAST_TO", "CAST", "CONCATENATION", "CUMSUM", "DIV", "EQUAL", "FLOOR_MOD"}
    | {"GATHER", "GATHER_ND", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL", "LOGICAL_AND"}
    | {"LOGICAL_NOT", "LOGICAL_OR", "MAXIMUM", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "NEG"}
    | {"NOT_EQUAL", "ONE_HOT", "PAD", "PADV2", "POW", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD"}
    | {"RESHAPE", "SELECT_V2", "SPLIT", "SPLIT_V", "STRIDED_SLICE", "SUB", "SUM", "TILE"}
    | {"TOPK_V2", "TRANSPOSE"}
)
"""Operators with kernels for integers and booleans too; all others compute with floats."""
MOVES = frozenset({"CAST", "CONCATENATION", "GATHER", "RESHAPE", "STRIDED_SLICE", "TRANSPOSE"})
"""Operators of WHOLE that also have kernels for bytes, the type of images."""
BYTES = (np.dtype(np.uint8), np.dtype(np.int8))
FIVE = frozenset({"BATCH_MATMUL", "MIRROR_PAD", "PAD", "PADV2", "STRIDED_SLICE"})
"""Operators for which some kernels take five axes at most."""
KNOWN = tuple(np.dtype(kind) for kind in (np.float32, np.int32, np.int64, np.bool_))
"""Types that a tensor may have; of bytes, see MOVES."""
_FLOATS_AND_INT32 = dict.fromkeys(
    ("ABS", "ARG_MAX", "ARG_MIN", "POW", "SPLIT"), (np.float32, np.int32)
)
"""Operators that compute with int32 as well as with floats."""


def missing(kind: str, inputs: Sequence[Tensor], outputs: Sequence[Any]) -> str | None:
    """Why there is no kernel for an operator with these inputs and output types; None where there
    is one."""
    dtypes = [tensor.dtype for tensor in inputs]
    for dtype in (*dtypes, *map(np.dtype, outputs)):
        if dtype not in KNOWN and (kind not in MOVES or dtype not in BYTES):
            return f"{dtype} is not supported"
    ranks = [len(tensor.shape) for tensor in inputs]
    if kind in FIVE and max(ranks) > 5:
        return f"{max(ranks)} axes are not supported, 5 are"
    # TRANSPOSE_CONV and SPLIT take their values last: their first input is a shape or an axis.
    computed = dtypes[-1] if kind in ("TRANSPOSE_CONV", "SPLIT") else dtypes[0]
    if (kind not in WHOLE or kind in ("POW", "SPLIT")) and computed not in _FLOATS_AND_INT32.get(
        kind, (np.float32,)
    ):
        return f"{kind} does not compute with {computed} in TFLite"
    return None
