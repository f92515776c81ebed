"""Every rule beside ONNX Runtime, however what it takes is stored; networks; refusals; passes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from onmetal.converters.onnx import reader
from onmetal.converters.tflite import convert, io, lowering
from onmetal.converters.tflite.convert import lower
from onmetal.converters.tflite.net import Net, Op, Tensor, constant
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.passes import activations, padding, reshapes, slices
from onmetal.converters.tflite.passes.order import tidy
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from tests.onnx_models import build, node, save, value
from tests.tflite_graphs import (
    STORED,
    Arrays,
    Fed,
    Given,
    Graph,
    agrees,
    compare,
    expected,
    floats,
    graph,
    kinds,
    lowered,
    run,
    single,
    weighted,
)

INT64 = np.iinfo(np.int64)
SMALL = (1, 6, 9, 10)


class Case(NamedTuple):
    kind: str
    inputs: tuple[Given, ...]
    attributes: dict[str, Any]
    outputs: tuple[str, ...] = ("y",)
    opset: int = 17

    def graph(self, stored: str) -> Graph:
        return single(self.kind, self.inputs, stored, self.outputs, self.opset, **self.attributes)


CASES: list[Case] = []


def add(
    kind: str,
    *inputs: Given,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 17,
    **attributes: Any,
) -> None:
    CASES.append(Case(kind, inputs, attributes, outputs, opset))


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def scalar(number: float, dtype: Any = np.float32) -> np.ndarray:
    return np.array(number, dtype)


def whole(*shape: int, low: int = 0, high: int = 9, dtype: Any = np.int64) -> np.ndarray:
    return np.random.default_rng(shape).integers(low, high, shape).astype(dtype)


def bools(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).random(shape) < 0.5


def between(low: float, high: float, *shape: int) -> Fed:
    return Fed(np.random.default_rng(shape).uniform(low, high, shape).astype(np.float32))


# --- convolutions

_W, _B = floats(8, 6, 3, 3), floats(8)
add("Conv", SMALL, _W, _B)
add("Conv", SMALL, _W, pads=[1, 1, 1, 1])
add("Conv", SMALL, _W, _B, pads=[1, 1, 1, 1], strides=[2, 2])
add("Conv", SMALL, _W, _B, pads=[0, 0, 1, 1], strides=[2, 2])
add("Conv", SMALL, _W, _B, pads=[2, 0, 1, 3], strides=[1, 2])
add("Conv", SMALL, _W, _B, pads=[2, 2, 2, 2], dilations=[2, 2])
add("Conv", SMALL, _W, _B, pads=[1, 0, 2, 3], dilations=[1, 3], strides=[2, 1])
for _auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
    add("Conv", SMALL, _W, _B, auto_pad=_auto)
    add("Conv", SMALL, _W, _B, auto_pad=_auto, strides=[2, 2])
    add("Conv", (1, 6, 10, 12), _W, _B, auto_pad=_auto, strides=[2, 3])
add("Conv", SMALL, floats(8, 6, 4, 4), _B, auto_pad="SAME_LOWER")
add("Conv", SMALL, floats(8, 6, 1, 1), _B, strides=[2, 2])
add("Conv", SMALL, floats(8, 6, 1, 7), _B, pads=[0, 3, 0, 3])
add("Conv", (3, 6, 5, 5), floats(8, 6, 7, 7), _B, pads=[3, 3, 3, 3], strides=[2, 2])
add("Conv", (1, 6, 1, 1), floats(8, 6, 1, 1), _B)
add("Conv", (2, 1, 9, 10), floats(4, 1, 3, 3), floats(4), pads=[1, 1, 1, 1])
add("Conv", SMALL, floats(8, 3, 3, 3), _B, pads=[1, 1, 1, 1], group=2)
add("Conv", SMALL, floats(9, 2, 3, 3), floats(9), strides=[2, 2], group=3)
add("Conv", SMALL, floats(6, 1, 3, 3), floats(6), pads=[1, 1, 1, 1], group=6)
add("Conv", SMALL, floats(12, 1, 3, 3), floats(12), pads=[1, 1, 1, 1], group=6)
add("Conv", SMALL, floats(18, 1, 5, 3), pads=[0, 0, 1, 1], strides=[2, 2], group=6)
add("Conv", SMALL, floats(6, 1, 3, 3), pads=[2, 2, 2, 2], dilations=[2, 2], group=6)
add("Conv", SMALL, floats(6, 1, 3, 3), auto_pad="SAME_LOWER", strides=[2, 2], group=6)
add("Conv", (2, 4, 15), floats(6, 4, 3), floats(6), pads=[1, 1])
add("Conv", (2, 4, 15), floats(6, 4, 4), pads=[2, 1], strides=[3])
add("Conv", (2, 4, 15), floats(6, 4, 3), floats(6), pads=[4, 0], dilations=[2])
add("Conv", (2, 4, 15), floats(4, 1, 5), pads=[2, 2], group=4)
add("Conv", (2, 4, 15), floats(8, 2, 5), auto_pad="SAME_UPPER", strides=[2], group=2)

_T = (1, 6, 5, 7)
for _kernel, _settings in (
    (2, {"strides": [2, 2]}),
    (3, {"strides": [2, 2]}),
    (3, {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1]}),
    (4, {"strides": [2, 2], "pads": [1] * 4}),
    (3, {"pads": [1] * 4}),
    (3, {"strides": [3, 2], "pads": [0, 1, 2, 1]}),
    (2, {"strides": [2, 3], "output_padding": [1, 1]}),
    (1, {"strides": [2, 2]}),
    (3, {"dilations": [2, 2], "strides": [2, 1], "pads": [1, 2, 1, 0]}),
    (3, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    (4, {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    (4, {"strides": [2, 3], "auto_pad": "SAME_LOWER"}),
    (3, {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    (3, {"strides": [2, 2], "auto_pad": "VALID"}),
    (3, {"strides": [2, 2], "output_shape": [10, 14]}),
    (3, {"strides": [2, 2], "output_shape": [11, 15]}),
):
    add("ConvTranspose", _T, floats(6, 4, _kernel, _kernel), floats(4), **_settings)
add("ConvTranspose", _T, floats(6, 2, 3, 3), strides=[2, 2], pads=[1] * 4, group=2)
add("ConvTranspose", _T, floats(6, 1, 4, 4), floats(6), strides=[2, 2], pads=[1] * 4, group=6)
add("ConvTranspose", (2, 6, 7), floats(6, 4, 4), floats(4), strides=[2], pads=[1, 1])
add("ConvTranspose", (2, 6, 7), floats(6, 4, 3), strides=[2], pads=[1, 1], output_padding=[1])
add("ConvTranspose", (1, 6, 1, 1), floats(6, 4, 4, 4), floats(4))

# --- pooling

_P = (2, 3, 10, 11)
_POOLS: list[tuple[str, dict[str, Any]]] = [
    ("MaxPool", {}),
    ("AveragePool", {}),
    ("AveragePool", {"count_include_pad": 1}),
]
for _kind, _more in _POOLS:
    add(_kind, _P, kernel_shape=[2, 2], strides=[2, 2], **_more)
    add(_kind, _P, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4, **_more)
    add(_kind, _P, kernel_shape=[3, 3], pads=[1] * 4, **_more)
    add(_kind, _P, kernel_shape=[3, 2], strides=[2, 3], pads=[1, 0, 0, 1], **_more)
    add(_kind, _P, kernel_shape=[3, 3], strides=[2, 2], pads=[0, 0, 1, 1], **_more)
    add(_kind, _P, kernel_shape=[2, 2], strides=[3, 3], ceil_mode=1, opset=19, **_more)
    add(_kind, _P, kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1, opset=19, **_more)
    add(
        _kind,
        _P,
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1] * 4,
        ceil_mode=1,
        opset=19,
        **_more,
    )
    for _auto in ("SAME_UPPER", "SAME_LOWER", "VALID"):
        add(_kind, _P, kernel_shape=[3, 3], strides=[2, 2], auto_pad=_auto, **_more)
    add(_kind, _P, kernel_shape=[10, 11], **_more)
    add(_kind, (2, 4, 15), kernel_shape=[3], strides=[2], pads=[1, 1], **_more)
    add(_kind, (2, 4, 15), kernel_shape=[4], strides=[4], ceil_mode=1, opset=19, **_more)
    add(_kind, (2, 4, 15), kernel_shape=[4], pads=[0, 3], **_more)
add("MaxPool", _P, kernel_shape=[5, 5], pads=[2] * 4)
add("AveragePool", _P, kernel_shape=[3, 3], pads=[2] * 4)
add("AveragePool", _P, kernel_shape=[3, 3], strides=[2, 2], pads=[2] * 4, count_include_pad=1)
for _kind in ("GlobalAveragePool", "GlobalMaxPool"):
    add(_kind, _P)
    add(_kind, (2, 4, 15))

# --- matrices

_shape: tuple[int, ...]
_X, _G = (3, 8), floats(8, 5)
add("Gemm", _X, _G)
add("Gemm", _X, _G, floats(5))
add("Gemm", _X, floats(5, 8), floats(5), transB=1)
add("Gemm", (8, 3), _G, floats(5), transA=1)
add("Gemm", (8, 3), floats(5, 8), floats(5), transA=1, transB=1)
add("Gemm", _X, floats(5, 8), floats(5), transB=1, alpha=0.5, beta=2.0)
for _shape in ((1, 5), (3, 5), (3, 1), (1,), (1, 1), ()):
    add("Gemm", _X, _G, floats(*_shape), beta=0.5)
add("Gemm", (5, 8), _G, floats(5, 1))
add("Gemm", (5, 8), _G, floats(5, 5))
add("Gemm", (1, 8), _G, floats(1, 5))
add("Gemm", _X, (8, 5))
add("Gemm", _X, (5, 8), floats(5), transB=1)
add("Gemm", (8, 3), (5, 8), (3, 5), transA=1, transB=1)
add("Gemm", _X, _G, (5,))
add("Gemm", floats(3, 8), (8, 5), (3, 1))
add("MatMul", _X, _G)
add("MatMul", (2, 5, 8), floats(8, 3))
add("MatMul", (2, 4, 5, 8), floats(8, 3))
add("MatMul", (2, 5, 8), floats(2, 8, 3))
add("MatMul", (2, 4, 5, 8), floats(4, 8, 3))
add("MatMul", (2, 3, 4, 5), (2, 3, 5, 6))
add("MatMul", (2, 3, 4, 5), (5, 6))
add("MatMul", (3, 4, 5), (2, 3, 5, 6))
add("MatMul", (2, 1, 4, 5), (1, 3, 5, 6))
add("MatMul", (8,), (8, 3))
add("MatMul", (8,), floats(8, 3))
add("MatMul", (3, 8), (8,))
add("MatMul", (2, 3, 8), floats(8))
add("MatMul", (8,), (8,))
add("MatMul", (8,), (2, 8, 3))
add("MatMul", floats(5, 8), (8, 3))
add("MatMul", floats(5, 8), (2, 8, 3))

# --- activations

for _kind in (
    "Relu",
    "Sigmoid",
    "Tanh",
    "Softsign",
    "Softplus",
    "Abs",
    "Neg",
    "Exp",
    "Sin",
    "Cos",
    "Sign",
    "Ceil",
    "Floor",
    "HardSwish",
):
    add(_kind, SMALL)
add("Softplus", between(-100, 100, 2, 5))
add("Sigmoid", between(-100, 100, 2, 5))
add("Relu", (2, 3))
add("Abs", Fed(whole(2, 3, low=-9, dtype=np.int32)))
add("Neg", Fed(whole(2, 3, low=-9)))
add("Neg", Fed(whole(2, 3, low=-9, dtype=np.int32)))
add("Round", Fed(np.array([[-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.4, -1.7]], np.float32)))
add("Log", between(0.1, 9, *SMALL))
add("Sqrt", between(0, 9, *SMALL))
add("Reciprocal", between(0.1, 9, *SMALL))
add("Not", Fed(bools(2, 3, 4)))
add("IsNaN", Fed(np.array([[1, np.nan, np.inf], [-1, 0, np.nan]], np.float32)))
for _least, _most in ((0, 6), (-1, 1), (0, 4), (-2, None), (None, 0.5), (0, None), (0.5, 2)):
    add(
        "Clip",
        SMALL,
        None if _least is None else scalar(_least),
        None if _most is None else scalar(_most),
    )
add("Clip", SMALL)
add("Clip", Fed(whole(3, 4, low=-9)), scalar(-2, np.int64), scalar(3, np.int64))
add("Clip", Fed(whole(3, 4, low=-9)), scalar(0, np.int64))
add("Clip", Fed(whole(3, 4, low=-9)), scalar(0, np.int64), scalar(INT64.max, np.int64))
add("Clip", Fed(whole(3, 4, low=-9)), scalar(INT64.min, np.int64), scalar(2, np.int64))
add("Clip", Fed(whole(3, 4, low=-9, dtype=np.int32)), None, scalar(3, np.int32))
add("Clip", Fed(whole(3, 4, low=-9, dtype=np.int32)))
add("LeakyRelu", SMALL)
add("LeakyRelu", SMALL, alpha=0.3)
for _shape in ((6, 1, 1), (1,), (1, 6, 1, 1), (6, 9, 10), (1, 6, 1, 10), (9, 1), (10,)):
    add("PRelu", SMALL, floats(*_shape))
add("PRelu", (2, 4, 15), floats(4, 1))
add("PRelu", (3, 8), floats(8))
add("PRelu", (3, 8), floats(1))
add("Elu", SMALL)
add("Elu", SMALL, alpha=0.5)
add("Selu", SMALL)
add("Selu", SMALL, alpha=1.0, gamma=2.0)
add("Celu", SMALL)
add("Celu", SMALL, alpha=2.5)
add("Celu", SMALL, alpha=-0.5)
add("HardSigmoid", between(-5, 5, *SMALL))
add("HardSigmoid", between(-5, 5, *SMALL), alpha=1 / 6)
add("HardSigmoid", between(-5, 5, *SMALL), alpha=0.3, beta=0.1)
add("Mish", between(-30, 30, *SMALL), opset=18)
add("Gelu", between(-5, 5, *SMALL), opset=20)
add("Gelu", between(-5, 5, *SMALL), opset=20, approximate="tanh")
add("ThresholdedRelu", SMALL)
add("ThresholdedRelu", SMALL, alpha=0.2)
for _kind in ("Softmax", "LogSoftmax"):
    for _axis in (-1, 0, 1, 2):
        add(_kind, (3, 6, 4, 5), axis=_axis)
    add(_kind, (3, 8))
    add(_kind, (2, 4, 15), axis=1)
    add(_kind, (7,))

# --- element by element

for _kind in ("Add", "Sub", "Mul"):
    add(_kind, SMALL, SMALL)
    add(_kind, SMALL, (10,))
    add(_kind, SMALL, (6, 1, 1))
    add(_kind, (1, 6, 1, 1), SMALL)
    add(_kind, SMALL, floats(6, 1, 1))
    add(_kind, scalar(2.5), SMALL)
    add(_kind, floats(1, 6, 9, 10), SMALL)
    add(_kind, (3, 1, 5), (4, 1))
    add(_kind, (5,), (2, 3, 4, 5))
    add(_kind, (2, 1, 3, 1, 4), (2, 5, 1, 6, 1))
    add(_kind, Fed(whole(3, 4)), Fed(whole(4)))
    add(_kind, Fed(whole(3, 4, dtype=np.int32)), scalar(3, np.int32))
    add(_kind, (2, 3), floats(1, 1, 1, 1))
add("Div", SMALL, between(0.5, 2, *SMALL))
add("Div", SMALL, between(0.5, 2, 6, 1, 1))
add("Div", SMALL, scalar(3))
add("Div", scalar(3), between(0.5, 2, *SMALL))
add("Div", (2, 3), np.array([2, 4, 5], np.float32))
add("Div", Fed(whole(3, 4, low=-20, high=20, dtype=np.int32)), scalar(3, np.int32))
for _kind in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    add(_kind, Fed(whole(3, 4)), Fed(whole(3, 4, high=3)))
    add(_kind, SMALL, (6, 1, 1))
    add(_kind, Fed(whole(3, 4, dtype=np.int32)), scalar(4, np.int32))
    add(_kind, SMALL, scalar(0.1))
add("Equal", Fed(bools(3, 4)), Fed(bools(4)))
for _kind in ("And", "Or", "Xor"):
    add(_kind, Fed(bools(3, 4)), Fed(bools(4)))
    add(_kind, Fed(bools(2, 3, 4, 5)), bools(3, 1, 1))
for _kind in ("Max", "Min", "Sum", "Mean"):
    add(_kind, SMALL, SMALL, (6, 1, 1))
    add(_kind, SMALL, scalar(0.1))
    add(_kind, SMALL)
    add(_kind, (2, 3, 4), (3, 4), (4,), (2, 1, 1))
add("Max", Fed(whole(3, 4)), scalar(4, np.int64))
add("Mod", Fed(whole(3, 4, low=-9)), scalar(4, np.int64))
add("Mod", Fed(whole(3, 4, low=-9, dtype=np.int32)), Fed(whole(4, low=1, dtype=np.int32)))
for _power in (2, 3, 0.5, -1, 1.5, 4, 0):
    add("Pow", between(0.2, 3, *SMALL), scalar(_power))
add("Pow", SMALL, scalar(2, np.int64))
add("Pow", between(0.2, 3, *SMALL), scalar(4, np.int64))
add("Pow", between(0.2, 3, *SMALL), floats(6, 1, 1))
add("Pow", between(0.2, 3, *SMALL), (6, 1, 1))
add("Pow", (2, 3), np.full((1, 1, 1), 2, np.float32))
add("Pow", scalar(2), (2, 3))
add("Where", Fed(bools(2, 3, 4, 5)), (2, 3, 4, 5), (2, 3, 4, 5))
add("Where", Fed(bools(2, 3, 4, 5)), scalar(-1e9), (2, 3, 4, 5))
add("Where", Fed(bools(4, 5)), (2, 3, 4, 5), scalar(0))
add("Where", Fed(bools(3, 1, 1)), (2, 3, 4, 5), (5,))
add("Where", Fed(bools(3, 4)), Fed(whole(3, 4)), scalar(7, np.int64))
add("Where", bools(3, 4), (3, 4), (3, 4))
for _to in (np.int32, np.int64, np.float32, np.bool_, np.uint8, np.int8):
    _code = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(_to))
    add("Cast", between(0.3, 90, 2, 3, 4, 5), to=_code)
    add("Cast", Fed(whole(3, 4)), to=_code)
    add("Cast", Fed(whole(3, 4, dtype=np.int32)), to=_code)
    add("Cast", Fed(bools(3, 4)), to=_code)
add("Cast", between(-90, 90, 3, 4), to=onnx.TensorProto.INT64)
add("Identity", SMALL)
add("Dropout", SMALL)

# --- reductions

for _kind in (
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
):
    _at: tuple[Given, ...]
    for _axes in ([2, 3], [1], [-1], [0, 2], [-3, -1], [0, 1, 2, 3], None):
        for _keep in (0, 1):
            if _kind in ("ReduceL1", "ReduceLogSum", "ReduceSumSquare") and _keep:
                continue
            _at = () if _axes is None else (np.array(_axes, np.int64),)
            add(_kind, between(0.2, 2, 2, 3, 4, 5), *_at, keepdims=_keep, opset=18)
add("ReduceMean", SMALL, axes=[2, 3], opset=13)
add("ReduceMax", (2, 4, 15), axes=[1], keepdims=0, opset=13)
add("ReduceSum", Fed(whole(2, 3, 4)), ints(1))
add("ReduceMax", Fed(whole(2, 3, 4)), axes=[-1])
add("ReduceSum", (2, 3), ints(), noop_with_empty_axes=0)
add("ReduceLogSumExp", between(80, 95, 2, 7), axes=[1])
for _kind in ("ArgMax", "ArgMin"):
    for _axis in (0, 1, -1, 2):
        for _keep in (0, 1):
            add(_kind, (2, 6, 4, 5), axis=_axis, keepdims=_keep)
    add(_kind, (3, 8), axis=1)
    add(_kind, Fed(whole(3, 9, high=3, dtype=np.int32)), axis=1)
    add(_kind, (3, 8))
for _axis in (-1, 1, 0):
    add("TopK", (3, 6, 4, 5), ints(3), outputs=("y", "z"), axis=_axis)
add("TopK", (2, 30), ints(5), outputs=("y", "-"))
add("TopK", (2, 30), ints(5), outputs=("-", "z"))
for _axis in (1, -1):
    add("CumSum", (2, 3, 4, 5), scalar(_axis, np.int64))
add("CumSum", (2, 3, 4, 5), scalar(1, np.int32), exclusive=1)
add("CumSum", (2, 3, 4, 5), scalar(2, np.int64), reverse=1)
add("CumSum", Fed(whole(3, 4)), scalar(1, np.int64), exclusive=1, reverse=1)

# --- normalization

_stats = tuple(np.abs(floats(6, seed=seed)) + np.float32(0.5) for seed in range(4))
add("BatchNormalization", SMALL, *_stats)
add("BatchNormalization", (3, 6), *_stats)
add("BatchNormalization", (3, 6, 7), *_stats, epsilon=1e-2)
add("InstanceNormalization", SMALL, floats(6), floats(6, seed=1))
add("InstanceNormalization", (2, 6, 7), floats(6), floats(6, seed=1), epsilon=1e-2)
add("InstanceNormalization", SMALL, np.ones(6, np.float32), np.zeros(6, np.float32))
add("LayerNormalization", (2, 7, 16), floats(16), floats(16, seed=1))
add("LayerNormalization", (2, 7, 16), floats(16))
add("LayerNormalization", (2, 6, 4, 5), floats(6, 4, 5), floats(6, 4, 5), axis=1)
add("LayerNormalization", (2, 6, 4, 5), floats(5), floats(5), axis=-1, epsilon=1e-2)
add("GroupNormalization", SMALL, floats(3), floats(3, seed=1), num_groups=3, opset=18)
add("GroupNormalization", (2, 6, 7), floats(2), floats(2, seed=1), num_groups=2, opset=18)
add("MeanVarianceNormalization", (2, 6, 4, 5))
add("MeanVarianceNormalization", (2, 6, 4, 5), axes=[1, 2, 3])
add("LRN", SMALL, size=5)
add("LRN", SMALL, size=3, alpha=0.1, beta=0.5, bias=2.0)
for _axis in (1, -1):
    for _p in (1, 2):
        add("LpNormalization", (2, 6, 4, 5), axis=_axis, p=_p)
add("LpNormalization", (3, 8))

# --- shapes

for _new in ([2, -1], [0, 2, 3, 10], [1, 2, 3, 2, 2, 5], [6, 20], [0, 6, -1], [120], [4, 30]):
    add("Reshape", (2, 6, 2, 5), np.array(_new, np.int64))
add("Reshape", (2, 6, 2, 5), ints(2, 2, 3, 2, 5))
add("Reshape", (1, 6, 1, 5), ints(6, 5))
add("Reshape", (6, 5), ints(1, 6, 1, 5))
for _axis in (0, 1, 2, -1, 4):
    add("Flatten", (2, 6, 2, 5), axis=_axis)
add("Squeeze", (2, 1, 6, 1), ints(1, -1))
add("Squeeze", (2, 1, 6, 1))
add("Squeeze", (2, 6, 1, 1), ints(2, 3))
add("Unsqueeze", (2, 6, 5), ints(1))
add("Unsqueeze", (2, 6, 5), ints(-1, 0))
for _perm in ((0, 2, 3, 1), (0, 3, 1, 2), (1, 0, 2, 3), (3, 2, 1, 0), (0, 1, 3, 2)):
    add("Transpose", (2, 6, 4, 5), perm=list(_perm))
add("Transpose", (2, 6, 5))
for _mode in ("DCR", "CRD"):
    add("DepthToSpace", (2, 12, 3, 4), blocksize=2, mode=_mode)
    add("DepthToSpace", (1, 4, 3, 4), blocksize=2, mode=_mode)
    add("DepthToSpace", (1, 18, 3, 4), blocksize=3, mode=_mode)
add("SpaceToDepth", (2, 3, 6, 4), blocksize=2)
add("SpaceToDepth", (1, 3, 6, 9), blocksize=3)
add("Expand", (3, 1, 5), ints(2, 3, 4, 5))
add("Expand", (1, 6, 1, 1), ints(1, 6, 4, 5))
add("Expand", (2, 6, 4, 5), ints(1, 1, 1))
add("Expand", (2, 6, 4, 5), ints(3, 1, 1, 1, 1))
add("Expand", Fed(whole(1, 3)), ints(4, 3))
add("Expand", Fed(bools(1, 3)), ints(4, 3))
add("Tile", (2, 3, 4, 5), ints(1, 2, 3, 1))
add("Tile", (2, 3, 4), ints(3, 1, 2))
add("Tile", Fed(whole(2, 3)), ints(2, 2))
add("Constant", outputs=("y",), value=onnx.numpy_helper.from_array(floats(2, 3)))
add("Constant", value_float=0.5)
add("Constant", value_ints=[1, 2, 3])
add("ConstantOfShape", ints(2, 3), value=onnx.numpy_helper.from_array(np.array([4], np.int64)))
add("ConstantOfShape", ints(2, 3))
add("Shape", (2, 3, 4))
add("Shape", (2, 3, 4), start=-2)
add("Shape", (2, 3, 4), start=0, end=2)
add("Size", (2, 3, 4))
add("Range", scalar(2, np.int64), scalar(9, np.int64), scalar(3, np.int64))
add("Range", scalar(0), scalar(1), scalar(0.25))
add("EyeLike", floats(3, 4), k=1)
add("EyeLike", (3, 4))

# --- parts

_S = (2, 6, 9, 10)
add("Slice", _S, ints(1), ints(4), ints(1))
add("Slice", _S, ints(0), ints(INT64.max), ints(2), ints(2))
add("Slice", _S, ints(1, 0), ints(INT64.max, INT64.max), ints(2, 3), ints(2, 2))
add("Slice", _S, ints(-1), ints(INT64.min), ints(3), ints(-1))
add("Slice", _S, ints(-2), ints(1), ints(1), ints(-2))
add("Slice", _S, ints(-1, 8), ints(-7, INT64.min), ints(1, 2), ints(-1, -3))
add("Slice", _S, ints(-3), ints(-1), ints(-1))
add("Slice", _S, ints(0, 2), ints(2, 5))
add("Slice", Fed(whole(8)), ints(-1), ints(-9), ints(0), ints(-1))
add("Split", _S, ints(2, 4), outputs=("y", "z"), axis=1)
add("Split", _S, ints(2, 2, 2), outputs=("y", "z", "u"), axis=1)
add("Split", _S, ints(1, 8), outputs=("y", "z"), axis=-2)
add("Split", _S, outputs=("y", "z"), axis=-1)
add("Split", _S, outputs=("y", "z", "u", "v"), axis=2, num_outputs=4, opset=18)
add("Split", _S, ints(1, 1), outputs=("y", "z"))
add("Concat", SMALL, (1, 3, 9, 10), axis=1)
add("Concat", SMALL, (1, 6, 2, 10), floats(1, 6, 1, 10), axis=-2)
add("Concat", (2, 3), (2, 5), axis=-1)
add("Concat", Fed(whole(2, 3)), whole(4, 3), axis=0)
for _mode in ("constant", "reflect", "edge"):
    add("Pad", SMALL, ints(0, 0, 1, 2, 0, 0, 3, 4), mode=_mode)
    add("Pad", SMALL, ints(0, 1, 0, 0, 0, 2, 0, 0), mode=_mode)
    add("Pad", SMALL, ints(0, 0, -1, 2, 0, 0, 1, -2), mode=_mode)
    add("Pad", (2, 4, 15), ints(0, 0, 3, 0, 0, 1), mode=_mode)
    add("Pad", SMALL, ints(1, 2, 3, 1), None, ints(2, -1), mode=_mode, opset=18)
add("Pad", SMALL, ints(0, 0, -1, -2, 0, 0, -1, 0))
add("Pad", SMALL, ints(0, 0, 1, 1, 0, 0, 1, 1), scalar(2.5))
add("Pad", (2, 3), ints(1, 1, 0, 0), scalar(float(np.finfo(np.float32).min)))
add("Pad", Fed(whole(2, 3)), ints(1, 1, 0, 0), scalar(7, np.int64))
add("Gather", _S, ints(0, 3, 3), axis=1)
add("Gather", _S, ints(-1, 0), axis=2)
add("Gather", _S, scalar(2, np.int64), axis=1)
add("Gather", _S, scalar(-1, np.int64), axis=-1)
add("Gather", _S, scalar(0, np.int64))
add("Gather", _S, ints([0, 1, 2], [3, 4, 5]), axis=1)
add("Gather", (2, 6, 5), ints([0, 1, 2], [3, 4, 5]), axis=1)
add("Gather", floats(20, 5), Fed(whole(2, 7)))
add("Gather", floats(20, 5), Fed(whole(2, 7, dtype=np.int32)))
add("Gather", (3, 5), Fed(np.array(1, np.int64)))
add("Gather", Fed(whole(8)), ints(-1, 2))
add("GatherND", _S, ints([0, 1], [1, -2]))
add("GatherND", _S, ints([[0], [1]], [[1], [-1]]))
add("GatherND", (3, 4), ints([0, 1], [2, 3]))
add("GatherND", (4, 5), Fed(np.array([[0], [3]], np.int64)))
add("OneHot", Fed(whole(3, 4)), scalar(9, np.int64), np.array([0, 1], np.float32))
add("OneHot", Fed(whole(3, 4)), ints(9), np.array([-1, 2], np.float32), axis=1)
add("OneHot", Fed(whole(3, 4, dtype=np.int32)), scalar(9, np.int32), floats(2), axis=0)

# --- sizes

_ROI, _NONE = np.zeros(0, np.float32), None
for _where in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"):
    for _round in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
        add(
            "Resize",
            (1, 3, 4, 6),
            _NONE,
            np.array([1, 1, 2, 2], np.float32),
            coordinate_transformation_mode=_where,
            nearest_mode=_round,
            mode="nearest",
        )
        add(
            "Resize",
            (1, 3, 7, 6),
            _NONE,
            _NONE,
            ints(1, 3, 5, 11),
            coordinate_transformation_mode=_where,
            nearest_mode=_round,
            mode="nearest",
        )
    for _size in ((8, 12), (14, 9), (2, 3), (5, 7), (1, 1), (1, 12)):
        add(
            "Resize",
            (1, 3, 4, 6),
            _NONE,
            _NONE,
            ints(1, 3, *_size),
            coordinate_transformation_mode=_where,
            mode="linear",
        )
    add(
        "Resize",
        (2, 3, 7),
        _NONE,
        np.array([1, 1, 2], np.float32),
        coordinate_transformation_mode=_where,
        mode="linear",
    )
add("Resize", (1, 3, 4, 6), _ROI, np.array([1, 1, 2, 3], np.float32), opset=13)
add("Resize", (1, 3, 4, 6), _ROI, np.array([1, 1, 2, 3], np.float32), mode="linear", opset=13)
add(
    "Resize",
    (1, 3, 4, 6),
    _NONE,
    np.array([1, 1, 1.7, 0.6], np.float32),
    coordinate_transformation_mode="asymmetric",
    nearest_mode="floor",
    mode="nearest",
)
add("Resize", (1, 3, 4, 6), _NONE, np.array([2, 3], np.float32), axes=[2, 3], opset=18)
add("Resize", (1, 3, 4, 6), _NONE, _NONE, ints(9, 8), axes=[3, 2], opset=18)
add(
    "Resize",
    (1, 3, 4, 6),
    _NONE,
    _NONE,
    ints(1, 3, 9, 7),
    coordinate_transformation_mode="half_pixel_symmetric",
    opset=19,
)
add("Resize", (1, 3, 4, 6), _NONE, np.array([1, 2, 2, 2], np.float32), mode="nearest")
add("Resize", (4, 6), _NONE, np.array([2, 1.5], np.float32), mode="nearest")
add("Resize", (2, 3, 7), _NONE, np.array([1, 1, 2], np.float32), mode="nearest")
add("Resize", (2, 3, 7), _NONE, _NONE, ints(2, 3, 5), mode="nearest", nearest_mode="ceil")

OPERATORS = {case.kind for case in CASES} | {"Erf", "Upsample", "Swish"}
"""The three have tests of their own."""


def test_every_rule_has_a_case() -> None:
    quantized = {"QuantizeLinear", "DequantizeLinear"}  # tests/test_tflite_qdq.py
    assert set(lowering.TABLE) - quantized == OPERATORS


def label(case: Case) -> str:
    shapes = []
    for entry in case.inputs:
        found = entry.array if isinstance(entry, Fed) else entry
        shape = found.shape if isinstance(found, np.ndarray) else found
        shapes.append("-" if shape is None else "x".join(map(str, shape)))
    more = [f"{name}={found}".replace(" ", "") for name, found in case.attributes.items()]
    return "-".join([case.kind, ",".join(shapes), *more])[:120]


@pytest.mark.parametrize("case", CASES, ids=label)
def test_an_operator(case: Case, tmp_path: Path) -> None:
    """Simplified before, as users' files are."""
    agrees(case.graph("plain"), tmp_path)


