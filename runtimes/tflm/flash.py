"""What a model takes of a chip's flash: its weights, its graph, and the code that runs it.

The file lies in flash as it is, and is read there. How much code there is depends on the compiler
and on what else is linked: here it is modelled, by what the linker kept of TFLite Micro (commit
90b983c2) with CMSIS-NN (4ab83cc3), built by GCC 12.2 with -Os for a program of the interpreter and
one operator, less what operators share, counted once. For programs of six operators the model was 0
to 7 % too high (92,812 bytes linked for ResNet-8's on a Cortex-M4, 99,432 for DS-CNN's).
"""

from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters.tflite.parsing import read
from onmetal.runtimes.tflm.cmsis_nn import CORES, MVE

INTERPRETER_BYTES = (28520, 28192)
"""Code of a program without operators: for a Cortex-M4, for a Cortex-M55 with Helium."""
SHARED_BYTES = (4000, 2000)
"""Code that the larger operators share, about: determined with those two programs on each core."""
KERNEL_BYTES = {
    "ABS": (6228, 3796),
    "ADD": (13248, 9120),
    "ADD_N": (6312, 3776),
    "ARG_MAX": (2148, 2244),
    "AVERAGE_POOL_2D": (6956, 6436),
    "BATCH_MATMUL": (13556, 11940),
    "BATCH_TO_SPACE_ND": (2532, 2560),
    "BROADCAST_TO": (2652, 2676),
    "CAST": (2676, 2744),
    "CEIL": (1852, 1764),
    "CONCATENATION": (6144, 5276),
    "CONV_2D": (31876, 22932),
    "COS": (6048, 3752),
    "DEPTHWISE_CONV_2D": (22696, 22280),
    "DEPTH_TO_SPACE": (2792, 2804),
    "DEQUANTIZE": (3480, 1908),
    "DIV": (10092, 7500),
    "ELU": (3252, 3132),
    "EXP": (2468, 2544),
    "EXPAND_DIMS": (2180, 2228),
    "FILL": (2080, 2212),
    "FLOOR": (1200, 1096),
    "FULLY_CONNECTED": (17540, 14788),
    "GATHER": (3056, 3196),
    "HARD_SWISH": (5164, 2748),
    "L2_NORMALIZATION": (3168, 3232),
    "LEAKY_RELU": (5388, 2956),
    "LOG": (2548, 2576),
    "LOGISTIC": (8600, 6668),
    "MAXIMUM": (5736, 5764),
    "MAX_POOL_2D": (7180, 5888),
    "MEAN": (9080, 6752),
    "MINIMUM": (5736, 5768),
    "MUL": (12232, 9064),
    "NEG": (976, 996),
    "PACK": (1912, 2156),
    "PAD": (5896, 5196),
    "PADV2": (5896, 5208),
    "PRELU": (7240, 4736),
    "QUANTIZE": (6616, 3984),
    "REDUCE_MAX": (7160, 4760),
    "RELU": (5232, 2728),
    "RELU6": (2804, 1716),
    "RESHAPE": (2384, 2408),
    "RESIZE_BILINEAR": (3652, 3360),
    "RESIZE_NEAREST_NEIGHBOR": (3308, 3116),
    "ROUND": (1948, 1812),
    "RSQRT": (6796, 4392),
    "SHAPE": (1144, 1160),
    "SIN": (6048, 3776),
    "SLICE": (2892, 2944),
    "SOFTMAX": (12260, 10276),
    "SPACE_TO_BATCH_ND": (2660, 2660),
    "SPACE_TO_DEPTH": (2868, 2868),
    "SPLIT": (2180, 2296),
    "SPLIT_V": (2468, 2548),
    "SQRT": (2004, 2012),
    "SQUARE": (1904, 1908),
    "SQUARED_DIFFERENCE": (10136, 7536),
    "SQUEEZE": (1968, 1984),
    "STRIDED_SLICE": (6236, 6192),
    "SUB": (10908, 8244),
    "SUM": (8980, 6596),
    "SVDF": (13652, 10812),
    "TANH": (8808, 6828),
    "TRANSPOSE": (3264, 3600),
    "TRANSPOSE_CONV": (17852, 13412),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (21832, 19492),
    "UNPACK": (1724, 1916),
}
"""Code that each operator adds to INTERPRETER_BYTES, for the same two cores."""
OTHER_BYTES = (4096, 4096)
"""Code of an operator that is not in the table."""
NPU_BYTES = (20_000, 20_000)
"""An allowance for the Ethos-U's driver and operator, which were not built here."""


def needs(path: str, core: str | None) -> dict[str, Any]:
    """Bytes of flash, of the file's constants (`weights_bytes`), of all else in it (`graph_bytes`),
    of the code as modelled (`code_bytes`) and in all; `operators`, the kinds that the firmware must
    have; `whole_numbers`: whether nothing in it computes with floats."""
    source = Path(path)
    net = read(source)
    constants = {t.data.tobytes() for t in net.tensors() if t.data is not None}
    weights = sum(map(len, constants))  # equal ones share a buffer
    kinds = sorted({op.custom or op.kind for op in net.ops})
    column = 1 if core is not None and CORES[core] == MVE else 0
    code = INTERPRETER_BYTES[column] + SHARED_BYTES[column]
    code += sum(max(0, _kernel(kind)[column] - SHARED_BYTES[column]) for kind in kinds)
    size = source.stat().st_size
    return {
        "weights_bytes": weights,
        "graph_bytes": size - weights,
        "code_bytes": code,
        "total_bytes": size + code,
        "code_basis": "modelled",
        "operators": kinds,
        "whole_numbers": not any(t.dtype == np.float32 for op in net.ops for t in op.outputs),
    }


def _kernel(kind: str) -> tuple[int, int]:
    return NPU_BYTES if kind == "ethos-u" else KERNEL_BYTES.get(kind, OTHER_BYTES)
