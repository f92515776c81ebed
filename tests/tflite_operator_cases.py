"""Operators that are lowered to TFLite: a case for each form of their inputs and attributes."""

from typing import Any, NamedTuple

import numpy as np
import onnx

from tests.tflite_graphs import (
    Fed,
    Given,
    Graph,
    between,
    bools,
    floats,
    ints,
    scalar,
    single,
    whole,
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


def label(case: Case) -> str:
    shapes = []
    for entry in case.inputs:
        found = entry.array if isinstance(entry, Fed) else entry
        shape = found.shape if isinstance(found, np.ndarray) else found
        shapes.append("-" if shape is None else "x".join(map(str, shape)))
    more = [f"{name}={found}".replace(" ", "") for name, found in case.attributes.items()]
    return "-".join([case.kind, ",".join(shapes), *more])[:120]