def storable(case: Case, stored: str) -> bool:
    """Whether that is another graph than the plain one."""
    return stored == "plain" or len(case.graph(stored).model.graph.node) > 1


@pytest.mark.parametrize(
    ("stored", "case"),
    [(stored, case) for stored in STORED for case in CASES if storable(case, stored)],
    ids=lambda found: found if isinstance(found, str) else label(found),
)
def test_a_rule(stored: str, case: Case, tmp_path: Path) -> None:
    """Nothing simplified before, so that no other program can have done the rule's work."""
    agrees(case.graph(stored), tmp_path, simplified=False)


# --- refusals


class Refused(NamedTuple):
    kind: str
    inputs: tuple[Given, ...]
    attributes: dict[str, Any]
    why: str
    """What of the message tells what is not supported."""
    outputs: tuple[str, ...] = ("y",)
    opset: int = 17


REFUSED = [
    Refused("Conv", (SMALL, (8, 6, 3, 3)), {}, "weights"),
    Refused("Conv", (SMALL, _W, (8,)), {}, "computed"),
    Refused("Conv", ((1, 2, 5, 5, 5), floats(2, 2, 3, 3, 3)), {}, "3 spatial axes"),
    Refused("ConvTranspose", (SMALL, (6, 4, 3, 3)), {}, "weights"),
    Refused("MaxPool", (SMALL,), {"kernel_shape": [2, 2], "dilations": [2, 2]}, "dilations"),
    Refused("MaxPool", (SMALL,), {"kernel_shape": [2, 2]}, "Indices", ("y", "z")),
    Refused("MaxPool", ((1, 2, 5, 5, 5),), {"kernel_shape": [2, 2, 2]}, "3 spatial axes"),
    Refused(
        "AveragePool",
        (SMALL,),
        {"kernel_shape": [2, 2], "dilations": [2, 2]},
        "dilations",
        opset=19,
    ),
    Refused("Gemm", (_X, (8, 5)), {"alpha": 0.5}, "alpha"),
    Refused("Gemm", (_X, _G, (5,)), {"beta": 0.5}, "beta"),
    Refused("PRelu", (SMALL, (6, 1, 1)), {}, "slopes"),
    Refused("PRelu", ((3, 6), floats(3, 1)), {}, "batch"),
    Refused("Clip", (SMALL, Fed(scalar(0.1))), {}, "min"),
    Refused("Clip", (SMALL, None, Fed(scalar(0.1))), {}, "max"),
    Refused("Erf", (SMALL,), {}, "GELU"),
    Refused("Mod", ((3, 4), scalar(2.5)), {"fmod": 1}, "fmod"),
    Refused("Div", (Fed(whole(3, 4)), Fed(whole(3, 4, low=1))), {}, "64 bits"),
    Refused("Add", (Fed(whole(3, dtype=np.uint8)), Fed(whole(3, dtype=np.uint8))), {}, "uint8"),
    Refused("Cast", (SMALL,), {"to": onnx.TensorProto.DOUBLE}, "float64"),
    Refused("Dropout", (SMALL,), {}, "mask", ("y", "z")),
    Refused("BatchNormalization", (SMALL, *_stats[:3], (6,)), {}, "computed"),
    Refused("InstanceNormalization", (SMALL, (6,), (6,)), {}, "computed"),
    Refused("LayerNormalization", ((2, 7, 16), (16,)), {}, "computed"),
    Refused("LayerNormalization", ((2, 7, 16), floats(16)), {}, "Mean", ("y", "-", "z")),
    Refused(
        "ReduceL2", ((3, 4), ints()), {"noop_with_empty_axes": 1}, "noop_with_empty_axes", opset=18
    ),
    Refused("ArgMax", ((3, 9),), {"select_last_index": 1}, "select_last_index"),
    Refused("TopK", ((3, 9), ints(2)), {"largest": 0}, "largest", ("y", "z")),
    Refused("TopK", ((3, 9), Fed(ints(2))), {}, "k", ("y", "z")),
    Refused("CumSum", ((3, 9), Fed(np.array(1, np.int64))), {}, "axis"),
    Refused("Pad", (SMALL, ints(0, 0, 1, 1, 0, 0, 1, 1)), {"mode": "wrap"}, "wrap", opset=19),
    Refused("Pad", ((2, 3), Fed(ints(0, 1, 0, 1))), {}, "pads"),
    Refused("Slice", ((2, 3), Fed(ints(0)), ints(1)), {}, "starts"),
    Refused("Slice", ((2, 3), ints(0), ints(1), Fed(ints(1))), {}, "axes"),
    Refused("Slice", (SMALL, ints(3), ints(3), ints(1)), {}, "empty"),
    Refused("Tile", ((2, 3), Fed(ints(1, 2))), {}, "repeats"),
    Refused("GatherND", ((2, 3, 4), ints([[0], [1]], [[1], [2]])), {"batch_dims": 1}, "batch_dims"),
    Refused("OneHot", (Fed(whole(3)), Fed(ints(9)), floats(2)), {}, "depth"),
    Refused("Range", (Fed(scalar(0)), scalar(5), scalar(1)), {}, "computed"),
    Refused(
        "Resize",
        (SMALL, None, None, ints(1, 6, 4, 4)),
        {"mode": "linear", "antialias": 1},
        "antialias",
        opset=18,
    ),
    Refused(
        "Resize",
        (SMALL, floats(8), None, ints(1, 6, 4, 4)),
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize"},
        "tf_crop_and_resize",
    ),
]


