"""The version of an operator: the least one that has all features in use.

From tensorflow/lite/tools/versioning/op_version.cc, for the operators that onmetal writes. A
runtime refuses a file with a version above its own, so that an old board reports at once which
operator it lacks.
"""

import numpy as np

from onmetal.converters.tflite.net import Op

_BY_TYPE: dict[str, tuple[int, int, int]] = {
    "AVERAGE_POOL_2D": (1, 2, 3),
    "MAX_POOL_2D": (1, 2, 3),
    "ADD": (1, 2, 2),
    "SUB": (1, 2, 2),
    "MUL": (1, 2, 4),
    "LOGISTIC": (1, 2, 3),
    "TANH": (1, 2, 3),
    "MAXIMUM": (1, 2, 4),
    "MINIMUM": (1, 2, 4),
    "PACK": (1, 2, 3),
    "PAD": (1, 2, 3),
    "PADV2": (1, 2, 3),
    "CONCATENATION": (1, 2, 3),
    "SOFTMAX": (1, 2, 3),
    "MEAN": (1, 2, 3),
    "MIRROR_PAD": (1, 2, 3),
    "REDUCE_MAX": (1, 2, 3),
    "REDUCE_MIN": (1, 2, 3),
    "RELU6": (1, 2, 3),
    "RELU": (1, 2, 3),
    "RSQRT": (1, 2, 3),
    "SLICE": (1, 2, 4),
    "TRANSPOSE": (1, 2, 5),
    "GATHER": (1, 2, 4),
    "GATHER_ND": (1, 1, 3),
    "BATCH_MATMUL": (1, 2, 3),
    "RESIZE_BILINEAR": (1, 2, 4),
    "RESIZE_NEAREST_NEIGHBOR": (1, 2, 4),
    "LEAKY_RELU": (1, 1, 2),
    "L2_NORMALIZATION": (1, 2, 2),
    "EQUAL": (1, 2, 4),
    "LESS": (1, 2, 3),
    "GREATER_EQUAL": (1, 2, 3),
    "ABS": (1, 2, 3),
    "TILE": (1, 3, 3),
    "REVERSE_V2": (1, 3, 3),
    "BROADCAST_TO": (2, 3, 3),
    "TOPK_V2": (1, 2, 3),
    **dict.fromkeys(
        {"ARG_MAX", "ARG_MIN", "SPACE_TO_DEPTH", "SPLIT_V", "SUM", "LOG_SOFTMAX", "GREATER"}
        | {"LESS_EQUAL", "SQUARED_DIFFERENCE", "DEPTH_TO_SPACE", "STRIDED_SLICE", "NOT_EQUAL"}
        | {"UNPACK", "SELECT", "SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND"},
        (1, 2, 2),
    ),
    **dict.fromkeys(("EXP", "LOG", "REDUCE_PROD"), (1, 2, 2)),
    "GELU": (1, 2, 2),
    "QUANTIZE": (1, 1, 2),
    "DEQUANTIZE": (1, 2, 3),
}
"""Operator -> version for float (and all other) values, for int8, for int16."""


def version(op: Op) -> int:
    first = op.taken[1 if op.kind == "SPLIT" else 0] if op.taken else None
    output_dtype = op.outputs[0].dtype if op.outputs else None
    input_dtype = first.dtype if first is not None else None
    place = 1 if input_dtype == np.int8 else 2 if input_dtype == np.int16 else 0
    if op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"):
        return _weighted(op)
    if op.kind == "SPLIT":
        return 3 if input_dtype == np.int32 else (1, 2, 4)[place]
    by_type = _BY_TYPE.get(op.kind, (1, 1, 1))[place]
    rank = len(first.shape) if first is not None else 0
    if op.kind == "QUANTIZE":
        return 2 if output_dtype == np.int16 else 1
    if op.kind == "DEQUANTIZE" and input_dtype == np.float16:
        return 3
    if op.kind == "DEQUANTIZE" and first is not None and first.per_channel:
        return 5
    if op.kind == "TRANSPOSE" and rank > 4:
        return max(by_type, 4 if rank == 5 else 6)
    if op.kind in ("PAD", "PADV2", "STRIDED_SLICE") and rank > 4:
        return 4
    if op.kind == "SLICE" and rank > 4:
        return 5
    if op.kind == "RESIZE_BILINEAR" and op.options.get("halfPixelCenters"):
        return max(by_type, 3)
    if op.kind == "RESIZE_NEAREST_NEIGHBOR" and (
        op.options.get("halfPixelCenters") or op.options.get("alignCorners")
    ):
        return max(by_type, 3)
    if op.kind in ("MAXIMUM", "MINIMUM", "SUB", "DIV"):
        shapes = [len(tensor.shape) for tensor in op.taken[:2]]
        if op.taken[0].shape != op.taken[1].shape and max(shapes) > 4:
            return max(by_type, 2 if op.kind == "DIV" else 3)
    if op.kind in ("ADD", "SUB", "MUL") and input_dtype == np.int64:
        return {"ADD": 4, "SUB": 4, "MUL": 5}[op.kind]
    if op.kind == "MUL" and place == 1:
        return 3 if _gain(op) >= 1 else 2
    if op.kind == "ADD" and place == 2 and not op.options.get("potScaleInt16", True):
        return 3
    if op.kind == "SUB" and place == 2 and not op.options.get("potScaleInt16", True):
        return 5
    if op.kind == "CAST":
        kinds = {input_dtype, output_dtype}
        if np.dtype(np.float16) in kinds or np.dtype(np.float64) in kinds:
            return 5
        return 3 if np.dtype(np.int8) in kinds else 1
    return by_type


def _gain(op: Op) -> float:
    """The product of a quantized product's input scales over its output scale; 0 for floats."""
    scales = [t.scale for t in (*op.taken[:2], op.outputs[0])]
    if any(scale is None for scale in scales):
        return 0.0
    first, second, result = (float(np.asarray(scale).reshape(-1)[0]) for scale in scales)
    return first * second / result


def _weighted(op: Op) -> int:
    entry = op.taken[1] if op.kind != "TRANSPOSE_CONV" else op.taken[2]
    if op.kind == "TRANSPOSE_CONV":
        if op.activation:
            return 4
        return 3 if len(op.taken) == 4 else 2 if entry.dtype == np.int8 else 1
    source, weight = op.taken[0], op.taken[1]
    hybrid = source.dtype == np.float32 and weight.dtype == np.int8
    if op.kind == "CONV_2D":
        if source.shape[-1] != weight.shape[-1]:
            return 6
        if hybrid:
            return 5 if weight.per_channel else 2
        return {np.dtype(np.int8): 3, np.dtype(np.int16): 4}.get(source.dtype, 1)
    if op.kind == "DEPTHWISE_CONV_2D":
        if hybrid:
            return 6 if weight.per_channel else 4
        by_type = {np.dtype(np.int8): 3, np.dtype(np.int16): 5}
        dilated = any(op.options.get(f"dilation{side}Factor", 1) != 1 for side in "HW")
        return by_type.get(source.dtype, 2 if dilated else 1)
    if hybrid and weight.per_channel:
        return 12
    if hybrid:
        return 9 if op.options.get("asymmetricQuantizeInputs") else 3
    if source.dtype == np.int16:
        return 7
    if len(op.taken) == 2:
        return 6
    if op.options.get("keepNumDims"):
        return 5
    return 4 if source.dtype == np.int8 else 1
