"""What a model takes of a microcontroller's flash: its weights, its graph, and the code that runs it.

The file lies in flash as it is, and is read there. How much code there is depends on the compiler
and on what else is linked: here it is modelled, by what the linker kept of TFLite Micro (commit
90b983c2) with CMSIS-NN (4ab83cc3), built by GCC 12.2 with -Os for a program of the interpreter and
one operator. Operators share code, so that their sum is rather too large.
"""

from pathlib import Path
from typing import Any

import numpy as np

from onmetal.converters.tflite.cmsis_nn import CORES, MVE
from onmetal.converters.tflite.net import read

INTERPRETER_BYTES = (28192, 28192)
"""Of a program without operators: for a Cortex-M4, for a Cortex-M55 with Helium."""
KERNEL_BYTES = {
    "ABS": (3796, 3796),
    "ADD": (9120, 9120),
    "ADD_N": (3776, 3776),
    "ARG_MAX": (2244, 2244),
    "AVERAGE_POOL_2D": (6436, 6436),
    "BATCH_MATMUL": (11940, 11940),
    "BATCH_TO_SPACE_ND": (2560, 2560),
    "BROADCAST_TO": (2676, 2676),
    "CAST": (2744, 2744),
    "CEIL": (1764, 1764),
    "CONCATENATION": (5276, 5276),
    "CONV_2D": (22932, 22932),
    "COS": (3752, 3752),
    "DEPTHWISE_CONV_2D": (22280, 22280),
    "DEPTH_TO_SPACE": (2804, 2804),
    "DEQUANTIZE": (1908, 1908),
    "DIV": (7500, 7500),
    "ELU": (3132, 3132),
    "EXP": (2544, 2544),
    "EXPAND_DIMS": (2228, 2228),
    "FILL": (2212, 2212),
    "FLOOR": (1096, 1096),
    "FULLY_CONNECTED": (14788, 14788),
    "GATHER": (3196, 3196),
    "HARD_SWISH": (2748, 2748),
    "L2_NORMALIZATION": (3232, 3232),
    "LEAKY_RELU": (2956, 2956),
    "LOG": (2576, 2576),
    "LOGISTIC": (6668, 6668),
    "MAXIMUM": (5764, 5764),
    "MAX_POOL_2D": (5888, 5888),
    "MEAN": (6752, 6752),
    "MINIMUM": (5768, 5768),
    "MUL": (9064, 9064),
    "NEG": (996, 996),
    "PACK": (2156, 2156),
    "PAD": (5196, 5196),
    "PADV2": (5208, 5208),
    "PRELU": (4736, 4736),
    "QUANTIZE": (3984, 3984),
    "REDUCE_MAX": (4760, 4760),
    "RELU": (2728, 2728),
    "RELU6": (1716, 1716),
    "RESHAPE": (2408, 2408),
    "RESIZE_BILINEAR": (3360, 3360),
    "RESIZE_NEAREST_NEIGHBOR": (3116, 3116),
    "ROUND": (1812, 1812),
    "RSQRT": (4392, 4392),
    "SHAPE": (1160, 1160),
    "SIN": (3776, 3776),
    "SLICE": (2944, 2944),
    "SOFTMAX": (10276, 10276),
    "SPACE_TO_BATCH_ND": (2660, 2660),
    "SPACE_TO_DEPTH": (2868, 2868),
    "SPLIT": (2296, 2296),
    "SPLIT_V": (2548, 2548),
    "SQRT": (2012, 2012),
    "SQUARE": (1908, 1908),
    "SQUARED_DIFFERENCE": (7536, 7536),
    "SQUEEZE": (1984, 1984),
    "STRIDED_SLICE": (6192, 6192),
    "SUB": (8244, 8244),
    "SUM": (6596, 6596),
    "SVDF": (10812, 10812),
    "TANH": (6828, 6828),
    "TRANSPOSE": (3600, 3600),
    "TRANSPOSE_CONV": (13412, 13412),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (19492, 19492),
    "UNPACK": (1916, 1916),
}
"""What each operator adds to that, for the same two cores."""
OTHER_BYTES = (4096, 4096)
"""Of an operator that is not in the table."""
NPU_BYTES = (20_000, 20_000)
"""Of the Ethos-U's driver and operator, about."""


def needs(path: str, core: str | None) -> dict[str, Any]:
    """Bytes of flash, of the file's constants (`weights_bytes`), of all else in it (`graph_bytes`),
    of the code as modelled (`code_bytes`) and in all; `operators`, the kinds that the firmware must
    have; `whole_numbers`: whether nothing in it computes with floats."""
    source = Path(path)
    net = read(source)
    constants = {id(t.data): t.data.nbytes for t in net.tensors() if t.data is not None}
    weights = min(sum(constants.values()), source.stat().st_size)
    kinds = sorted({op.custom or op.kind for op in net.ops})
    column = 1 if core is not None and CORES[core] == MVE else 0
    kernels = sum(
        (NPU_BYTES if kind == "ethos-u" else KERNEL_BYTES.get(kind, OTHER_BYTES))[column]
        for kind in kinds
    )
    code = INTERPRETER_BYTES[column] + kernels
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