def refusal(model: Any, folder: Path) -> str:
    """What is said of a model, whose file stays as it is."""
    path = save(model, folder / "given.onnx")
    before = path.read_bytes()
    with pytest.raises(UnsupportedError) as found:
        lower(path)
    assert path.read_bytes() == before and [entry.name for entry in folder.iterdir()] == [path.name]
    return str(found.value)


def refused_label(case: Refused) -> str:
    return f"{case.kind}-{case.why}".replace(" ", "_")


@pytest.mark.parametrize("case", REFUSED, ids=refused_label)
def test_a_refusal_names_node_operator_and_reason(case: Refused, tmp_path: Path) -> None:
    made = single(
        case.kind, case.inputs, "plain", case.outputs, case.opset, name="lonely", **case.attributes
    )
    message = refusal(made.model, tmp_path)
    assert message.startswith(f"{case.kind} 'lonely': ")
    assert case.why in message.removeprefix(f"{case.kind} 'lonely': ")


def test_an_even_normalization_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime knows none either."""
    made = build(
        [node("LRN", "x", "y", size=4, name="lonely")], [value("x", SMALL)], [value("y", SMALL)]
    )
    assert "LRN 'lonely': an even size (4)" in refusal(made, tmp_path)


def test_an_unknown_mode_is_refused(tmp_path: Path) -> None:
    made = build(
        [
            node(
                "Resize",
                "x - s",
                "y",
                name="lonely",
                mode="linear",
                coordinate_transformation_mode="new",
            )
        ],
        [value("x", SMALL)],
        [value("y", [1, 6, 18, 20])],
        [onnx.numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")],
    )
    message = refusal(made, tmp_path)
    assert "Resize 'lonely': coordinate_transformation_mode 'new'" in message


KERNELLESS = [
    ("Abs", [Fed(whole(3, 4))], {}),
    ("Abs", [Fed(whole(3, 4, dtype=np.int8))], {}),
    ("Sign", [Fed(whole(3, 4))], {}),
    ("Relu", [Fed(whole(3, 4, dtype=np.int32))], {}),
    ("Relu", [Fed(whole(3, 4, dtype=np.int8))], {}),
    ("ReduceL1", [Fed(whole(3, 4))], {"axes": [1]}),
    ("ReduceL2", [Fed(whole(3, 4, dtype=np.int32))], {"axes": [1]}),
    ("ReduceLogSum", [Fed(whole(3, 4, low=1, dtype=np.int32))], {"axes": [1]}),
    ("Pow", [Fed(whole(3, 4)), scalar(2, np.int64)], {}),
    ("Pow", [Fed(whole(3, 4, dtype=np.int32)), scalar(0.5)], {}),
    ("ArgMax", [Fed(whole(3, 4))], {"axis": 1}),
    ("Split", [Fed(bools(4, 2))], {"axis": 0}),
    ("Pad", [(2, 3, 2, 3, 2, 2), ints(*[0, 0, 0, 1, 0, 0] * 2)], {}),
    ("MatMul", [(2, 2, 2, 2, 3, 4), (2, 4, 5)], {}),
    ("Add", [Fed(np.ones((3, 4))), Fed(np.ones((3, 4)))], {}),
    ("Relu", [Fed(np.ones((3, 4)))], {}),
    ("Cast", [(3, 4)], {"to": onnx.TensorProto.UINT64}),
]


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes"),
    KERNELLESS,
    ids=[f"{number}-{entry[0]}" for number, entry in enumerate(KERNELLESS)],
)
def test_what_no_kernel_takes_is_refused(
    kind: str, inputs: list[Given], attributes: dict[str, Any], tmp_path: Path
) -> None:
    """Or computed otherwise; but no file is written that cannot be run, or gives other values."""
    outputs = ("y", "z") if kind == "Split" else ("y",)
    made = single(kind, inputs, outputs=outputs, name="lonely", **attributes)
    try:
        net = lowered(made.model, tmp_path, simplified=False)
    except UnsupportedError as error:
        assert "'lonely'" in str(error) and kind in str(error)
    else:
        compare(net, made)


def test_unknown_operators_are_refused_at_once(tmp_path: Path) -> None:
    made = build(
        [
            node("Relu", "x", "a", name="first"),
            node("Det", "a", "b", name="second"),
            node("Made", "b", "c", name="third", domain="of.mine"),
            node("Tan", "c", "y"),
        ],
        [value("x", [2, 3, 3])],
        [value("y", [2])],
        domains=["of.mine"],
    )
    message = refusal(made, tmp_path)
    assert message.startswith("Det 'second': this operator is not supported")
    assert message.endswith("(and 2 more)")
    made.graph.node[1].op_type = "Relu"
    assert refusal(made, tmp_path).startswith("of.mine.Made 'third': ")
    del made.graph.node[2]
    made.graph.node[2].input[0] = "b"
    message = refusal(made, tmp_path)
    assert message.startswith("Tan 'y': ") and "more)" not in message


def test_an_own_operator_of_a_known_name_is_refused(tmp_path: Path) -> None:
    made = build(
        [node("Relu", "x", "y", name="lonely", domain="of.mine")],
        [value("x", [2])],
        [value("y", [2])],
        domains=["of.mine"],
    )
    assert refusal(made, tmp_path).startswith("of.mine.Relu 'lonely': ")


@pytest.mark.parametrize("where", ["input", "inside"])
def test_shapes_that_are_not_static_are_refused(where: str, tmp_path: Path) -> None:
    if where == "input":
        nodes = [node("Relu", "x", "y", name="lonely")]
        inputs = [value("x", ["N", 3])]
    else:
        nodes = [node("NonZero", "x", "i", name="maker"), node("Cast", "i", "y", to=1)]
        inputs = [value("x", [2, 3])]
    made = onnx.shape_inference.infer_shapes(build(nodes, inputs, [value("y", [None, "N"])]))
    message = refusal(made, tmp_path)
    assert (
        "'x'" in message and "--input-shape" in message if where == "input" else "maker" in message
    )


def test_a_file_is_only_written_whole(tmp_path: Path) -> None:
    made = single("Conv", [SMALL, _W, _B])
    path = save(made.model, tmp_path / "given.onnx")
    convert.to_float(str(path), str(tmp_path))
    net = read(tmp_path / "model.tflite")
    assert net.names == (["i0"], ["y"])
    compare(net, made)


# --- networks


def conv(name: str, x: str, y: str, weight: Arrays, **attributes: Any) -> Any:
    """A node of Conv whose weights `weighted` made."""
    assert f"{name}.w" in weight
    return node("Conv", f"{x} {name}.w {name}.b", y, **attributes)


IMAGE = {"x": floats(1, 3, 16, 16)}
PADDED = {"pads": [1, 1, 1, 1]}


def statistics(name: str, channels: int) -> Arrays:
    return {
        f"{name}.{part}": np.abs(floats(channels, seed=seed)) + np.float32(0.5)
        for seed, part in enumerate("sbmv")
    }


def resnet() -> Graph:
    w = weighted("a", 8, 3, 3, 3) | weighted("b", 8, 8, 3, 3) | weighted("c", 8, 8, 1, 1)
    w |= statistics("n", 8) | {"fc": floats(10, 8), "fb": floats(10)}
    nodes = [
        conv("a", "x", "a", w, strides=[2, 2], **PADDED),
        node("BatchNormalization", "a n.s n.b n.m n.v", "n"),
        node("Relu", "n", "r"),
        conv("b", "r", "b", w, **PADDED),
        conv("c", "r", "c", w),
        node("Add", "b c", "d"),
        node("Relu", "d", "e"),
        node("MaxPool", "e", "f", kernel_shape=[3, 3], strides=[2, 2], **PADDED),
        node("GlobalAveragePool", "f", "g"),
        node("Flatten", "g", "h"),
        node("Gemm", "h fc fb", "y", transB=1),
    ]
    return graph(nodes, IMAGE, w)


def flattened() -> Graph:
    w = weighted("a", 4, 3, 3, 3) | {"fc": floats(10, 256), "fb": floats(10)}
    w |= {"m": floats(256, 5)}
    nodes = [
        conv("a", "x", "a", w, strides=[2, 2], **PADDED),
        node("Relu", "a", "r"),
        node("Flatten", "r", "h"),
        node("Gemm", "h fc fb", "y", transB=1),
        node("MatMul", "h m", "z"),
    ]
    return graph(nodes, {"x": floats(3, 3, 16, 16)}, w, ["y", "z"])


def shuffle() -> Graph:
    w = weighted("a", 8, 3, 1, 1) | weighted("b", 4, 8, 1, 1)
    w |= {"in": ints(1, 2, 4, 16, 16), "out": ints(1, 8, 16, 16)}
    nodes = [
        conv("a", "x", "a", w),
        node("Reshape", "a in", "b"),
        node("Transpose", "b", "c", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "c out", "d"),
        conv("b", "d", "e", w),
        node("GlobalAveragePool", "e", "y"),
    ]
    return graph(nodes, IMAGE, w)


def squeeze() -> Graph:
    """Squeeze and excitation of MobileNetV3, with its HardSwish written out."""
    w = weighted("a", 8, 3, 3, 3) | weighted("s", 4, 8, 1, 1) | weighted("e", 8, 4, 1, 1)
    w |= weighted("d", 8, 1, 3, 3) | {"three": scalar(3), "zero": scalar(0), "six": scalar(6)}
    nodes = [
        conv("a", "x", "a", w, **PADDED),
        node("Add", "a three", "a3"),
        node("Clip", "a3 zero six", "a6"),
        node("Mul", "a a6", "am"),
        node("Div", "am six", "b"),
        conv("d", "b", "c", w, group=8, strides=[2, 2], **PADDED),
        node("GlobalAveragePool", "c", "g"),
        conv("s", "g", "s", w),
        node("Relu", "s", "sr"),
        conv("e", "sr", "e", w),
        node("HardSigmoid", "e", "h", alpha=1 / 6),
        node("Mul", "h c", "m"),
        node("GlobalAveragePool", "m", "y"),
    ]
    return graph(nodes, IMAGE, w)


def yolo() -> Graph:
    """Version 5's head, of two scales."""
    w = weighted("a", 18, 3, 3, 3) | weighted("b", 18, 18, 3, 3)
    w |= {"two": scalar(2), "half": scalar(0.5), "sizes": ints(2, 2, 2)}
    nodes = [
        conv("a", "x", "p0", w, strides=[2, 2], **PADDED),
        conv("b", "p0", "p1", w, strides=[2, 2], **PADDED),
    ]
    for scale, size in ((0, 8), (1, 4)):
        p = f"p{scale}"
        w |= {
            f"{p}.in": ints(1, 3, 6, size, size),
            f"{p}.out": ints(1, -1, 6),
            f"{p}.grid": floats(1, 3, size, size, 2),
            f"{p}.anchors": np.abs(floats(1, 3, 1, 1, 2, seed=scale)),
        }
        nodes += [
            node("Reshape", f"{p} {p}.in", f"{p}.r"),
            node("Transpose", f"{p}.r", f"{p}.t", perm=[0, 1, 3, 4, 2]),
            node("Sigmoid", f"{p}.t", f"{p}.s"),
            node("Split", f"{p}.s sizes", f"{p}.xy {p}.wh {p}.c", axis=4),
            node("Mul", f"{p}.xy two", f"{p}.xy2"),
            node("Add", f"{p}.xy2 {p}.grid", f"{p}.xy3"),
            node("Mul", f"{p}.wh two", f"{p}.wh2"),
            node("Pow", f"{p}.wh2 two", f"{p}.wh3"),
            node("Mul", f"{p}.wh3 {p}.anchors", f"{p}.wh4"),
            node("Concat", f"{p}.xy3 {p}.wh4 {p}.c", f"{p}.all", axis=4),
            node("Reshape", f"{p}.all {p}.out", f"{p}.flat"),
        ]
    nodes.append(node("Concat", "p0.flat p1.flat", "y", axis=1))
    return graph(nodes, IMAGE, w)


def yolo8() -> Graph:
    """Version 8's head: the distribution of each side by softmax and a convolution."""
    w = weighted("a", 35, 3, 3, 3) | weighted("b", 35, 35, 3, 3)
    w |= {"s0": ints(1, 35, -1), "sizes": ints(32, 3), "dfl": ints(1, 4, 8, 80)}
    w |= {"bins": np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1), "four": ints(1, 4, 80)}
    w |= {"zero": ints(0), "two": ints(2), "end": ints(4), "one": ints(1)}
    w |= {"grid": floats(1, 2, 80), "stride": np.abs(floats(1, 80))}
    nodes = [
        conv("a", "x", "p0", w, strides=[2, 2], **PADDED),
        conv("b", "p0", "p1", w, strides=[2, 2], **PADDED),
        node("Reshape", "p0 s0", "f0"),
        node("Reshape", "p1 s0", "f1"),
        node("Concat", "f0 f1", "f", axis=2),
        node("Split", "f sizes", "box cls", axis=1),
        node("Reshape", "box dfl", "b0"),
        node("Transpose", "b0", "b1", perm=[0, 2, 1, 3]),
        node("Softmax", "b1", "b2", axis=1),
        node("Conv", "b2 bins", "b3"),
        node("Reshape", "b3 four", "b4"),
        node("Slice", "b4 zero two one", "lt"),
        node("Slice", "b4 two end one", "rb"),
        node("Sub", "grid lt", "b5"),
        node("Add", "grid rb", "b6"),
        node("Concat", "b5 b6", "b7", axis=1),
        node("Mul", "b7 stride", "b8"),
        node("Sigmoid", "cls", "c"),
        node("Concat", "b8 c", "y", axis=1),
    ]
    return graph(nodes, IMAGE, w)


def unet() -> Graph:
    w = weighted("a", 4, 3, 3, 3) | weighted("b", 8, 4, 3, 3) | weighted("c", 4, 12, 3, 3)
    w |= {"t.w": floats(4, 2, 2, 2), "t.b": floats(2), "scales": floats(4) * 0 + 1}
    w["scales"][2:] = 2
    nodes = [
        conv("a", "x", "a0", w, **PADDED),
        node("Relu", "a0", "a"),
        node("MaxPool", "a", "p", kernel_shape=[2, 2], strides=[2, 2]),
        conv("b", "p", "b0", w, **PADDED),
        node("LeakyRelu", "b0", "b", alpha=0.1),
        node(
            "Resize",
            "b - scales",
            "u",
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
        node("Concat", "u a", "m", axis=1),
        conv("c", "m", "c0", w, **PADDED),
        node("Relu", "c0", "c"),
        node("ConvTranspose", "c t.w t.b", "t", strides=[2, 2]),
        node("Sigmoid", "t", "y"),
    ]
    return graph(nodes, IMAGE, w)


def attention(nodes: list[Any], x: str, y: str, size: int, count: int) -> Arrays:
    """Two heads over [1, count, size], as torch writes them, and the layer after it."""
    w = {f"{y}.{name}": floats(size, size, seed=n) / 4 for n, name in enumerate("qkvo")}
    w |= {
        f"{y}.heads": ints(1, count, 2, size // 2),
        f"{y}.flat": ints(1, count, size),
        f"{y}.root": scalar((size // 2) ** 0.5),
        f"{y}.scale": floats(size),
        f"{y}.shift": floats(size, seed=1),
        f"{y}.up": floats(size, 2 * size) / 4,
        f"{y}.upb": floats(2 * size),
        f"{y}.down": floats(2 * size, size) / 4,
        f"{y}.two": scalar(2**0.5),
        f"{y}.one": scalar(1),
        f"{y}.half": scalar(0.5),
    }
    nodes.append(node("LayerNormalization", f"{x} {y}.scale {y}.shift", f"{y}.n"))
    for name, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            node("MatMul", f"{y}.n {y}.{name}", f"{y}.{name}0"),
            node("Reshape", f"{y}.{name}0 {y}.heads", f"{y}.{name}1"),
            node("Transpose", f"{y}.{name}1", f"{y}.{name}2", perm=perm),
        ]
    nodes += [
        node("MatMul", f"{y}.q2 {y}.k2", f"{y}.s0"),
        node("Div", f"{y}.s0 {y}.root", f"{y}.s1"),
        node("Softmax", f"{y}.s1", f"{y}.s2", axis=-1),
        node("MatMul", f"{y}.s2 {y}.v2", f"{y}.o0"),
        node("Transpose", f"{y}.o0", f"{y}.o1", perm=[0, 2, 1, 3]),
        node("Reshape", f"{y}.o1 {y}.flat", f"{y}.o2"),
        node("MatMul", f"{y}.o2 {y}.o", f"{y}.o3"),
        node("Add", f"{y}.o3 {x}", f"{y}.a"),
        node("MatMul", f"{y}.a {y}.up", f"{y}.u0"),
        node("Add", f"{y}.u0 {y}.upb", f"{y}.u"),
        node("Div", f"{y}.u {y}.two", f"{y}.g0"),
        node("Erf", f"{y}.g0", f"{y}.g1"),
        node("Add", f"{y}.g1 {y}.one", f"{y}.g2"),
        node("Mul", f"{y}.u {y}.g2", f"{y}.g3"),
        node("Mul", f"{y}.g3 {y}.half", f"{y}.g4"),
        node("MatMul", f"{y}.g4 {y}.down", f"{y}.d"),
        node("Add", f"{y}.d {y}.a", y),
    ]
    return w


def transformer() -> Graph:
    """Patches of an image, a token before them, one block, and what the token says."""
    w = weighted("a", 8, 3, 4, 4) | {"flat": ints(1, 8, 16), "token": floats(1, 1, 8)}
    w |= {"places": floats(1, 17, 8), "first": np.array(0, np.int64), "fc": floats(8, 5)}
    nodes = [
        conv("a", "x", "p", w, strides=[4, 4]),
        node("Reshape", "p flat", "f"),
        node("Transpose", "f", "t", perm=[0, 2, 1]),
        node("Concat", "token t", "c", axis=1),
        node("Add", "c places", "e"),
    ]
    w |= attention(nodes, "e", "block", 8, 17)
    nodes += [node("Gather", "block first", "g", axis=1), node("MatMul", "g fc", "y")]
    return graph(nodes, IMAGE, w)


def convnext() -> Graph:
    w = weighted("a", 8, 3, 2, 2) | weighted("d", 8, 1, 7, 7)
    w |= {"s": floats(8), "b": floats(8, seed=1), "up": floats(8, 16), "down": floats(16, 8)}
    w |= {"gamma": floats(8, 1, 1), "fc": floats(8, 5)}
    nodes = [
        conv("a", "x", "p", w, strides=[2, 2]),
        conv("d", "p", "d", w, group=8, pads=[3, 3, 3, 3]),
        node("Transpose", "d", "t", perm=[0, 2, 3, 1]),
        node("LayerNormalization", "t s b", "n"),
        node("MatMul", "n up", "u"),
        node("Gelu", "u", "g"),
        node("MatMul", "g down", "o"),
        node("Transpose", "o", "q", perm=[0, 3, 1, 2]),
        node("Mul", "q gamma", "m"),
        node("Add", "m p", "r"),
        node("ReduceMean", "r axes", "v", keepdims=0),
        node("MatMul", "v fc", "y"),
    ]
    return graph(nodes, IMAGE, w | {"axes": ints(-2, -1)}, opset=20)


def ssd() -> Graph:
    w = weighted("a", 8, 3, 3, 3) | weighted("b", 12, 8, 3, 3) | weighted("c", 12, 8, 3, 3)
    w |= {"four": ints(1, -1, 4), "s": ints(2, 1)}
    nodes = [
        conv("a", "x", "f0", w, strides=[2, 2], **PADDED),
        node("MaxPool", "f0", "f1", kernel_shape=[2, 2], strides=[2, 2]),
        conv("b", "f0", "b0", w, **PADDED),
        conv("c", "f1", "b1", w, **PADDED),
        node("Transpose", "b0", "t0", perm=[0, 2, 3, 1]),
        node("Transpose", "b1", "t1", perm=[0, 2, 3, 1]),
        node("Reshape", "t0 four", "r0"),
        node("Reshape", "t1 four", "r1"),
        node("Concat", "r0 r1", "y", axis=1),
    ]
    return graph(nodes, IMAGE, w)


def from_tensorflow() -> Graph:
    """Channels last outside, as tf2onnx writes it."""
    w = weighted("a", 8, 3, 3, 3) | weighted("b", 4, 8, 1, 1)
    nodes = [
        node("Transpose", "x", "t", perm=[0, 3, 1, 2]),
        conv("a", "t", "a", w, auto_pad="SAME_UPPER", strides=[2, 2]),
        node("Relu", "a", "r"),
        conv("b", "r", "b", w),
        node("Transpose", "b", "y", perm=[0, 2, 3, 1]),
    ]
    return graph(nodes, {"x": floats(1, 16, 16, 3)}, w)


def sound() -> Graph:
    w = weighted("a", 8, 4, 5) | weighted("b", 8, 1, 3) | {"fc": floats(8 * 9, 5)}
    nodes = [
        conv("a", "x", "a", w, pads=[2, 2], strides=[2]),
        node("Relu", "a", "r"),
        conv("b", "r", "b", w, pads=[1, 1], group=8),
        node("Elu", "b", "e"),
        node("AveragePool", "e", "p", kernel_shape=[2], strides=[2]),
        node("Flatten", "p", "f"),
        node("MatMul", "f fc", "y"),
    ]
    return graph(nodes, {"x": floats(2, 4, 37)}, w)


def windows() -> Graph:
    """Swin's windows, in and out, with a shift."""
    w = weighted("a", 8, 3, 2, 2) | {"in": ints(1, 2, 4, 2, 4, 8), "each": ints(4, 16, 8)}
    w |= {"m": floats(8, 8), "back": ints(1, 2, 2, 4, 4, 8), "out": ints(1, 8, 8, 8)}
    w |= {"zero": ints(0), "two": ints(2), "end": ints(INT64.max), "one": ints(1)}
    nodes = [
        conv("a", "x", "p", w, strides=[2, 2]),
        node("Transpose", "p", "t", perm=[0, 2, 3, 1]),
        node("Slice", "t two end one", "s0"),
        node("Slice", "t zero two one", "s1"),
        node("Concat", "s0 s1", "s", axis=1),
        node("Reshape", "s in", "i0"),
        node("Transpose", "i0", "i1", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", "i1 each", "i2"),
        node("MatMul", "i2 m", "o"),
        node("Reshape", "o back", "b0"),
        node("Transpose", "b0", "b1", perm=[0, 1, 3, 2, 4, 5]),
        node("Reshape", "b1 out", "b2"),
        node("Transpose", "b2", "y", perm=[0, 3, 1, 2]),
    ]
    return graph(nodes, IMAGE, w)


def pixel_shuffle() -> Graph:
    w = weighted("a", 12, 3, 3, 3) | weighted("b", 2, 3, 3, 3)
    w |= {"in": ints(1, 3, 2, 2, 16, 16), "out": ints(1, 3, 32, 32)}
    nodes = [
        conv("a", "x", "a", w, **PADDED),
        node("Reshape", "a in", "r"),
        node("Transpose", "r", "t", perm=[0, 1, 4, 2, 5, 3]),
        node("Reshape", "t out", "o"),
        conv("b", "o", "y", w, **PADDED),
    ]
    return graph(nodes, IMAGE, w)


def focus() -> Graph:
    """Every second pixel four times, side by side."""
    w = weighted("a", 4, 12, 3, 3) | {"end": ints(INT64.max, INT64.max)}
    w |= {"axes": ints(2, 3), "steps": ints(2, 2)}
    w |= {f"b{i}{j}": ints(i, j) for i in (0, 1) for j in (0, 1)}
    nodes = [node("Slice", f"x b{i}{j} end axes steps", f"s{i}{j}") for i in (0, 1) for j in (0, 1)]
    nodes += [
        node("Concat", "s00 s10 s01 s11", "c", axis=1),
        conv("a", "c", "a", w, **PADDED),
        node("Sigmoid", "a", "s"),
        node("Mul", "a s", "y"),
    ]
    return graph(nodes, IMAGE, w)


def groups_of_torch() -> Graph:
    """GroupNorm, before ONNX had it; normalize() of channels behind it."""
    w = weighted("a", 8, 3, 3, 3) | {"in": ints(0, 2, -1), "out": ints(1, 8, 16, 16)}
    w |= {"s1": floats(2) * 0 + 1, "b1": floats(2) * 0, "s": floats(8, 1, 1)}
    w |= {"b": floats(8, 1, 1, seed=1), "least": scalar(1e-12), "shape": ints(1, 8, 16, 16)}
    nodes = [
        conv("a", "x", "a", w, **PADDED),
        node("Reshape", "a in", "r"),
        node("InstanceNormalization", "r s1 b1", "n"),
        node("Reshape", "n out", "o"),
        node("Mul", "o s", "m"),
        node("Add", "m b", "g"),
        node("ReduceL2", "g", "l", axes=[1]),
        node("Clip", "l least", "c"),
        node("Expand", "c shape", "e"),
        node("Div", "g e", "y"),
    ]
    return graph(nodes, IMAGE, w)


NETWORKS: dict[str, tuple[Callable[[], Graph], int]] = {
    "resnet": (resnet, 1),
    "flattened": (flattened, 1),
    "shuffle": (shuffle, 2),
    "squeeze": (squeeze, 1),
    "yolo": (yolo, 3),
    "yolo8": (yolo8, 3),
    "unet": (unet, 2),
    "transformer": (transformer, 5),
    "convnext": (convnext, 1),
    "ssd": (ssd, 1),
    "from_tensorflow": (from_tensorflow, 0),
    "sound": (sound, 1),
    "windows": (windows, 4),
    "pixel_shuffle": (pixel_shuffle, 3),
    "focus": (focus, 2),
    "groups_of_torch": (groups_of_torch, 2),
}
"""And how many TRANSPOSE at most: at NCHW inputs and outputs, and where numbers do move."""


@pytest.mark.parametrize("simplified", [True, False], ids=["simplified", "written"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network(name: str, simplified: bool, tmp_path: Path) -> None:
    make, most = NETWORKS[name]
    net = agrees(make(), tmp_path, simplified)
    assert kinds(net).count("TRANSPOSE") <= most


def test_a_convolutional_network_moves_nothing_but_its_input(tmp_path: Path) -> None:
    net = lowered(resnet().model, tmp_path)
    wanted = "TRANSPOSE PAD CONV_2D CONV_2D CONV_2D ADD PAD MAX_POOL_2D MEAN FULLY_CONNECTED"
    assert sorted(kinds(net)) == sorted(wanted.split()) and kinds(net)[0] == "TRANSPOSE"
    assert [op.activation for op in net.ops if op.kind in ("CONV_2D", "ADD")].count(1) == 2


def test_a_flatten_goes_into_the_weights_behind_it(tmp_path: Path) -> None:
    net = lowered(flattened().model, tmp_path)
    assert kinds(net).count("TRANSPOSE") == 1 and kinds(net).count("RESHAPE") <= 1


def test_a_flatten_that_others_take_too_is_written_out(tmp_path: Path) -> None:
    """Its numbers must then stand as ONNX has them."""
    w = weighted("a", 4, 3, 3, 3) | {"fc": floats(256, 5)}
    nodes = [
        conv("a", "x", "a", w, strides=[2, 2], **PADDED),
        node("Flatten", "a", "f"),
        node("MatMul", "f fc", "y"),
        node("Softmax", "f", "z", axis=1),
    ]
    agrees(graph(nodes, IMAGE, w, ["y", "z"]), tmp_path)
    nodes = [*nodes[:2], node("Identity", "f", "g"), node("MatMul", "g fc", "y")]
    agrees(graph(nodes, IMAGE, w, ["y", "f"]), tmp_path)
    agrees(graph(nodes, IMAGE, w), tmp_path, simplified=False)


def test_a_network_of_one_axis_fuses_too(tmp_path: Path) -> None:
    """Between its convolutions there are no operators of shape."""
    w = weighted("a", 8, 4, 5) | weighted("b", 8, 8, 3)
    nodes = [
        conv("a", "x", "a", w, pads=[2, 2]),
        node("Relu", "a", "r"),
        conv("b", "r", "b", w, pads=[1, 1]),
        node("Relu", "b", "y"),
    ]
    net = agrees(graph(nodes, {"x": floats(2, 4, 37)}, w), tmp_path)
    found = kinds(net)
    assert "RELU" not in found
    first = found.index("CONV_2D")
    assert found[first : first + 2] == ["CONV_2D", "CONV_2D"]


@pytest.mark.parametrize("operands", ["x a", "a x"])
def test_adding_the_input_moves_it_once(operands: str, tmp_path: Path) -> None:
    """Whichever operand comes first."""
    w = weighted("a", 3, 3, 3, 3) | weighted("b", 4, 3, 3, 3)
    nodes = [
        conv("a", "x", "a", w, **PADDED),
        node("Add", operands, "s"),
        conv("b", "s", "b", w, **PADDED),
        node("GlobalAveragePool", "b", "g"),
        node("Flatten", "g", "y"),
    ]
    net = agrees(graph(nodes, IMAGE, w), tmp_path)
    assert kinds(net).count("TRANSPOSE") == 1


def test_a_tensor_and_its_transpose_both_in_plain_order(tmp_path: Path) -> None:
    """Stored the same, they are not the same when rearranged (a Gram matrix takes both)."""
    w = weighted("a", 4, 3, 3, 3)
    nodes = [
        conv("a", "x", "a", w, **PADDED),
        node("Transpose", "a", "t", perm=[0, 1, 3, 2]),
        node("MatMul", "a t", "y"),
        node("Transpose", "a", "z", perm=[0, 2, 1, 3]),
    ]
    agrees(graph(nodes, IMAGE, w, ["y", "z", "a"]), tmp_path)


def test_mean_variance_normalization_inside_a_graph(tmp_path: Path) -> None:
    """ONNX infers no shape for it."""
    nodes = [
        node("Relu", "x", "r"),
        node("MeanVarianceNormalization", "r", "m", axes=[0, 2, 3]),
        node("MaxPool", "m", "y", kernel_shape=[2, 2]),
    ]
    agrees(graph(nodes, IMAGE), tmp_path)


@pytest.mark.parametrize("simplified", [True, False])
def test_constants_in_nodes(simplified: bool, tmp_path: Path) -> None:
    nodes = [
        node("Constant", "", "c", value=onnx.numpy_helper.from_array(floats(3, 1, 1))),
        node("Constant", "", "k", value_ints=[1, 3, -1]),
        node("Mul", "x c", "m"),
        node("Reshape", "m k", "y"),
    ]
    agrees(graph(nodes, IMAGE), tmp_path, simplified)


def test_shapes_that_a_graph_computes(tmp_path: Path) -> None:
    """As torch writes view(x.shape[0], -1) and zeros_like."""
    w = {"zero": ints(0), "rest": ints(-1), "index": np.array(0, np.int64)}
    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s index", "n", axis=0),
        node("Unsqueeze", "n zero", "n1"),
        node("Concat", "n1 rest", "to", axis=0),
        node("Reshape", "x to", "r"),
        node("Shape", "r", "rs"),
        node("ConstantOfShape", "rs", "z"),
        node("Add", "r z", "y"),
    ]
    agrees(graph(nodes, IMAGE, w), tmp_path)


# --- inputs and outputs


@pytest.mark.parametrize("simplified", [True, False])
def test_outputs_are_tensors_of_their_own(simplified: bool, tmp_path: Path) -> None:
    """An input, a constant, one tensor twice, and what others take as well."""
    w = weighted("a", 4, 3, 1, 1) | {"c": floats(2, 3), "axis": ints(0)}
    nodes = [
        conv("a", "x", "a", w),
        node("Relu", "a", "r"),
        node("Identity", "x", "same"),
        node("Identity", "r", "twice"),
        node("Identity", "c", "fixed"),
        node("Transpose", "r", "t", perm=[0, 2, 3, 1]),
        node("Unsqueeze", "r axis", "u"),
    ]
    outputs = ["a", "r", "same", "twice", "fixed", "t", "u"]
    net = agrees(graph(nodes, IMAGE, w, outputs), tmp_path, simplified)
    assert net.names == (["x"], outputs)
    assert len(set(net.outputs)) == len(outputs)


@pytest.mark.parametrize("simplified", [True, False])
def test_an_input_that_nothing_takes_stays(simplified: bool, tmp_path: Path) -> None:
    made = graph([node("Relu", "x", "y")], IMAGE | {"z": floats(2, 3)})
    assert agrees(made, tmp_path, simplified).names == (["x", "z"], ["y"])


def test_whole_numbers_in_and_out(tmp_path: Path) -> None:
    """Tokens are looked up; a mask hides some of what is averaged."""
    w = {"table": floats(20, 8), "zero": scalar(0, np.int64), "least": scalar(-1e4)}
    w |= {"last": ints(-1), "one": ints(1)}
    nodes = [
        node("Gather", "table tokens", "e"),
        node("Greater", "tokens zero", "mask"),
        node("Unsqueeze", "mask last", "wide"),
        node("Where", "wide e least", "hidden"),
        node("ReduceMax", "hidden", "m", axes=[1], keepdims=0),
        node("Cast", "mask", "number", to=onnx.TensorProto.INT64),
        node("ReduceSum", "number one", "count", keepdims=0),
        node("ArgMax", "m", "best", axis=1, keepdims=0),
    ]
    agrees(graph(nodes, {"tokens": whole(2, 7)}, w, ["m", "count", "best"]), tmp_path)


@pytest.mark.parametrize("make", [resnet, unet, yolo, focus])
def test_channels_last(make: Callable[[], Graph], tmp_path: Path) -> None:
    """Named are the inputs and outputs that the caller then transposes; the numbers stay."""
    made = make()
    net = lowered(made.model, tmp_path)
    plain = run(net, made.feed, False)
    turned = io.channels_last(net)
    assert turned == (["x", "y"] if make in (unet, focus) else ["x"])
    assert net.inputs[0].shape == (1, 16, 16, 3)
    if make is not yolo:
        assert "TRANSPOSE" not in kinds(net)
    again = read(write(net))
    assert again.names == (["x"], ["y"])
    found = run(again, {"x": made.feed["x"].transpose(0, 2, 3, 1)}, False)["y"]
    if "y" in turned:
        found = found.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, plain["y"])


def test_channels_last_of_an_image_normalized_inside(tmp_path: Path) -> None:
    """What is done to each pixel before the first convolution does not keep the transpose."""
    w = weighted("a", 4, 3, 3, 3) | {"mean": floats(3, 1, 1), "scale": floats(1, 3, 1, 1)}
    nodes = [
        node("Sub", "x mean", "m"),
        node("Mul", "m scale", "n"),
        conv("a", "n", "a", w),
        node("Softmax", "a", "y", axis=1),
    ]
    made = graph(nodes, IMAGE, w)
    net = lowered(made.model, tmp_path, simplified=False)
    assert io.channels_last(net) == ["x", "y"]
    assert "TRANSPOSE" not in kinds(net)
    found = run(net, {"x": made.feed["x"].transpose(0, 2, 3, 1)}, False)["y"]
    np.testing.assert_allclose(found.transpose(0, 3, 1, 2), made.wanted["y"], atol=1e-5)


def test_channels_last_leaves_what_is_needed_in_its_order(tmp_path: Path) -> None:
    """An input that other operators take too, an output that is no image."""
    w = weighted("a", 4, 3, 1, 1) | {"flat": ints(1, -1)}
    nodes = [
        conv("a", "x", "a", w),
        node("Softmax", "x", "s", axis=3),
        node("Reshape", "a flat", "f"),
    ]
    made = graph(nodes, IMAGE, w, ["s", "f"])
    net = lowered(made.model, tmp_path)
    assert io.channels_last(net) == []
    compare(net, made)


def test_other_transposes_are_no_change_of_layout(tmp_path: Path) -> None:
    """Height goes last for the softmax of an input, and comes back for the output."""
    made = graph([node("Softmax", "x", "y", axis=2)], IMAGE)
    net = lowered(made.model, tmp_path)
    assert kinds(net).count("TRANSPOSE") == 2
    assert io.channels_last(net) == []
    compare(net, made)


@pytest.mark.parametrize(
    ("where", "rounding"), [("asymmetric", "floor"), ("half_pixel", "round_prefer_ceil")]
)
def test_enlarging_twice_is_one_operator(where: str, rounding: str, tmp_path: Path) -> None:
    made = single(
        "Resize",
        [(1, 3, 4, 6), None, np.array([1, 1, 2, 2], np.float32)],
        "last",
        mode="nearest",
        coordinate_transformation_mode=where,
        nearest_mode=rounding,
    )
    found = kinds(agrees(made, tmp_path, simplified=False))
    assert found.count("RESIZE_NEAREST_NEIGHBOR") == 1 and "GATHER" not in found


def test_names_that_could_be_of_its_own_making(tmp_path: Path) -> None:
    """The tensor that ends a node's work has the ONNX name, whatever that is."""
    w = weighted("conv_2d", 4, 3, 1, 1) | {"scalar": scalar(2), "ints": floats(4, 1, 1)}
    lines = ["Add abs scalar relu", "Mul relu ints x/transposed", "Tanh x/transposed add"]
    lines += ["Relu add mul", "Sigmoid mul tanh"]
    nodes = [conv("conv_2d", "x", "abs", w), *written(lines)]
    net = agrees(graph(nodes, IMAGE, w, ["tanh", "add"]), tmp_path, simplified=False)
    found = [tensor.name for tensor in net.tensors() if tensor.data is None]
    assert len(set(found)) == len(found)
    assert {"x", "abs", "relu", "x/transposed", "mul"} <= set(found)


def test_integers_at_both_ends() -> None:
    scale, zero = np.array([0.5], np.float32), np.array([3])
    x, y = (Tensor(name, (2, 3), np.dtype(np.float32)) for name in "xy")
    q = Tensor("q", (2, 3), np.dtype(np.int8), None, scale, zero)
    r = Tensor("r", (3, 2), np.dtype(np.int8), None, scale, zero)
    y.shape = (3, 2)
    to = constant("to", [3, 2], np.int32)
    net = Net(
        [x],
        [y],
        [
            Op("QUANTIZE", [x], [q]),
            Op("RESHAPE", [q, to], [r], {"newShape": [3, 2]}),
            Op("DEQUANTIZE", [r], [y]),
        ],
    )
    numbers = floats(2, 3)
    wanted = run(Net(net.inputs, net.outputs, net.ops, (["x"], ["y"])), {"x": numbers}, False)["y"]
    io.integers(net)
    assert kinds(net) == ["RESHAPE"] and net.names == (["x"], ["y"])
    fed = np.clip(np.round(numbers / 0.5) + 3, -128, 127).astype(np.int8)
    found = run(read(write(net)), {"x": fed}, False)["y"]
    assert found.dtype == np.int8
    np.testing.assert_array_equal((found.astype(np.float32) - 3) * np.float32(0.5), wanted)


# --- written and read


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_is_read_as_it_was_written(name: str, tmp_path: Path) -> None:
    made = NETWORKS[name][0]()
    net = lowered(made.model, tmp_path)
    content = write(net)
    assert write(net) == content == write(lowered(made.model, tmp_path))
    again = read(content)
    assert write(again) == content
    assert again.names == net.names and kinds(again) == kinds(net)
    for one, other in zip(net.tensors(), again.tensors(), strict=True):
        assert (one.name, one.shape, one.dtype) == (other.name, other.shape, other.dtype)
        assert (one.data is None) == (other.data is None)
        if one.data is not None and other.data is not None:
            np.testing.assert_array_equal(one.data, other.data)
    for op, same in zip(net.ops, again.ops, strict=True):
        assert [t and t.name for t in op.inputs] == [t and t.name for t in same.inputs]
        assert [t.name for t in op.outputs] == [t.name for t in same.outputs]
        for option, entry in op.options.items():
            assert np.array_equal(same.options[option], entry), (op.kind, option)


@pytest.mark.parametrize("name", NETWORKS)
def test_tensors_have_names_of_their_own(name: str, tmp_path: Path) -> None:
    net = lowered(NETWORKS[name][0]().model, tmp_path)
    found = [tensor.name for tensor in net.tensors() if tensor.data is None]
    assert len(set(found)) == len(found)
    assert net.names is not None
    assert [tensor.name for tensor in net.inputs] == net.names[0]


# --- patterns


GELUS = {
    "half of x first": ["Mul x half h", "Mul h p y"],
    "half of the sum": ["Mul p half h", "Mul x h y"],
    "half at the end": ["Mul x p h", "Mul h half y"],
    "half in front": ["Mul p x h", "Mul half h y"],
    "divided at the end": ["Mul x p h", "Div h two y"],
    "x divided": ["Div x two h", "Mul p h y"],
}


def written(lines: list[str]) -> list[Any]:
    """A node a line: kind, two inputs, output."""
    found = []
    for line in lines:
        kind, *inputs, out = line.split()
        found.append(node(kind, " ".join(inputs), out))
    return found


def gelu(lines: list[str], root: str = "Div x root e", plus: str = "Add f one p") -> Graph:
    w = {"root": scalar(2**0.5), "inverse": scalar(0.5**0.5), "half": scalar(0.5)}
    w |= {"coarse": scalar(float(np.float16(2**0.5))), "rough": scalar(float(np.float16(0.5**0.5)))}
    w |= {"two": scalar(2), "one": scalar(1), "wrong": scalar(0.4)}
    return graph(written([root, "Erf e f", plus, *lines]), {"x": floats(2, 3, 8) * 3}, w)


@pytest.mark.parametrize(
    "root",
    ["Div x root e", "Mul x inverse e", "Mul inverse x e", "Div x coarse e", "Mul x rough e"],
)
@pytest.mark.parametrize("plus", ["Add f one p", "Add one f p"])
@pytest.mark.parametrize("form", GELUS)
def test_a_gelu_written_out_is_one_operator(
    form: str, plus: str, root: str, tmp_path: Path
) -> None:
    net = agrees(gelu(GELUS[form], root, plus), tmp_path)
    assert kinds(net) == ["GELU"]


@pytest.mark.parametrize(
    ("lines", "root"),
    [
        (["Mul x wrong h", "Mul h p y"], "Div x root e"),
        (["Mul x two h", "Mul h p y"], "Div x root e"),
        (["Div x half h", "Mul h p y"], "Div x root e"),
        (["Div two x h", "Mul h p y"], "Div x root e"),
        (["Mul x half h", "Div h p y"], "Div x root e"),
        (["Mul x p h", "Div two h y"], "Div x root e"),
        (["Mul x p h", "Div h half y"], "Div x root e"),
        (["Mul x p h", "Mul h two y"], "Div x root e"),
        (["Mul x half h", "Mul h p y"], "Div x two e"),
        (["Mul x half h", "Mul h p y"], "Mul x root e"),
        (["Mul x half h", "Mul h p y"], "Div root x e"),
        (["Mul p half h", "Mul h h y"], "Div x root e"),
    ],
)
def test_what_only_looks_like_gelu_is_refused(lines: list[str], root: str, tmp_path: Path) -> None:
    assert refusal(gelu(lines, root).model, tmp_path).startswith("Erf 'node1': ")


def test_a_gelu_whose_inside_is_an_output_is_refused(tmp_path: Path) -> None:
    made = gelu(GELUS["half of x first"])
    made.model.graph.output.append(value("p", [2, 3, 8]))
    assert refusal(made.model, tmp_path).startswith("Erf 'node1': ")


def test_what_a_gelu_is_made_of_may_be_used_again(tmp_path: Path) -> None:
    """Half of x, that another operator takes too."""
    made = gelu(["Mul x half h", "Mul h p g", "Add h g y"])
    assert kinds(agrees(made, tmp_path)).count("GELU") == 1


SWISHES = {
    "divided at the end": ["Mul x c m", "Div m six y"],
    "multiplied at the end": ["Mul c x m", "Mul m sixth y"],
    "divided before": ["Div c six m", "Mul x m y"],
    "multiplied before": ["Mul sixth c m", "Mul m x y"],
}


def hard_swish(lines: list[str], three: str = "three") -> Graph:
    nodes = written([f"Add x {three} a"])
    nodes += [node("Clip", "a zero six", "c"), *written(lines)]
    w = {"three": scalar(3), "zero": scalar(0), "six": scalar(6), "sixth": scalar(1 / 6)}
    w |= {"five": scalar(5), "two": scalar(2)}
    return graph(nodes, {"x": floats(2, 6, 4, 5) * 4}, w)


@pytest.mark.parametrize("form", SWISHES)
def test_a_hard_swish_written_out_is_one_operator(form: str, tmp_path: Path) -> None:
    assert kinds(agrees(hard_swish(SWISHES[form]), tmp_path)) == ["HARD_SWISH"]


@pytest.mark.parametrize(
    ("lines", "three"),
    [
        (["Mul x c m", "Div m five y"], "three"),
        (["Mul x c m", "Div m six y"], "two"),
        (["Mul a c m", "Div m six y"], "three"),
        (["Mul x c m", "Div m six n", "Mul m n y"], "three"),
        (["Mul x c y"], "three"),
    ],
)
def test_what_only_looks_like_hard_swish_is_left(
    lines: list[str], three: str, tmp_path: Path
) -> None:
    assert "HARD_SWISH" not in kinds(agrees(hard_swish(lines, three), tmp_path))


@pytest.mark.parametrize("alpha", [1.0, 1.7])
def test_swish(alpha: float, tmp_path: Path) -> None:
    """ONNX Runtime has none yet: beside x * sigmoid(alpha * x)."""
    made = build(
        [node("Swish", "x", "y", alpha=alpha)],
        [value("x", [2, 3, 4])],
        [value("y", [2, 3, 4])],
        opset=24,
    )
    x = floats(2, 3, 4)
    wanted = x / (1 + np.exp(-np.float32(alpha) * x))
    compare(lowered(made, tmp_path, simplified=False), Graph(made, {"x": x}, {"y": wanted}))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("stored", STORED)
def test_upsample(stored: str, mode: str, tmp_path: Path) -> None:
    """Of opset 9: simplified it is the Resize of a later one."""
    made = single(
        "Resize",
        [(1, 3, 4, 6), None, np.array([1, 1, 2, 3], np.float32)],
        stored,
        mode=mode,
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )
    old = onnx.ModelProto()
    old.CopyFrom(made.model)
    old.opset_import[0].version = 9
    last = old.graph.node[-1]
    last.op_type = "Upsample"
    del last.input[1]
    del last.attribute[:]
    last.attribute.append(onnx.helper.make_attribute("mode", mode))
    compare(lowered(old, tmp_path, simplified=False), made)
    if stored == "plain":
        compare(lowered(old, tmp_path), made)


# --- passes


def untidied(made: Graph, folder: Path) -> Net:
    """As the rules leave it."""
    path = save(made.model, folder / "given.onnx")
    net = lowering.Lowering(onnx_ir.load(path).graph).lower()
    net.sweep()
    return net


Pass = Callable[[Net], bool]
FIRST = node("MaxPool", "x", "s", kernel_shape=[1, 1])
"""After it, an image is stored channels last."""


def identical(old: Net, new: Net, made: Graph) -> None:
    """HARD_SWISH alone rounds otherwise in the last bit than what it stands for."""
    rough = "HARD_SWISH" in kinds(new) and "HARD_SWISH" not in kinds(old)
    for reference in (False,) if "ELU" in kinds(old) else (False, True):
        was, found = run(old, made.feed, reference), run(new, made.feed, reference)
        for name in made.wanted:
            if rough:
                np.testing.assert_allclose(found[name], was[name], rtol=0, atol=2e-6)
            else:
                np.testing.assert_array_equal(found[name], was[name])


def passed(made: Graph, folder: Path, step: Pass, *before: Pass) -> tuple[Net, Net]:
    """Before and after a pass, which changes no bit by either set of kernels."""
    old, new = untidied(made, folder), untidied(made, folder)
    for other in before:
        other(old)
        other(new)
    assert step(new)
    for _ in range(20):
        if not step(new):
            break
    else:
        raise AssertionError("it never ends")
    new.sweep()
    compare(new, made)
    identical(old, new, made)
    return old, new


def left(made: Graph, folder: Path, step: Pass, *before: Pass) -> None:
    """A pass has nothing to do there."""
    net = untidied(made, folder)
    for other in before:
        other(net)
    found = [(op.kind, list(op.inputs), list(op.outputs)) for op in net.ops]
    assert not step(net)
    assert [(op.kind, list(op.inputs), list(op.outputs)) for op in net.ops] == found
    compare(net, made)


BOUNDS = {"RELU": (0.0, None), "RELU6": (0.0, 6.0), "RELU_N1_TO_1": (-1.0, 1.0)}


@pytest.mark.parametrize("kind", ["Conv", "Depthwise", "Gemm", "Add", "Sub", "Mul"])
@pytest.mark.parametrize("activation", BOUNDS)
def test_activations_are_fused(activation: str, kind: str, tmp_path: Path) -> None:
    w = weighted("a", 4, 3, 3, 3) | weighted("d", 3, 1, 3, 3) | {"m": floats(16, 5)}
    w |= {"c": floats(3, 1, 1) * 4}
    nodes = {
        "Conv": conv("a", "x", "a", w),
        "Depthwise": conv("d", "x", "a", w, group=3),
        "Gemm": node("MatMul", "x m", "a"),
        "Add": node("Add", "x c", "a"),
        "Sub": node("Sub", "c x", "a"),
        "Mul": node("Mul", "x x", "a"),
    }
    least, most = BOUNDS[activation]
    w |= {"least": scalar(least or 0)} | ({} if most is None else {"most": scalar(most)})
    clip = node("Clip", "a least" if most is None else "a least most", "y")
    made = graph([nodes[kind], clip], {"x": floats(1, 3, 16, 16) * 4}, w)
    old, new = passed(made, tmp_path, activations.fuse_activations)
    assert activation in kinds(old) and activation not in kinds(new)
    assert len(new.ops) == len(old.ops) - 1


def test_activations_of_what_others_take_are_not_fused(tmp_path: Path) -> None:
    w = weighted("a", 4, 3, 3, 3)
    nodes = [conv("a", "x", "a", w), node("Relu", "a", "r"), node("Add", "r a", "y")]
    left(graph(nodes, IMAGE, w), tmp_path, activations.fuse_activations)
    left(graph(nodes[:2], IMAGE, w, ["a", "r"]), tmp_path, activations.fuse_activations)
    twice = [conv("a", "x", "a", w), node("Relu", "a", "r"), node("Relu", "r", "y")]
    _, new = passed(graph(twice, IMAGE, w), tmp_path, activations.fuse_activations)
    assert kinds(new).count("RELU") == 1


def test_reshapes_are_merged(tmp_path: Path) -> None:
    w = {"a": ints(6, 8), "b": ints(2, 24), "c": ints(48), "d": ints(2, 3, 8)}
    lines = ["Reshape x a r", "Reshape r b s", "Reshape s c t", "Relu t u", "Reshape u c v"]
    made = graph(written([*lines, "Reshape v d y"]), {"x": floats(2, 3, 8)}, w)
    _, new = passed(made, tmp_path, reshapes.merge_reshapes)
    assert kinds(new) == ["RESHAPE", "RELU", "RESHAPE"]
    back = graph(written(["Reshape x a r", "Relu r s", "Reshape s d t", "Reshape t a y"]),
                 {"x": floats(2, 3, 8)}, w)  # fmt: skip
    _, new = passed(back, tmp_path, reshapes.merge_reshapes)
    assert kinds(new) == ["RESHAPE", "RELU"]


def test_reshapes_that_are_outputs_stay_outputs(tmp_path: Path) -> None:
    w = {"a": ints(6, 8), "b": ints(2, 3, 8)}
    lines = ["Reshape x a r", "Reshape r b y", "Relu r z"]
    made = graph(written(lines), {"x": floats(2, 3, 8)}, w, ["r", "y", "z"])
    net = untidied(made, tmp_path)
    tidy(net)
    compare(net, made)
    assert len(set(net.outputs)) == 3


@pytest.mark.parametrize("kind", ["ReduceMean", "ReduceMax", "ReduceMin"])
def test_kept_axes_are_dropped(kind: str, tmp_path: Path) -> None:
    w = weighted("a", 4, 3, 3, 3) | {"to": ints(1, 4)}
    nodes = [
        conv("a", "x", "a", w),
        node(kind, "a", "r", axes=[2, 3], keepdims=1),
        node("Reshape", "r to", "y"),
    ]
    old, new = passed(graph(nodes, IMAGE, w), tmp_path, reshapes.drop_kept_axes)
    assert "RESHAPE" in kinds(old) and "RESHAPE" not in kinds(new)
    nodes.append(node("Mul", "a r", "z"))
    left(graph(nodes, IMAGE, w, ["y", "z"]), tmp_path, reshapes.drop_kept_axes)


def test_flattens_before_products_are_dropped(tmp_path: Path) -> None:
    w = {"to": ints(-1, 8), "fc": floats(8, 5)}
    made = graph(written(["Reshape x to r", "Gemm r fc y"]), {"x": floats(2, 3, 8)}, w)
    old, new = passed(made, tmp_path, reshapes.drop_flattens)
    assert kinds(old) == ["RESHAPE", "FULLY_CONNECTED"] and kinds(new) == ["FULLY_CONNECTED"]
    other = graph(written(["Reshape x to r", "Gemm r fc y"]), {"x": floats(2, 4, 3, 4)}, w)
    left(other, tmp_path, reshapes.drop_flattens)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize(
    ("pads", "attributes", "size"),
    [
        ([1, 1, 1, 1], {}, 9),
        ([0, 0, 1, 1], {"strides": [2, 2]}, 10),
        ([1, 1, 1, 1], {"strides": [2, 2]}, 9),
        ([2, 2, 2, 2], {"dilations": [2, 2]}, 9),
    ],
)
def test_pads_that_same_makes_are_folded(
    pads: list[int], attributes: dict[str, Any], size: int, group: int, tmp_path: Path
) -> None:
    w = weighted("a", 6, 3 // group, 3, 3)
    w["pads"] = np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64)
    nodes = [FIRST, node("Pad", "s pads", "p")]
    nodes.append(conv("a", "p", "y", w, group=group, **attributes))
    feed = {"x": floats(1, 3, size, size)}
    old, new = passed(graph(nodes, feed, w), tmp_path, padding.fold_pads)
    assert "PAD" in kinds(old) and "PAD" not in kinds(new)


def padded(pads: list[int], size: int, kernel: int, **attributes: Any) -> Graph:
    w = weighted("a", 6, 3, kernel, kernel) | {"pads": np.array(pads, np.int64)}
    nodes = [FIRST, node("Pad", "s pads", "p"), conv("a", "p", "y", w, **attributes)]
    return graph(nodes, {"x": floats(1, 3, size, size)}, w)


def test_other_pads_are_left(tmp_path: Path) -> None:
    left(padded([0, 0, 1, 1, 0, 0, 1, 1], 10, 3, strides=[2, 2]), tmp_path, padding.fold_pads)
    left(padded([0, 0, 2, 2, 0, 0, 0, 0], 10, 3), tmp_path, padding.fold_pads)
    w = weighted("a", 6, 4, 3, 3) | {"pads": ints(0, 1, 1, 1, 0, 0, 1, 1)}
    nodes = [FIRST, node("Pad", "s pads", "p"), conv("a", "p", "y", w)]
    left(graph(nodes, IMAGE, w), tmp_path, padding.fold_pads)
    w = weighted("a", 6, 3, 3, 3) | {"pads": ints(0, 0, 1, 1, 0, 0, 1, 1), "one": scalar(1)}
    nodes = [FIRST, node("Pad", "s pads one", "p"), conv("a", "p", "y", w)]
    left(graph(nodes, IMAGE, w), tmp_path, padding.fold_pads)


def test_pads_that_nobody_reads_are_trimmed(tmp_path: Path) -> None:
    made = padded([0, 0, 1, 1, 0, 0, 2, 3], 10, 3, strides=[2, 2])
    old, new = passed(made, tmp_path, padding.trim_pads)
    place = kinds(new).index("PAD")
    assert old.ops[place].outputs[0].shape == (1, 13, 14, 3)
    assert new.ops[place].outputs[0].shape == (1, 13, 13, 3)


def test_pads_of_nothing_are_dropped(tmp_path: Path) -> None:
    """All of what was padded is trimmed, and SAME would be another size."""
    net = agrees(padded([0, 0, 0, 0, 0, 0, 1, 1], 7, 3, strides=[3, 3]), tmp_path, False)
    assert "PAD" not in kinds(net)


def pooled(lines: list[Any], w: Arrays | None = None, outputs: tuple[str, ...] = ("y",)) -> Graph:
    return graph(lines, IMAGE, w, outputs)


@pytest.mark.parametrize("before", ["Relu", "Sigmoid", "Abs"])
def test_zeros_are_padded_before_pooling(before: str, tmp_path: Path) -> None:
    nodes = [
        FIRST,
        node(before, "s", "r"),
        node("MaxPool", "r", "y", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
    ]
    old, new = passed(pooled(nodes), tmp_path, padding.zero_pads)
    assert "PADV2" in kinds(old) and "PADV2" not in kinds(new) and "PAD" in kinds(new)
    nodes[1].op_type = "Tanh"
    left(pooled(nodes), tmp_path, padding.zero_pads)


@pytest.mark.parametrize(
    ("fill", "pads", "outputs"),
    [(-5, [2, 2, 2, 2], ("y",)), (-5, [1, 1, 1, 1], ("t", "y")), (5, [1, 1, 1, 1], ("y",))],
    ids=["window of padding", "output", "positive"],
)
def test_zeros_are_not_padded_where_they_show(
    fill: float, pads: list[int], outputs: tuple[str, ...], tmp_path: Path
) -> None:
    w = {"pads": np.array([0, 0, *pads[:2], 0, 0, *pads[2:]], np.int64), "fill": scalar(fill)}
    nodes = [
        FIRST,
        node("Relu", "s", "r"),
        node("Pad", "r pads fill", "p"),
        node("Transpose", "p", "t", perm=[0, 2, 3, 1]),
        node("MaxPool", "p", "y", kernel_shape=[2, 2], strides=[2, 2]),
    ]
    agrees(pooled(nodes, w, outputs), tmp_path, simplified=False)


def test_slices_of_slices_are_merged(tmp_path: Path) -> None:
    w = {"two": ints(2, 2), "one": ints(1, 1), "far": ints(INT64.max, INT64.max), "n": ints(6, 5)}
    w |= {"axes": ints(2, 3), "steps": ints(2, 3)}
    lines = ["Slice x one far axes steps r", "Slice r one n axes two y"]
    old, new = passed(graph(written(lines), IMAGE, w), tmp_path, slices.merge_slices)
    assert kinds(old) == ["STRIDED_SLICE"] * 2 and kinds(new) == ["STRIDED_SLICE"]
    both = graph(written(lines), IMAGE, w, ["r", "y"])
    left(both, tmp_path, slices.merge_slices)
    w |= {"back": ints(-1, -1), "begin": ints(-1, -2), "low": ints(INT64.min, INT64.min)}
    for backwards in (
        ["Slice x begin low axes back r", "Slice r one n axes two y"],
        ["Slice x one far axes steps r", "Slice r begin low axes back y"],
    ):
        left(graph(written(backwards), IMAGE, w), tmp_path, slices.merge_slices)


@pytest.mark.parametrize("around", [True, False])
def test_shortcuts_are_convolutions(around: bool, tmp_path: Path) -> None:
    w = weighted("a", 4, 3, 3, 3) | {"zero": ints(0, 0), "far": ints(INT64.max, INT64.max)}
    w |= {"axes": ints(2, 3), "steps": ints(2, 2), "pads": ints(0, 2, 0, 0, 0, 2, 0, 0)}
    nodes = [conv("a", "x", "a", w), *written(["Slice a zero far axes steps s"])]
    nodes.append(node("Pad", "s pads", "y") if around else node("Identity", "s", "y"))
    old, new = passed(graph(nodes, IMAGE, w), tmp_path, slices.shortcut_convolutions)
    assert "STRIDED_SLICE" in kinds(old)
    assert not {"STRIDED_SLICE", "PAD"} & set(kinds(new)) and kinds(new).count("CONV_2D") == 2


def test_other_slices_stay(tmp_path: Path) -> None:
    w = weighted("a", 4, 3, 3, 3) | {"begin": ints(1, 1), "far": ints(INT64.max, INT64.max)}
    w |= {"axes": ints(2, 3), "steps": ints(2, 2), "zero": ints(0, 0), "short": ints(8, 8)}
    for line in ("Slice a begin far axes steps y", "Slice a zero short axes steps y"):
        made = graph([conv("a", "x", "a", w), *written([line])], IMAGE, w)
        left(made, tmp_path, slices.shortcut_convolutions)
    made = graph(written(["Slice x zero far axes steps y"]), IMAGE, w)
    left(made, tmp_path, slices.shortcut_convolutions)


@pytest.mark.parametrize("form", SWISHES)
def test_hard_swishes_are_found_by_their_pass(form: str, tmp_path: Path) -> None:
    made = hard_swish(SWISHES[form])
    _, new = passed(made, tmp_path, activations.hard_swishes, activations.fuse_activations)
    assert kinds(new) == ["HARD_SWISH"]


def test_tidying_sweeps_what_nobody_takes(tmp_path: Path) -> None:
    """And puts no operator before what it takes."""
    made = graph(written(["Relu x r", "Exp x e", "Tanh e t", "Abs r y"]), IMAGE)
    net = untidied(made, tmp_path)
    assert kinds(net) == ["RELU", "ABS"]
    net = untidied(made, tmp_path)
    net.ops.reverse()
    net.sort()
    assert kinds(net) == ["RELU", "ABS"]


@pytest.mark.parametrize("name", NETWORKS)
def test_tidying_changes_no_bit_of_a_network(name: str, tmp_path: Path) -> None:
    made = NETWORKS[name][0]()
    old, new = untidied(made, tmp_path), untidied(made, tmp_path)
    tidy(new)
    compare(new, made)
    identical(old, new, made)
    made_before: set[Tensor] = {*new.inputs}
    for op in new.ops:
        assert all(tensor.data is not None or tensor in made_before for tensor in op.taken)
        made_before |= {*op.outputs}


# --- random graphs

Draw = Callable[[st.SearchStrategy[Any]], Any]


class Growing:
    """A graph over images that grows by one drawn step after the other."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.nodes: list[Any] = []
        self.constants: Arrays = {}
        shape = (self.one(1, 2), self.one(3, 4, 6, 8), self.one(4, 6, 8), self.one(4, 8))
        self.values: list[tuple[str, tuple[int, ...]]] = [("x", shape)]
        self.feed = {"x": floats(*shape, seed=draw(st.integers(0, 99)))}

    def one(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def add(self, kind: str, inputs: str, **attributes: Any) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(node(kind, inputs, name, **attributes))
        return name

    def give(self, name: str, shape: tuple[int, ...]) -> None:
        self.values.append((name, shape))

    def same(self, name: str, shape: tuple[int, ...]) -> str:
        """Another tensor that can be broadcast to this one, mostly of the same shape."""
        found = [
            other
            for other, size in self.values
            if all(a in (1, b) for a, b in zip(size, shape, strict=True))
        ]
        return str(self.draw(st.sampled_from(found)))

    # each step takes a tensor and its shape

    def conv(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        kernel, stride, begin, end = (
            self.one(1, 3),
            self.one(1, 2),
            self.one(0, 1),
            self.one(0, 1),
        )
        group = self.one(1, *(g for g in (2, c) if c % g == 0))
        out = group * self.one(1, 2) if group > 1 else self.one(3, 4, 8)
        sizes = [(s + begin + end - kernel) // stride + 1 for s in (h, w)]
        if min(sizes) < 1:
            return
        weight = floats(out, c // group, kernel, kernel) / np.float32(np.sqrt(c // group) * kernel)
        name = self.add(
            "Conv",
            f"{x} {self.constant(weight)} {self.constant(floats(out))}",
            strides=[stride, stride],
            pads=[begin, begin, end, end],
            group=group,
        )
        self.give(name, (n, out, *sizes))

    def transposed(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        if h > 8:
            return
        kernel, pad = self.one(2, 3, 4), self.one(0, *([1] if min(h, w) > 1 else []))
        weight = floats(c, 3, kernel, kernel) / np.float32(np.sqrt(c) * kernel)
        name = self.add("ConvTranspose", f"{x} {self.constant(weight)}", strides=[2, 2],
                        pads=[pad] * 4)  # fmt: skip
        self.give(name, (n, 3, *((s - 1) * 2 + kernel - 2 * pad for s in (h, w))))

    def pool(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        kind, kernel, stride, pad = (
            self.one("MaxPool", "AveragePool"),
            self.one(2, 3),
            self.one(1, 2),
            self.one(0, 1),
        )
        sizes = [(s + 2 * pad - kernel) // stride + 1 for s in (h, w)]
        if min(sizes) < 1:
            return
        name = self.add(kind, x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)
        self.give(name, (n, c, *sizes))

    def activation(self, x: str, shape: tuple[int, ...]) -> None:
        kind = self.one("Relu", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Abs", "Neg", "Clip")
        if kind == "Clip":
            least, most = self.one((0, 6), (-1, 1), (0, 3), (-2, 2))
            x = f"{x} {self.constant(scalar(least))} {self.constant(scalar(most))}"
        self.give(self.add(kind, x), shape)

    def slopes(self, x: str, shape: tuple[int, ...]) -> None:
        self.give(self.add("PRelu", f"{x} {self.constant(floats(shape[1], 1, 1))}"), shape)

    def by_constant(self, x: str, shape: tuple[int, ...]) -> None:
        _, c, h, w = shape
        other = self.constant(floats(*self.one((c, 1, 1), (), (1, c, h, w), (w,), (h, 1))))
        self.give(self.add(self.one("Add", "Sub", "Mul", "Max"), f"{x} {other}"), shape)

    def by_other(self, x: str, shape: tuple[int, ...]) -> None:
        pair = [x, self.same(x, shape)]
        if self.draw(st.booleans()):
            pair.reverse()
        self.give(self.add(self.one("Add", "Sub", "Mul", "Min"), " ".join(pair)), shape)

    def by_less(self, x: str, shape: tuple[int, ...]) -> None:
        """With a tensor of fewer axes that is computed, too."""
        y = self.add("ReduceMax", x, axes=self.one([0], [0, 1], [0, 1, 2]), keepdims=0)
        pair = [x, y]
        if self.draw(st.booleans()):
            pair.reverse()
        self.give(self.add(self.one("Add", "Sub", "Mul", "Max"), " ".join(pair)), shape)

    def concat(self, x: str, shape: tuple[int, ...]) -> None:
        axis = self.one(1, 2, 3)
        found = [
            (name, size)
            for name, size in self.values
            if all(size[other] == shape[other] for other in range(4) if other != axis)
        ]
        other, size = self.draw(st.sampled_from(found))
        total = shape[axis] + size[axis]
        if total <= 24:
            made = (*shape[:axis], total, *shape[axis + 1 :])
            self.give(self.add("Concat", f"{x} {other}", axis=axis), made)

    def split(self, x: str, shape: tuple[int, ...]) -> None:
        axis = self.one(1, 2, 3)
        if shape[axis] < 2:
            return
        first = self.draw(st.integers(1, shape[axis] - 1))
        names = [f"v{len(self.nodes)}", f"w{len(self.nodes)}"]
        sizes = self.constant(ints(first, shape[axis] - first))
        self.nodes.append(node("Split", f"{x} {sizes}", " ".join(names), axis=axis))
        self.give(self.add("Concat", f"{names[1]} {names[0]}", axis=axis), shape)

    def shuffled(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        groups = self.one(*(g for g in (1, 2, 3, 4) if c % g == 0))
        y = self.add("Reshape", f"{x} {self.constant(ints(n, groups, c // groups, h, w))}")
        y = self.add("Transpose", y, perm=[0, 2, 1, 3, 4])
        self.give(self.add("Reshape", f"{y} {self.constant(ints(*shape))}"), shape)

    def turned(self, x: str, shape: tuple[int, ...]) -> None:
        perm = self.one([0, 1, 3, 2], [0, 2, 1, 3], [0, 3, 1, 2], [0, 2, 3, 1], [0, 3, 2, 1])
        self.give(self.add("Transpose", x, perm=perm), tuple(shape[axis] for axis in perm))

    def regrouped(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        made = self.one((n, c, w, h), (n, h, c, w), (n, c * h, 1, w), (n, 1, c, h * w))
        if made[1] <= 24:
            self.give(self.add("Reshape", f"{x} {self.constant(ints(*made))}"), made)

    def tokens(self, x: str, shape: tuple[int, ...]) -> None:
        """Attention's way: flat, transposed, normalized, multiplied, back."""
        n, c = shape[:2]
        y = self.add("Reshape", f"{x} {self.constant(ints(n, c, -1))}")
        y = self.add("Transpose", y, perm=[0, 2, 1])
        if self.draw(st.booleans()):
            y = self.add("LayerNormalization", f"{y} {self.constant(floats(c))}", epsilon=0.1)
        if self.draw(st.booleans()):
            y = self.add("MatMul", f"{y} {self.constant(floats(c, c) / np.float32(c))}")
        if self.draw(st.booleans()):
            y = self.add("Softmax", y, axis=self.one(1, 2))
        y = self.add("Transpose", y, perm=[0, 2, 1])
        self.give(self.add("Reshape", f"{y} {self.constant(ints(*shape))}"), shape)

    def channels_last(self, x: str, shape: tuple[int, ...]) -> None:
        c = shape[1]
        y = self.add("Transpose", x, perm=[0, 2, 3, 1])
        y = self.add("MatMul", f"{y} {self.constant(floats(c, c) / np.float32(c))}")
        self.give(self.add("Transpose", y, perm=[0, 3, 1, 2]), shape)

    def attended(self, x: str, shape: tuple[int, ...]) -> None:
        """Squeezed, excited."""
        kind = self.one("GlobalAveragePool", "GlobalMaxPool", "ReduceMean")
        y = self.add(kind, x, axes=[2, 3]) if kind == "ReduceMean" else self.add(kind, x)
        y = self.add("Sigmoid", y)
        self.give(self.add("Mul", f"{x} {y}"), shape)

    def reduced(self, x: str, shape: tuple[int, ...]) -> None:
        axis, kind = self.one(1, 2, 3), self.one("ReduceMax", "ReduceMean", "ReduceMin")
        y = self.add(kind, x, axes=[axis], keepdims=0)
        y = self.add("Unsqueeze", f"{y} {self.constant(ints(axis))}")
        self.give(y, tuple(1 if place == axis else n for place, n in enumerate(shape)))

    def sliced(self, x: str, shape: tuple[int, ...]) -> None:
        axis, step = self.one(1, 2, 3), self.one(1, 2, -1)
        if shape[axis] < 3:
            return
        begin, end = (1, INT64.max) if step > 0 else (-2, INT64.min)
        given = [self.constant(ints(number)) for number in (begin, end, axis, step)]
        left_over = len(range(shape[axis])[1::step] if step > 0 else range(shape[axis])[-2::step])
        made = tuple(left_over if place == axis else n for place, n in enumerate(shape))
        self.give(self.add("Slice", " ".join([x, *given])), made)

    def surrounded(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        mode = self.one("constant", "reflect", "edge")
        if mode == "reflect" and min(h, w) < 2:
            return
        pads = ints(0, 0, 1, 0, 0, 0, 1, 1)
        self.give(self.add("Pad", f"{x} {self.constant(pads)}", mode=mode), (n, c, h + 2, w + 1))

    def resized(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        if h * w > 100:
            return
        mode, where = self.one("nearest", "linear"), self.one("half_pixel", "asymmetric")
        scales = self.constant(np.array([1, 1, 2, 2], np.float32))
        name = self.add(
            "Resize", f"{x} - {scales}", mode=mode, coordinate_transformation_mode=where
        )
        self.give(name, (n, c, 2 * h, 2 * w))

    def depth(self, x: str, shape: tuple[int, ...]) -> None:
        n, c, h, w = shape
        if c % 4 == 0 and h <= 8:
            name = self.add("DepthToSpace", x, blocksize=2, mode=self.one("DCR", "CRD"))
            self.give(name, (n, c // 4, 2 * h, 2 * w))
        elif h % 2 == 0 and w % 2 == 0 and c <= 6:
            self.give(self.add("SpaceToDepth", x, blocksize=2), (n, 4 * c, h // 2, w // 2))

    def gathered(self, x: str, shape: tuple[int, ...]) -> None:
        axis = self.one(1, 2, 3)
        index = self.constant(ints(*range(shape[axis] - 1, -1, -1)))
        self.give(self.add("Gather", f"{x} {index}", axis=axis), shape)

    def soft(self, x: str, shape: tuple[int, ...]) -> None:
        self.give(self.add("Softmax", x, axis=self.one(1, 2, 3)), shape)

    def normalized(self, x: str, shape: tuple[int, ...]) -> None:
        c = shape[1]
        given = [self.constant(floats(c)), self.constant(floats(c, seed=1))]
        if self.draw(st.booleans()):
            name = self.add("InstanceNormalization", " ".join([x, *given]), epsilon=0.1)
        else:
            more = [self.constant(floats(c)), self.constant(np.abs(floats(c)) + np.float32(0.5))]
            name = self.add("BatchNormalization", " ".join([x, *given, *more]))
        self.give(name, shape)

    def chosen(self, x: str, shape: tuple[int, ...]) -> None:
        """The greater of two, by comparing and selecting."""
        other = self.same(x, shape)
        mask = self.add("Greater", f"{x} {other}")
        self.give(self.add("Where", f"{mask} {x} {other}"), shape)

    def product(self, x: str, shape: tuple[int, ...]) -> None:
        """By its own transpose."""
        n, c, h, w = shape
        y = self.add("Transpose", x, perm=[0, 1, 3, 2])
        root = self.constant(scalar(w))
        self.give(self.add("Div", f"{self.add('MatMul', f'{x} {y}')} {root}"), (n, c, h, h))


STEPS = [
    Growing.conv,
    Growing.conv,
    Growing.transposed,
    Growing.pool,
    Growing.activation,
    Growing.slopes,
    Growing.by_constant,
    Growing.by_other,
    Growing.by_other,
    Growing.by_less,
    Growing.concat,
    Growing.split,
    Growing.shuffled,
    Growing.turned,
    Growing.regrouped,
    Growing.tokens,
    Growing.channels_last,
    Growing.attended,
    Growing.reduced,
    Growing.sliced,
    Growing.surrounded,
    Growing.resized,
    Growing.depth,
    Growing.gathered,
    Growing.soft,
    Growing.normalized,
    Growing.chosen,
    Growing.product,
]


@st.composite
def grown(draw: Draw) -> Graph:
    growing = Growing(draw)
    for _ in range(draw(st.integers(3, 8))):
        step = draw(st.sampled_from(STEPS))
        # Mostly what came last; else a branch begins.
        last = growing.values[-1]
        x, shape = last if draw(st.integers(0, 2)) else draw(st.sampled_from(growing.values))
        step(growing, x, shape)
    if not growing.nodes:
        growing.activation(*growing.values[-1])
    outputs = {growing.values[-1][0], draw(st.sampled_from(growing.values))[0]} - {"x"}
    if draw(st.booleans()):
        x, shape = growing.values[-1]
        weight = growing.constant(floats(int(np.prod(shape[1:])), 5))
        outputs.add(growing.add("Gemm", f"{growing.add('Flatten', x)} {weight}"))
    return graph(growing.nodes, growing.feed, growing.constants, sorted(outputs))


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=grown(), simplified=st.booleans(), turned=st.booleans())
def test_random_graphs(
    made: Graph, simplified: bool, turned: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    net = agrees(made, tmp_path_factory.mktemp("grown"), simplified)
    assert write(read(write(net))) == write(net)
    if turned:
        check_channels_last(net, made)


def check_channels_last(net: Net, made: Graph) -> None:
    """The same numbers, where what is named is transposed by the caller."""
    plain = run(net, made.feed, False)
    names = io.channels_last(net)
    feed = {
        name: array.transpose(0, 2, 3, 1) if name in names else array
        for name, array in made.feed.items()
    }
    for name, array in run(net, feed, False).items():
        if name in made.wanted:
            again = array.transpose(0, 3, 1, 2) if name in names else array
            np.testing.assert_array_equal(again, plain[name])


# --- random reshapes


@st.composite
def reshaped(draw: Draw) -> Graph:
    """Axes that are split, merged, dropped, added and moved, with little else between."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=3, max_size=4)))
    feed, constants = {"x": floats(*shape)}, {}
    nodes: list[Any] = []
    x = "x"

    def add_node(kind: str, inputs: str, **attributes: Any) -> str:
        nodes.append(node(kind, inputs, f"v{len(nodes)}", **attributes))
        return f"v{len(nodes) - 1}"

    if draw(st.booleans()):
        x = add_node("MaxPool", x, kernel_shape=[1] * (len(shape) - 2))
    seen = [x]
    for _ in range(draw(st.integers(2, 7))):
        kind = draw(st.sampled_from(["split", "merge", "one", "move", "move", "touch", "reduce"]))
        if kind == "move":
            perm = draw(st.permutations(range(len(shape))))
            x = add_node("Transpose", x, perm=list(perm))
            shape = tuple(shape[axis] for axis in perm)
        elif kind == "touch":
            constants[f"c{len(nodes)}"] = floats(*shape[draw(st.integers(0, len(shape))) :])
            x = add_node(draw(st.sampled_from(["Add", "Mul"])), f"{x} c{len(nodes)}")
        elif kind == "reduce":
            axis = draw(st.integers(0, len(shape) - 1))
            if len(shape) < 3 or shape[axis] == 1:
                continue
            x = add_node("ReduceMax", x, axes=[axis], keepdims=0)
            shape = (*shape[:axis], *shape[axis + 1 :])
        else:
            sizes = list(shape)
            place = draw(st.integers(0, len(sizes) - 1))
            if kind == "split" and sizes[place] in (4, 6, 8, 9, 12) and len(sizes) < 5:
                factor = 3 if sizes[place] == 9 else 2
                sizes[place : place + 1] = [factor, sizes[place] // factor]
            elif kind == "merge" and place + 1 < len(sizes) and len(sizes) > 2:
                sizes[place : place + 2] = [sizes[place] * sizes[place + 1]]
            elif kind == "one" and sizes[place] == 1 and len(sizes) > 2:
                del sizes[place]
            elif kind == "one" and len(sizes) < 5:
                sizes.insert(place, 1)
            constants[f"c{len(nodes)}"] = np.array(sizes, np.int64)
            x = add_node("Reshape", f"{x} c{len(nodes)}")
            shape = tuple(sizes)
        seen.append(x)
    outputs = {x, draw(st.sampled_from(seen))} - {"x"}
    if not outputs:
        outputs = {add_node("Relu", x)}
    return graph(nodes, feed, constants, sorted(outputs))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=reshaped())
def test_random_reshapes(made: Graph, tmp_path_factory: pytest.TempPathFactory) -> None:
    agrees(made, tmp_path_factory.mktemp("reshaped"), simplified=False)


@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("sizes", "kernel", "strides", "pads"),
    [
        ((15, 18), [3, 2], [2, 2], [1, 0, 1, 1]),  # one axis has a last window behind the input
        ((9, 7), [2, 2], [2, 2], [0, 1, 1, 1]),
        ((8, 8), [3, 3], [2, 2], [1, 1, 1, 1]),  # none has
        ((6, 8), [1, 1], [2, 2], [0, 0, 0, 0]),  # both have, and no padding
    ],
)
def test_a_pool_leaves_out_a_window_that_begins_behind_the_input(
    kind: str,
    sizes: tuple[int, int],
    kernel: list[int],
    strides: list[int],
    pads: list[int],
    tmp_path: Path,
) -> None:
    """Shape inference may count it, so shapes of what follows are known by another spelling."""
    more: dict[str, Any] = {"count_include_pad": 1} if kind == "AveragePool" else {}
    more |= {"kernel_shape": kernel, "strides": strides, "pads": pads, "ceil_mode": 1}
    model = build(
        [
            node(kind, "x", "p", **more),
            node("Transpose", "p", "t", perm=[0, 2, 3, 1]),
            node("Relu", "t", "y"),
        ],
        [value("x", [1, 3, *sizes])],
        [helper.make_empty_tensor_value_info("y")],
        opset=13,
    )
    feed = {"x": floats(1, 3, *sizes)}
    wanted = expected(model, feed)["y"]
    model.graph.output[0].CopyFrom(value("y", wanted.shape))
    examined = tmp_path / "examined"
    examined.mkdir()
    facts = reader.examine(str(save(model, tmp_path / "x.onnx")), {}, None, str(examined))
    assert facts["outputs"][0]["shape"] == list(wanted.shape)
    net = lowered(onnx.load(examined / "model.onnx"), tmp_path)
    compare(net, Graph(model, feed, {"y": wanted}))
