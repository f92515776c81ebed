"""The TFLite quantizer: every operator that the specification lists against an exact simulation in
LiteRT's fast and reference kernels; the written rules; useless ranges; random graphs; weights."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from onmetal.converters.onnx import floats as onnx_float
from onmetal.converters.tflite import convert, io, weights
from onmetal.converters.tflite.check import problems
from onmetal.converters.tflite.grid import Activation, rounded
from onmetal.converters.tflite.net import SAME, VALID, Net, Op, Tensor, constant
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.quantize import observed, quantize
from onmetal.converters.tflite.reference import Exposed, interpreter
from onmetal.converters.tflite.specification import FIXED, FREE, INT16, SHARED, WEIGHTED, supported
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from tests.onnx_models import build, node, save, value
from tests.onnx_models import constant as initializer

Arrays = dict[str, np.ndarray]
Ranges = dict[str, tuple[float, float]]
F32 = np.dtype(np.float32)
KERNELS = {"xnnpack": False, "reference": True}
INTEGERS = (np.dtype(np.int8), np.dtype(np.int16))
SAMPLES = 4


# --- building


class Making:
    """A float net that grows by one operator after the other."""

    def __init__(self, *shape: int, low: float = -1.0, high: float = 1.0) -> None:
        self.random = np.random.default_rng(7)
        self.net = Net([], [], [])
        self.count = 0
        self.spans: list[tuple[float, float]] = []
        if shape:
            self.x = self.input(*shape, low=low, high=high)

    def input(self, *shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
        tensor = Tensor(f"x{len(self.net.inputs)}", shape, F32)
        self.net.inputs.append(tensor)
        self.spans.append((low, high))
        return tensor

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind.lower()}{self.count}"

    def ints(self, *values: Any) -> Tensor:
        return constant(self.name("ints"), np.asarray(values, np.int32))

    def number(self, value: int) -> Tensor:
        return constant(self.name("number"), np.asarray(value, np.int32))

    def floats(self, *shape: int, spread: float = 1.0) -> Tensor:
        return constant(self.name("floats"), self.random.uniform(-spread, spread, shape), F32)

    def many(
        self,
        kind: str,
        inputs: Sequence[Tensor | None],
        *shapes: Sequence[int],
        dtype: Any = F32,
        **options: Any,
    ) -> list[Tensor]:
        made = [Tensor(self.name(kind), tuple(shape), np.dtype(dtype)) for shape in shapes]
        self.net.ops.append(Op(kind, list(inputs), made, options))
        return made

    def op(
        self, kind: str, inputs: Sequence[Tensor | None], *shape: int, dtype: Any = F32, **more: Any
    ) -> Tensor:
        return self.many(kind, inputs, shape, dtype=dtype, **more)[0]

    def conv(
        self,
        taken: Tensor | None = None,
        channels: int = 4,
        *,
        size: int = 3,
        stride: int = 1,
        spread: float = 0.6,
        offset: float = 0.0,
        bias: bool = True,
    ) -> Tensor:
        """SAME. Values of its output spread around `offset`."""
        taken = self.x if taken is None else taken
        batch, height, width, depth = taken.shape
        weight = self.floats(channels, size, size, depth, spread=spread / size / depth**0.5)
        offsets = self.floats(channels, spread=spread / 4 if bias else 0.0)
        assert offsets.data is not None
        offsets.data = offsets.data + np.float32(offset)
        inputs = [taken, weight, offsets]
        shape = (batch, -(-height // stride), -(-width // stride), channels)
        return self.op("CONV_2D", inputs, *shape, **SQUARE(stride))

    def done(self, *outputs: Tensor) -> Net:
        self.net.outputs = list(outputs)
        return self.net

    def feeds(self, count: int = SAMPLES, seed: int = 3) -> list[Arrays]:
        random = np.random.default_rng(seed)
        return [
            {
                tensor.name: random.uniform(low, high, tensor.shape).astype(np.float32)
                for tensor, (low, high) in zip(self.net.inputs, self.spans, strict=True)
            }
            for _ in range(count)
        ]


def SQUARE(stride: int = 1, padding: int = SAME, dilation: int = 1) -> dict[str, int]:
    return {
        "padding": padding,
        "strideH": stride,
        "strideW": stride,
        "dilationHFactor": dilation,
        "dilationWFactor": dilation,
    }


POOL = {"padding": VALID, "strideH": 2, "strideW": 2, "filterHeight": 2, "filterWidth": 2}

Made = Tensor | list[Tensor]
BUILD: dict[str, Callable[[Making], Made]] = {}
"""Operator -> adds it to a net after a convolution; -> its results."""


def builds(*kinds: str) -> Callable[[Callable[[Making, str], Made]], Callable[[Making, str], Made]]:
    def register(function: Callable[[Making, str], Made]) -> Callable[[Making, str], Made]:
        for kind in kinds:
            BUILD[kind] = lambda m, kind=kind: function(m, kind)  # type: ignore[misc]
        return function

    return register


@builds("AVERAGE_POOL_2D", "MAX_POOL_2D")
def pool(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv()], 1, 3, 3, 4, **POOL)


@builds("BATCH_TO_SPACE_ND")
def batch_to_space(m: Making, kind: str) -> Made:
    """Between two of them, as converters of dilated convolutions write them."""
    many = space_to_batch(m, "SPACE_TO_BATCH_ND")
    assert isinstance(many, Tensor)
    return m.op(kind, [many, m.ints(2, 2), m.ints([0, 0], [0, 0])], 1, 6, 6, 4)


@builds("SPACE_TO_BATCH_ND")
def space_to_batch(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.ints(2, 2), m.ints([0, 0], [0, 0])], 4, 3, 3, 4)


@builds("BROADCAST_TO")
def broadcast_to(m: Making, kind: str) -> Made:
    small = m.op("RESHAPE", [m.conv(channels=1, stride=6), m.ints(1, 1)], 1, 1)
    return m.op(kind, [small, m.ints(3, 5)], 3, 5)


@builds("CONCATENATION")
def concatenation(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.conv(spread=0.2), m.conv()], 1, 6, 6, 12, axis=3)


@builds("DEPTH_TO_SPACE")
def depth_to_space(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv()], 1, 12, 12, 1, blockSize=2)


@builds("SPACE_TO_DEPTH")
def space_to_depth(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv()], 1, 3, 3, 16, blockSize=2)


@builds("EXPAND_DIMS")
def expand_dims(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.number(1)], 1, 1, 6, 6, 4)


@builds("SQUEEZE")
def squeeze(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv()], 6, 6, 4, squeezeDims=[0])


@builds("RESHAPE")
def reshape(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.ints(6, 24)], 6, 24)


@builds("GATHER")
def gather(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.ints(3, 1, 1)], 1, 6, 6, 3, axis=3)


@builds("GATHER_ND")
def gather_nd(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.ints([0, 1], [0, 4])], 2, 6, 4)


@builds("MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE", "ADD", "SUB", "MUL")
def binary(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.conv(spread=0.3)], 1, 6, 6, 4)


@builds("EQUAL", "NOT_EQUAL", "GREATER", "GREATER_EQUAL", "LESS", "LESS_EQUAL")
def comparison(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.conv(spread=0.3)], 1, 6, 6, 4, dtype=np.bool_)


@builds("MIRROR_PAD")
def mirror_pad(m: Making, kind: str) -> Made:
    pads = m.ints([0, 0], [1, 1], [2, 1], [0, 0])
    return m.op(kind, [m.conv(), pads], 1, 8, 9, 4, mode=0)


@builds("PAD")
def pad(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.ints([0, 0], [1, 1], [2, 0], [0, 0])], 1, 8, 8, 4)


@builds("PADV2")
def padv2(m: Making, kind: str) -> Made:
    fill = constant("fill", np.float32(0.25))
    return m.op(kind, [m.conv(), m.ints([0, 0], [1, 1], [2, 0], [0, 0]), fill], 1, 8, 8, 4)


@builds("PACK")
def pack(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.conv(spread=0.3)], 1, 2, 6, 6, 4, axis=1, valuesCount=2)


@builds("UNPACK")
def unpack(m: Making, kind: str) -> Made:
    return m.many(kind, [m.conv(channels=2)], *[(1, 6, 6)] * 2, axis=3, num=2)


@builds("REDUCE_MAX", "REDUCE_MIN", "MEAN", "SUM")
def reduction(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.ints(1, 2)], 1, 1, 1, 4, keepDims=True)


@builds("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR")
def resize(m: Making, kind: str) -> Made:
    sides = {"alignCorners": False, "halfPixelCenters": True}
    return m.op(kind, [m.conv(), m.ints(12, 9)], 1, 12, 9, 4, **sides)


@builds("REVERSE_V2")
def reverse(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.ints(2)], 1, 6, 6, 4)


@builds("DIV")
def div(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.conv(offset=2.0)], 1, 6, 6, 4)


@builds("REDUCE_PROD")
def product(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.ints(3)], 1, 6, 6, 1, keepDims=True)


@builds("DYNAMIC_UPDATE_SLICE")
def update(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.conv(stride=6), m.ints(0, 1, 2, 0)], 1, 6, 6, 4)


@builds("SELECT_V2", "SELECT")
def select(m: Making, kind: str) -> Made:
    first, second = m.conv(), m.conv(spread=0.3)
    chosen = m.op("GREATER", [first, second], 1, 6, 6, 4, dtype=np.bool_)
    return m.op(kind, [chosen, first, second], 1, 6, 6, 4)


@builds("SLICE")
def slices(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.ints(0, 1, 2, 1), m.ints(1, 4, 3, 2)], 1, 4, 3, 2)


@builds("STRIDED_SLICE")
def strided_slice(m: Making, kind: str) -> Made:
    spans = [m.ints(0, 0, 1, 0), m.ints(1, 6, 6, 4), m.ints(1, 2, 2, 1)]
    return m.op(kind, [m.conv(), *spans], 1, 3, 3, 4)


@builds("SPLIT")
def split(m: Making, kind: str) -> Made:
    return m.many(kind, [m.number(3), m.conv()], *[(1, 6, 6, 2)] * 2, numSplits=2)


@builds("SPLIT_V")
def split_v(m: Making, kind: str) -> Made:
    inputs = [m.conv(), m.ints(1, 3), m.number(3)]
    return m.many(kind, inputs, (1, 6, 6, 1), (1, 6, 6, 3), numSplits=2)


@builds("TILE")
def tile(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.ints(1, 2, 1, 3)], 1, 12, 6, 12)


@builds("TOPK_V2")
def topk(m: Making, kind: str) -> Made:
    values = Tensor("values", (1, 6, 6, 2), F32)
    places = Tensor("places", (1, 6, 6, 2), np.dtype(np.int32))
    m.net.ops.append(Op(kind, [m.conv(), m.number(2)], [values, places]))
    return [values]


@builds("TRANSPOSE")
def transpose(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.ints(0, 3, 1, 2)], 1, 4, 6, 6)


@builds("ARG_MAX", "ARG_MIN")
def arg(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.number(3)], 1, 6, 6, dtype=np.int64, outputType=4)


@builds("BATCH_MATMUL")
def batch_matmul(m: Making, kind: str) -> Made:
    left = m.op("RESHAPE", [m.conv(), m.ints(2, 9, 8)], 2, 9, 8)
    right = m.op("RESHAPE", [m.conv(), m.ints(2, 8, 9)], 2, 8, 9)
    return m.op(kind, [left, right], 2, 9, 9, adjX=False, adjY=False)


@builds(
    "ABS", "ELU", "EXP", "HARD_SWISH", "LOGISTIC", "TANH", "RELU", "RELU_N1_TO_1", "RELU_0_TO_1"
)
def unary(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(spread=2.0)], 1, 6, 6, 4)


@builds("RELU6")
def relu6(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(spread=4.0, offset=4.0)], 1, 6, 6, 4)


@builds("GELU")
def gelu(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(spread=2.0)], 1, 6, 6, 4, approximate=False)


@builds("LOG", "RSQRT", "SQRT")
def positive(m: Making, kind: str) -> Made:
    """Of values around 2, none near 0."""
    return m.op(kind, [m.conv(offset=2.0)], 1, 6, 6, 4)


@builds("LEAKY_RELU")
def leaky_relu(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv()], 1, 6, 6, 4, alpha=0.2)


@builds("PRELU")
def prelu(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(), m.floats(1, 1, 4)], 1, 6, 6, 4)


@builds("SOFTMAX")
def softmax(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(spread=4.0)], 1, 6, 6, 4, beta=1.0)


@builds("LOG_SOFTMAX", "L2_NORMALIZATION")
def normal(m: Making, kind: str) -> Made:
    return m.op(kind, [m.conv(spread=4.0)], 1, 6, 6, 4)


@builds("CONV_2D")
def conv_2d(m: Making, kind: str) -> Made:
    return m.conv(m.conv(channels=8), 6, stride=2)


@builds("DEPTHWISE_CONV_2D")
def depthwise(m: Making, kind: str) -> Made:
    inputs = [m.conv(), m.floats(1, 3, 3, 8), m.floats(8)]
    return m.op(kind, inputs, 1, 6, 6, 8, depthMultiplier=2, **SQUARE())


@builds("FULLY_CONNECTED")
def fully_connected(m: Making, kind: str) -> Made:
    flat = m.op("RESHAPE", [m.conv(), m.ints(1, 144)], 1, 144)
    return m.op(kind, [flat, m.floats(10, 144), m.floats(10)], 1, 10)


@builds("TRANSPOSE_CONV")
def transpose_conv(m: Making, kind: str) -> Made:
    inputs = [m.ints(1, 12, 12, 3), m.floats(3, 3, 3, 4), m.conv(), m.floats(3)]
    return m.op(kind, inputs, 1, 12, 12, 3, padding=SAME, strideH=2, strideW=2)


# --- running


def calibrated(net: Net, feeds: Iterable[Arrays]) -> Ranges:
    """The least and the greatest value of all that is observed."""
    names = observed(net)
    run = Exposed(net, names).run
    found: Ranges = {}
    for feed in feeds:
        seen = run(feed)
        for name in names:
            low, high = found.get(name, (np.inf, -np.inf))
            array = seen[name]
            found[name] = min(low, float(array.min())), max(high, float(array.max()))
    return found


def outputs(net: Net, feeds: Iterable[Arrays], reference: bool) -> list[Arrays]:
    names = [tensor.name for tensor in net.outputs]
    run = Exposed(net, names, reference).run
    return [{name: array for name, array in run(feed).items() if name in names} for feed in feeds]


def real(tensor: Tensor, integers: np.ndarray) -> np.ndarray:
    """What integers stand for."""
    if tensor.scale is None or tensor.zero_point is None:
        return integers
    shape = [1] * integers.ndim
    if tensor.per_channel:
        shape[tensor.axis] = -1
    scale = tensor.scale.astype(np.float64).reshape(shape)
    found: np.ndarray = (integers - tensor.zero_point.reshape(shape)) * scale
    return found.astype(np.float32)


def exactly(op: Op, values: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """What an integer operator should give: the float one's results of the same numbers, in steps
    of its output, not yet rounded."""
    inputs: list[Tensor | None] = []
    fed, feed = [], {}
    for tensor in op.inputs:
        if tensor is None or tensor.scale is None:
            if tensor is not None and tensor.data is None:
                fed.append(tensor)
                feed[tensor.name] = values[tensor.name]
            inputs.append(tensor)
            continue
        if tensor.data is not None:
            inputs.append(constant(tensor.name, real(tensor, tensor.data), F32))
            continue
        new = next((t for t in inputs if t is not None and t.name == tensor.name), None)
        if new is None:
            new = Tensor(tensor.name, tensor.shape, F32)
            fed.append(new)
            feed[new.name] = real(tensor, values[tensor.name])
        inputs.append(new)
    given = [Tensor(t.name, t.shape, F32 if t.scale is not None else t.dtype) for t in op.outputs]
    options = {name: value for name, value in op.options.items() if name != "potScaleInt16"}
    net = Net(fed, given, [Op(op.kind, inputs, given, options)])
    found = Exposed(net, [t.name for t in given]).run(feed)
    steps = []
    for tensor in op.outputs:
        array = found[tensor.name].astype(np.float64)
        if tensor.scale is not None and tensor.zero_point is not None:
            limits = np.iinfo(tensor.dtype)
            array = array / float(tensor.scale[0]) + int(tensor.zero_point[0])
            array = np.clip(array, limits.min, limits.max)
        steps.append(array)
    return steps


def integer(op: Op) -> bool:
    return (
        any(t.dtype in INTEGERS and t.scale is not None for t in op.taken if t.data is None)
        and op.kind != "DEQUANTIZE"
    )


def steps_off(net: Net, feeds: Iterable[Arrays], reference: bool) -> dict[str, float]:
    """Kind of operator -> how many steps of its output the kernel is off the exact result, at
    worst; for outputs that are no numbers of a scale the share of those that differ."""
    chosen = [op for op in net.ops if integer(op)]
    tensors = dict.fromkeys(
        t.name for op in chosen for t in (*op.taken, *op.outputs) if t.data is None
    )
    run = Exposed(net, list(tensors), reference).run
    worst: dict[str, float] = {}
    for feed in feeds:
        values = run(feed)
        for op in chosen:
            for tensor, exact in zip(op.outputs, exactly(op, values), strict=True):
                found = values[tensor.name].astype(np.float64)
                if tensor.scale is None:
                    off = float(np.mean(found != exact))
                else:
                    off = float(np.abs(found - exact).max(initial=0.0))
                worst[op.kind] = max(worst.get(op.kind, 0.0), off)
    return worst


def sqnr(wanted: np.ndarray, found: np.ndarray) -> float:
    """Signal over noise in dB."""
    noise = np.square(wanted.astype(np.float64) - found).sum()
    return float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / max(noise, 1e-300)))


def kinds(net: Net) -> list[str]:
    return [op.kind for op in net.ops]


def kind_net(kind: str) -> Making:
    m = Making(1, 6, 6, 3)
    made = BUILD[kind](m)
    m.done(*(made if isinstance(made, list) else [made]))
    return m


# --- 1. every operator of the specification

S8 = sorted(SHARED | FREE | WEIGHTED.keys() | FIXED["s8"].keys())
REFUSED_BY_REFERENCE = {"DEPTH_TO_SPACE", "ELU", "TILE"}
"""The reference kernels that LiteRT 2.3 ships have none of these, or only of an older version."""

STEPS: dict[Activation, float] = {"s8": 1.0, "s16": 3.0}
"""What kernels may be off the exact result, in steps of their output: half for the rounding, the
rest for the fixed-point multiplier; with 16 bits also for tables of 513 numbers (EXP, LOG)."""
ROUGH = {("s16", "RESIZE_BILINEAR"): 80.0, ("s16", "RSQRT"): 40.0}
"""Its fractions have 10 bits, whatever the type of the values."""
LEAST_DB: dict[Activation, float] = {"s8": 32.0, "s16": 42.0}
"""Of a convolution and one operator, against float. 8 bits alone give ~ 40 dB over a uniform range,
and 16 bits keep 8-bit weights, each two operators deep."""
DIFFER = 0.03
"""Share of comparisons and places that rounding may decide otherwise."""


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", S8)
def test_int8_kernel(kind: str, kernels: str) -> None:
    check_kind(kind, "s8", kernels)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", sorted(INT16))
def test_int16_kernel(kind: str, kernels: str) -> None:
    check_kind(kind, "s16", kernels)


def check_kind(kind: str, activation: Activation, kernels: str) -> None:
    m = kind_net(kind)
    feeds, net = m.feeds(), m.net
    made = read(write(quantize(net, calibrated(net, feeds), activation)))
    assert problems(made) == []
    assert any(op.kind == kind and integer(op) for op in made.ops), "it stayed float"
    if all(supported(op.kind, activation) for op in net.ops):
        assert kinds(made).count("DEQUANTIZE") == sum(t.is_float for t in net.outputs)
    if kernels == "reference" and kind in REFUSED_BY_REFERENCE:
        with pytest.raises(ValueError, match="find op for builtin opcode"):
            interpreter(write(made), reference=True)
        return
    for name, off in steps_off(made, feeds, KERNELS[kernels]).items():
        assert off <= ROUGH.get((activation, name), STEPS[activation]), name
    wanted, found = (outputs(n, feeds, KERNELS[kernels]) for n in (net, made))
    for name in wanted[0]:
        left, right = (np.stack([run[name] for run in runs]) for runs in (wanted, found))
        if left.dtype == np.float32:
            assert sqnr(left, right) >= LEAST_DB[activation], name
        else:
            assert np.mean(left != right) <= DIFFER, name


def test_every_table_is_known() -> None:
    """The specification's sets do not overlap, and what has 16-bit kernels has 8-bit ones."""
    sets = [SHARED, FREE, frozenset(WEIGHTED), frozenset(FIXED["s8"])]
    assert sum(map(len, sets)) == len(frozenset().union(*sets))
    assert FIXED["s16"].keys() <= INT16
    assert all(supported(kind, "s8") for kind in INT16)
    assert not supported("CUMSUM", "s8") and not supported("HARD_SWISH", "s16")


# --- 2. the specification, on the written file


def quantized(
    m: Making, activation: Activation = "s8", keep_float: frozenset[str] = frozenset()
) -> Net:
    """By what its samples hold; as it is read back from the file."""
    made = quantize(m.net, calibrated(m.net, m.feeds()), activation, keep_float)
    found = read(write(made))
    assert problems(found) == []
    return found


def small() -> Making:
    """Every operator with weights, and what lies between them."""
    m = Making(1, 8, 8, 3)
    first = m.conv(channels=4, stride=2)
    deep = m.op(
        "DEPTHWISE_CONV_2D",
        [first, m.floats(1, 3, 3, 4), m.floats(4)],
        1, 4, 4, 4, depthMultiplier=1, fusedActivationFunction=3, **SQUARE(),
    )  # fmt: skip
    shape = m.ints(1, 8, 8, 2)
    wide = m.op(
        "TRANSPOSE_CONV",
        [shape, m.floats(2, 3, 3, 4), deep, m.floats(2)],
        1, 8, 8, 2, padding=SAME, strideH=2, strideW=2,
    )  # fmt: skip
    mean = m.op("MEAN", [wide, m.ints(1, 2)], 1, 2, keepDims=False)
    dense = m.op("FULLY_CONNECTED", [mean, m.floats(5, 2), m.floats(5)], 1, 5)
    m.done(m.op("SOFTMAX", [dense], 1, 5, beta=1.0))
    return m


def called(net: Net, name: str) -> Tensor:
    return next(tensor for tensor in net.tensors() if tensor.name == name)


def maker(net: Net, tensor: Tensor | str) -> Op:
    """Of the tensor itself, or of the float output of that name before its DEQUANTIZE."""
    found = called(net, tensor) if isinstance(tensor, str) else tensor
    op = net.producers()[found]
    return maker(net, op.taken[0]) if op.kind == "DEQUANTIZE" else op


def grid(tensor: Tensor) -> tuple[float, int]:
    assert tensor.scale is not None and tensor.zero_point is not None and tensor.scale.size == 1
    return float(tensor.scale[0]), int(tensor.zero_point[0])


@pytest.mark.parametrize("activation", STEPS)
def test_weights_and_biases_follow_the_specification(activation: Activation) -> None:
    m = small()
    made = quantized(m, activation)
    floats = {op.kind: op for op in m.net.ops}
    seen = []
    for op in made.ops:
        if op.kind not in WEIGHTED:
            continue
        seen.append(op.kind)
        rule = WEIGHTED[op.kind]
        entry, weight, bias = (op.inputs[place] for place in (rule.taken, rule.weight, rule.bias))
        assert entry is not None and weight is not None and bias is not None
        was, offset = floats[op.kind].inputs[rule.weight], floats[op.kind].inputs[rule.bias]
        assert was is not None and was.data is not None and offset is not None
        assert weight.data is not None and weight.scale is not None and bias.data is not None
        assert weight.dtype == np.int8 and bias.scale is not None and offset.data is not None
        assert weight.data.min() >= -127
        assert weight.zero_point is not None and not weight.zero_point.any()
        channels = op.outputs[0].shape[-1]
        assert weight.scale.size == (1 if rule.axis is None else channels)
        if rule.axis is not None:
            assert weight.axis == rule.axis
        others = tuple(a for a in range(weight.data.ndim) if a != rule.axis)
        peaks = np.abs(weight.data.astype(int)).max(axis=others if rule.axis is not None else None)
        assert np.all(peaks == 127)  # nothing of the range is wasted
        error = np.abs(real(weight, weight.data) - was.data)
        assert error.max() <= weight.scale.max() * 0.501
        products = grid(entry)[0] * weight.scale.astype(np.float64)
        assert bias.dtype == (np.int32 if activation == "s8" else np.int64)
        assert bias.scale.shape == weight.scale.shape
        np.testing.assert_allclose(bias.scale, products, rtol=1e-6)
        assert bias.zero_point is not None and not bias.zero_point.any()
        np.testing.assert_array_equal(bias.data, np.round(offset.data / bias.scale.astype(float)))
    assert sorted(seen) == sorted(WEIGHTED)


def test_a_scale_covers_the_range_and_zero() -> None:
    m = Making(1, 4, 4, 2)
    m.done(m.conv(channels=2))
    name = m.net.outputs[0].name
    for low, high in ((-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 6.0), (-1.0, 0.0)):
        made = read(write(quantize(m.net, {"x0": (-2.0, 1.0), name: (low, high)})))
        scale, zero = grid(maker(made, name).outputs[0])
        least, most = min(low, 0.0), max(high, 0.0)
        assert scale == float(np.float32((most - least) / 255))
        assert zero == -128 + round(-least / scale)
        wide = read(write(quantize(m.net, {"x0": (-2.0, 1.0), name: (low, high)}, "s16")))
        peak = max(-low, high)
        assert grid(maker(wide, name).outputs[0]) == (float(np.float32(peak / 32767)), 0)


@pytest.mark.parametrize("activation", STEPS)
def test_activations_have_one_scale_and_int16_ones_no_zero_point(activation: Activation) -> None:
    made = quantized(small(), activation)
    dtype = np.int8 if activation == "s8" else np.int16
    inner = [t for t in made.tensors() if t.data is None and not t.is_float]
    assert len(inner) == 7 and all(t.dtype == dtype for t in inner)
    for tensor in inner:
        scale, zero = grid(tensor)
        assert scale > 0 and (activation == "s8" or zero == 0)


@pytest.mark.parametrize(
    "activation, kind", [(a, kind) for a in ("s8", "s16") for kind in FIXED[a]]
)
def test_fixed_scales(activation: Activation, kind: str) -> None:
    made = quantized(kind_net(kind), activation)
    op = next(op for op in made.ops if op.kind == kind)
    scale, zero = FIXED[activation][kind]
    assert grid(op.outputs[0]) == (float(np.float32(scale)), zero)


FIXED_SPECIFICATION = {
    ("s8", "SOFTMAX"): (1 / 256, -128),
    ("s8", "LOGISTIC"): (1 / 256, -128),
    ("s8", "TANH"): (1 / 128, 0),
    ("s8", "LOG_SOFTMAX"): (16 / 256, 127),
    ("s8", "L2_NORMALIZATION"): (1 / 128, 0),
    ("s16", "SOFTMAX"): (1 / 32768, 0),
    ("s16", "LOGISTIC"): (1 / 32768, 0),
    ("s16", "TANH"): (1 / 32768, 0),
}


def test_the_table_of_fixed_scales_is_the_specifications() -> None:
    found = {(a, kind): entry for a, table in FIXED.items() for kind, entry in table.items()}
    assert found == FIXED_SPECIFICATION


def joined(m: Making, *tensors: Tensor) -> Tensor:
    width = sum(t.shape[-1] for t in tensors)
    return m.op("CONCATENATION", tensors, 1, 4, 4, width, axis=3)


def test_a_concatenation_and_all_that_flows_into_it_have_one_scale() -> None:
    m = Making(1, 4, 4, 2)
    left = m.op("RESHAPE", [m.conv(channels=2), m.ints(1, 4, 4, 2)], 1, 4, 4, 2)
    pooled = m.op(
        "MAX_POOL_2D", [m.conv(channels=2, spread=3.0)], 1, 4, 4, 2,
        **{**POOL, "padding": SAME, "strideH": 1, "strideW": 1},
    )  # fmt: skip
    m.done(
        m.op("SLICE", [joined(m, left, pooled), m.ints(*[0] * 4), m.ints(1, 2, 2, 4)], 1, 2, 2, 4)
    )
    made = quantized(m)
    grids = {grid(t) for op in made.ops if op.kind in SHARED for t in (op.taken[0], *op.outputs)}
    grids |= {grid(op.outputs[0]) for op in made.ops if op.kind == "CONV_2D"}
    assert len(grids) == 1
    assert kinds(made).count("QUANTIZE") == kinds(made).count("DEQUANTIZE") == 1


def test_a_pass_through_of_a_softmax_keeps_its_scale() -> None:
    m = Making(1, 4, 4, 2)
    soft = m.op("SOFTMAX", [m.conv(channels=2)], 1, 4, 4, 2, beta=1.0)
    m.done(m.op("RESHAPE", [soft, m.ints(1, 32)], 1, 32))
    made = quantized(m)
    op = next(op for op in made.ops if op.kind == "RESHAPE")
    assert grid(op.taken[0]) == grid(op.outputs[0]) == (1 / 256, -128)
    assert kinds(made) == ["QUANTIZE", "CONV_2D", "SOFTMAX", "RESHAPE", "DEQUANTIZE"]


def test_concatenated_sigmoids_need_no_other_scale() -> None:
    m = Making(1, 4, 4, 2)
    gates = [m.op("LOGISTIC", [m.conv(channels=2)], 1, 4, 4, 2) for _ in range(2)]
    m.done(joined(m, *gates))
    made = quantized(m)
    op = next(op for op in made.ops if op.kind == "CONCATENATION")
    assert {grid(t) for t in (*op.taken, *op.outputs)} == {(1 / 256, -128)}
    assert kinds(made).count("QUANTIZE") == 1


@pytest.mark.parametrize("other", ["CONV_2D", "TANH"])
def test_a_sigmoid_beside_another_scale_is_requantized(other: str) -> None:
    m = Making(1, 4, 4, 2)
    gate = m.op("LOGISTIC", [m.conv(channels=2)], 1, 4, 4, 2)
    beside = m.conv(channels=2, spread=4.0)
    if other != "CONV_2D":
        beside = m.op(other, [beside], 1, 4, 4, 2)
    m.done(joined(m, gate, beside))
    made = quantized(m)
    op = next(op for op in made.ops if op.kind == "CONCATENATION")
    assert len({grid(t) for t in (*op.taken, *op.outputs)}) == 1
    between = maker(made, op.taken[0])
    assert between.kind == "QUANTIZE" and between.taken[0].dtype == np.int8
    assert grid(between.taken[0]) == (1 / 256, -128)
    assert made.producers()[between.taken[0]].kind == "LOGISTIC"
    for reference in (False, True):
        feeds = m.feeds()
        wanted, found = (outputs(n, feeds, reference) for n in (m.net, made))
        name = m.net.outputs[0].name
        assert sqnr(*(np.stack([r[name] for r in runs]) for runs in (wanted, found))) > 32


@pytest.mark.parametrize("activation", STEPS)
def test_constant_operands(activation: Activation) -> None:
    """Of an addition: on a grid of their own. Of a pass-through operator: on that of the group."""
    m = Making(1, 4, 4, 2)
    term, bound = m.floats(2, spread=5.0), constant("bound", np.float32(0.05))
    added = m.op("ADD", [m.conv(channels=2), term], 1, 4, 4, 2)
    m.done(m.op("MAXIMUM", [added, bound], 1, 4, 4, 2))
    made = quantized(m, activation)
    add = next(op for op in made.ops if op.kind == "ADD")
    most = next(op for op in made.ops if op.kind == "MAXIMUM")
    for op in (add, most):
        assert op.taken[1].data is not None and op.taken[1].dtype == op.outputs[0].dtype
    assert term.data is not None
    spread = 255 if activation == "s8" else 32767
    low, high = min(0.0, float(term.data.min())), max(0.0, float(term.data.max()))
    reach = high - low if activation == "s8" else max(-low, high)
    assert grid(add.taken[1])[0] == np.float32(reach / spread)
    assert add.taken[1].data is not None and most.taken[1].data is not None
    error = np.abs(real(add.taken[1], add.taken[1].data) - term.data)
    assert error.max() <= 0.501 * grid(add.taken[1])[0]
    assert grid(most.taken[1]) == grid(most.outputs[0]) == grid(most.taken[0])
    assert (
        abs(float(real(most.taken[1], most.taken[1].data)) - 0.05) <= 0.501 * grid(most.taken[1])[0]
    )


@pytest.mark.parametrize("kind, version", [("ADD", 3), ("SUB", 5)])
def test_sums_of_16_bits_say_that_their_scales_are_any(kind: str, version: int) -> None:
    """Readers take powers of two where it is not said."""
    op = next(op for op in quantized(kind_net(kind), "s16").ops if op.kind == kind)
    assert op.options["potScaleInt16"] is False
    assert op.version == version


def test_only_inputs_outputs_and_floats_between_are_converted() -> None:
    m = Making(1, 4, 4, 2)
    first = m.conv(channels=2)
    wave = m.op("SIN", [first], 1, 4, 4, 2)
    m.done(m.conv(wave, channels=2), m.op("RELU", [first], 1, 4, 4, 2))
    made = quantized(m)
    assert kinds(made) == [
        "QUANTIZE", "CONV_2D", "DEQUANTIZE", "SIN", "QUANTIZE", "CONV_2D", "RELU",
        "DEQUANTIZE", "DEQUANTIZE",
    ]  # fmt: skip
    assert [t.name for t in made.inputs] == ["x0"]
    assert [t.name for t in made.outputs] == [t.name for t in m.net.outputs]
    assert all(t.is_float for t in (*made.inputs, *made.outputs))


def test_what_must_stay_float_does() -> None:
    m = Making(1, 4, 4, 2)
    first = m.conv(channels=2)
    second = m.conv(first, channels=2)
    m.done(m.conv(second, channels=2))
    made = quantized(m, keep_float=frozenset({second.name}))
    assert kinds(made) == [
        "QUANTIZE", "CONV_2D", "DEQUANTIZE", "CONV_2D", "QUANTIZE", "CONV_2D", "DEQUANTIZE",
    ]  # fmt: skip
    kept = made.ops[3]
    assert all(t.is_float for t in (*kept.taken, *kept.outputs))
    with pytest.raises(UnsupportedError):
        quantized(m, keep_float=frozenset(op.outputs[0].name for op in m.net.ops))


def test_a_tensor_without_a_range_stays_float() -> None:
    """As one that is NaN or infinite in a sample does."""
    m = Making(1, 4, 4, 2)
    first = m.conv(channels=2)
    second = m.conv(first, channels=2)
    third = m.conv(second, channels=2)
    m.done(m.conv(third, channels=2))
    ranges = calibrated(m.net, m.feeds())
    del ranges[second.name]
    made = read(write(quantize(m.net, ranges)))
    assert problems(made) == []
    floats = [
        op.outputs[0].name for op in made.ops if op.kind == "CONV_2D" and op.outputs[0].is_float
    ]
    assert floats == [second.name, third.name]
    check_runs(m.net, made, m.feeds(), 35)


def check_runs(net: Net, made: Net, feeds: list[Arrays], least: float) -> None:
    """In both kernels: finite, as many dB as that."""
    for reference in KERNELS.values():
        wanted, found = (outputs(n, feeds, reference) for n in (net, made))
        for name in wanted[0]:
            left, right = (np.stack([run[name] for run in runs]) for runs in (wanted, found))
            assert np.isfinite(right).all()
            assert sqnr(left, right) >= least, (name, reference)


def test_integers_in_and_out() -> None:
    m = small()
    made = quantized(m)
    whole = read(write(made))
    io.integers(whole)
    whole = read(write(whole))
    assert problems(whole) == []
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(kinds(whole))
    assert all(t.dtype == np.int8 for t in (*whole.inputs, *whole.outputs))
    assert [t.name for t in whole.inputs] == ["x0"]
    assert [t.name for t in whole.outputs] == [t.name for t in m.net.outputs]
    name = whole.outputs[0].name
    scale, zero = grid(whole.inputs[0])
    for reference in KERNELS.values():
        plain, bare = Exposed(made, [name], reference), Exposed(whole, [name], reference)
        for feed in m.feeds():
            x = np.clip(np.rint(feed["x0"] / np.float32(scale)) + zero, -128, 127).astype(np.int8)
            found = real(whole.outputs[0], bare.run({"x0": x})[name])
            np.testing.assert_array_equal(found, plain.run(feed)[name])


def test_a_convolution_that_only_moves_values_keeps_the_scale() -> None:
    """Every second pixel, as the shortcut of a residual network: bit by bit what a slice gives."""
    m = Making(1, 6, 6, 2)
    first = m.conv(channels=2)
    eye = constant("eye", np.eye(2, dtype=np.float32).reshape(2, 1, 1, 2))
    moved = m.op("CONV_2D", [first, eye, constant("none", np.zeros(2, np.float32))], 1, 3, 3, 2,
                 **SQUARE(2, VALID))  # fmt: skip
    m.done(first, moved)
    made = quantized(m)
    op = maker(made, moved.name)
    assert grid(op.taken[0]) == grid(op.outputs[0])
    for reference in KERNELS.values():
        for found in outputs(made, m.feeds(), reference):
            np.testing.assert_array_equal(found[moved.name], found[first.name][:, ::2, ::2])


def test_a_graph_is_not_changed_and_gives_the_same_bytes() -> None:
    m = small()
    before = write(m.net)
    ranges = calibrated(m.net, m.feeds())
    first = write(quantize(m.net, ranges))
    assert write(m.net) == before
    assert write(quantize(m.net, dict(reversed(ranges.items())))) == first
    assert write(quantize(read(before), ranges)) == first


def test_tensors_taken_twice() -> None:
    """By two operators, by one twice, by a float one, and as an output: converted once each."""
    m = Making(1, 4, 4, 2)
    first, second = m.conv(channels=2), m.conv(channels=2)
    double = m.op("ADD", [first, first], 1, 4, 4, 2)
    wave = m.op("SIN", [first], 1, 4, 4, 2)
    total = m.op("ADD", [double, second], 1, 4, 4, 2)
    m.done(total, wave, first, m.x)
    made = quantized(m)
    assert kinds(made).count("QUANTIZE") == 1
    assert kinds(made).count("DEQUANTIZE") == 2
    net = Net(m.net.inputs, m.net.outputs[:3], m.net.ops)
    check_runs(net, Net(made.inputs, made.outputs[:3], made.ops), m.feeds(), 32)


def test_what_is_observed() -> None:
    """What flows beside integer operators: no constants, no booleans, nothing between floats."""
    m = Making(1, 4, 4, 2)
    first = m.conv(channels=2)
    wave = m.op("SIN", [first], 1, 4, 4, 2)
    other = m.op("COS", [wave], 1, 4, 4, 2)
    more = m.op("GREATER", [first, other], 1, 4, 4, 2, dtype=np.bool_)
    m.done(m.op("ADD", [other, m.floats(2)], 1, 4, 4, 2), more)
    assert observed(m.net) == ["x0", first.name, other.name, m.net.outputs[0].name]


CONSTANTS: dict[str, Callable[[Making, Tensor, Tensor], Tensor]] = {
    "SUB from": lambda m, x, c: m.op("SUB", [c, x], 1, 4, 4, 2),
    "MUL by": lambda m, x, c: m.op("MUL", [x, c], 1, 4, 4, 2),
    "MAXIMUM of": lambda m, x, c: m.op("MAXIMUM", [c, x], 1, 4, 4, 2),
    "CONCATENATION after": lambda m, x, c: joined(m, c, x),
    "CONCATENATION before": lambda m, x, c: joined(m, x, c),
    "PACK with": lambda m, x, c: m.op("PACK", [x, c], 1, 4, 4, 2, 2, axis=4, valuesCount=2),
    "SELECT_V2 of": lambda m, x, c: m.op(
        "SELECT_V2", [m.op("GREATER", [x, c], 1, 4, 4, 2, dtype=np.bool_), x, c], 1, 4, 4, 2
    ),
    "BATCH_MATMUL from": lambda m, x, c: m.op(
        "BATCH_MATMUL", [c, x], 1, 4, 4, 2, adjX=False, adjY=False
    ),
    "PRELU by": lambda m, x, c: m.op("PRELU", [x, m.floats(1, 1, 2)], 1, 4, 4, 2),
    "ADD of a scalar": lambda m, x, c: m.op(
        "ADD", [x, constant("three", np.float32(3))], 1, 4, 4, 2
    ),
    "GATHER from": lambda m, x, c: m.op(
        "ADD", [x, m.op("GATHER", [m.floats(5, 2), m.ints(3, 0, 1, 4)], 4, 2, axis=0)], 1, 4, 4, 2
    ),
}


@pytest.mark.parametrize("activation", STEPS)
@pytest.mark.parametrize("label", CONSTANTS)
def test_constants_in_any_place(label: str, activation: Activation) -> None:
    kind = label.split()[0]
    if not supported(kind, activation):
        return
    m = Making(1, 4, 4, 2)
    first = m.conv(channels=2)
    shape = (1, 4, 4, 4) if kind == "BATCH_MATMUL" else first.shape
    m.done(CONSTANTS[label](m, first, m.floats(*shape, spread=0.5)))
    made = quantized(m, activation)
    assert any(op.kind == kind and not op.outputs[0].is_float for op in made.ops)
    for reference in KERNELS.values():
        for name, off in steps_off(made, m.feeds(), reference).items():
            assert off <= STEPS[activation], name
    check_runs(m.net, made, m.feeds(), LEAST_DB[activation])


def test_constants_that_two_take() -> None:
    """Operands, weights and biases: names stay apart, whatever the scales are."""
    m = Making(1, 4, 4, 2)
    term = m.floats(2, spread=2.0)
    first = m.op("ADD", [m.conv(channels=2), term], 1, 4, 4, 2)
    second = m.op("CONV_2D", [first, *m.net.ops[0].inputs[1:]], 1, 4, 4, 2, **SQUARE())
    third = m.op("MUL", [m.op("ADD", [second, term], 1, 4, 4, 2), term], 1, 4, 4, 2)
    m.done(m.op("MAXIMUM", [third, term], 1, 4, 4, 2))
    check_runs(m.net, quantized(m), m.feeds(), 28)


def test_outputs_that_nobody_takes() -> None:
    m = Making(1, 4, 4, 4)
    parts = m.many("SPLIT", [m.number(3), m.conv()], *[(1, 4, 4, 2)] * 2, numSplits=2)
    m.done(m.op("RELU", [parts[1]], 1, 4, 4, 2))
    check_runs(m.net, quantized(m), m.feeds(), 32)


def test_what_only_moves_values_between_floats_moves_floats() -> None:
    """One operator, and several after each other; but not what a convolution takes."""
    m = Making(1, 4, 4, 2)
    turned = m.op("TRANSPOSE", [m.x, m.ints(0, 2, 1, 3)], 1, 4, 4, 2)
    flat = m.op("RESHAPE", [turned, m.ints(1, 4, 4, 2)], 1, 4, 4, 2)
    wave = m.op("SIN", [flat], 1, 4, 4, 2)
    padded = m.op("PAD", [wave, m.ints([0, 0], [1, 1], [1, 1], [0, 0])], 1, 6, 6, 2)
    m.done(m.conv(padded))
    assert kinds(quantized(m)) == [
        "TRANSPOSE", "RESHAPE", "SIN", "QUANTIZE", "PAD", "CONV_2D", "DEQUANTIZE",
    ]  # fmt: skip


# --- 3. ranges that are no use


def pair(m: Making, second: Tensor | None = None) -> Making:
    """A convolution of what it has, and an addition."""
    first = m.conv(channels=2)
    m.done(m.op("ADD", [first, second if second is not None else m.x], *first.shape))
    return m


def test_nothing_to_quantize() -> None:
    m = Making(1, 4, 4, 2)
    m.done(m.op("RELU", [m.x], 1, 4, 4, 2))
    with pytest.raises(UnsupportedError, match="nothing"):
        quantize(m.net, {"x0": (-1.0, 1.0), m.net.outputs[0].name: (0.0, 1.0)})
    m = Making(1, 4, 4, 2)
    m.done(m.conv())
    with pytest.raises(UnsupportedError, match="nothing"):
        quantize(m.net, {})
    weight = m.net.ops[0].inputs[1]
    assert weight is not None and weight.data is not None
    for bad in (np.nan, np.inf):
        weight.data[0] = bad
        with pytest.raises(UnsupportedError, match="nothing"):
            quantize(m.net, {"x0": (-1.0, 1.0), m.net.outputs[0].name: (0.0, 1.0)})


@pytest.mark.parametrize("activation", STEPS)
def test_inputs_that_were_always_zero(activation: Activation) -> None:
    m = pair(Making(1, 4, 4, 2, low=0.0, high=0.0))
    check_runs(m.net, quantized(m, activation), m.feeds(), 32)


@pytest.mark.parametrize("activation", STEPS)
def test_an_operator_that_always_gives_zero(activation: Activation) -> None:
    m = Making(1, 4, 4, 2)
    dead = m.conv(channels=2, spread=0.0)
    again = m.conv(m.op("RELU", [dead], 1, 4, 4, 2), channels=2, spread=0.0)
    product = m.op("MUL", [again, dead], 1, 4, 4, 2)
    m.done(m.op("ADD", [product, m.conv(channels=2)], 1, 4, 4, 2), product, dead)
    made = quantized(m, activation)
    for reference in KERNELS.values():
        for found in outputs(made, m.feeds(), reference):
            assert not found[product.name].any() and not found[dead.name].any()
    whole = m.net.outputs[:1]
    check_runs(Net(m.net.inputs, whole, m.net.ops), Net(made.inputs, made.outputs[:1], made.ops),
               m.feeds(), 32)  # fmt: skip


@pytest.mark.parametrize("activation", STEPS)
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e-3, 1e3, 1e8, 1e30])
@pytest.mark.parametrize("kind", ["input", "weights"])
def test_ranges_of_any_size(kind: str, size: float, activation: Activation) -> None:
    """Tiny and huge numbers keep their shares where everything is of one size."""
    low = size if kind == "input" else 1.0
    m = Making(1, 4, 4, 2, low=-low, high=low)
    first = m.conv(channels=4, spread=1.0 if kind == "input" else size, bias=False)
    second = m.conv(first, channels=4, bias=False)
    m.done(m.op("ADD", [first, second], 1, 4, 4, 4))
    check_runs(m.net, quantized(m, activation), m.feeds(), 30)


@pytest.mark.parametrize("activation", STEPS)
@pytest.mark.parametrize("size", [1e-30, 1e-8, 1e-4, 1e4, 1e8])
@pytest.mark.parametrize("kind", ["ADD", "SUB", "MUL", "CONCATENATION", "MAXIMUM"])
def test_operands_of_very_different_sizes(kind: str, size: float, activation: Activation) -> None:
    """What is lost is lost in the larger one's steps; nothing refuses, and nothing is garbage."""
    m = Making(1, 4, 4, 2)
    first, second = m.conv(channels=2), m.conv(channels=2, spread=size)
    if kind == "CONCATENATION":
        m.done(joined(m, first, second))
    else:
        m.done(m.op(kind, [first, second], 1, 4, 4, 2))
    made = quantized(m, activation)
    check_runs(m.net, made, m.feeds(), 28)


@pytest.mark.parametrize("activation", STEPS)
@pytest.mark.parametrize("factor", [1e-12, 1e-6, 1e-3, 1e3, 1e6])
@pytest.mark.parametrize(
    "kind", ["CONV_2D", "ADD", "MUL", "SUM", "RELU", "LEAKY_RELU", "MEAN", "ABS"]
)
def test_ranges_that_fit_nothing(kind: str, factor: float, activation: Activation) -> None:
    """A range far from what is computed: saturated, or coarse, within what the file says; both
    kernels open it and agree with the exact result."""
    m = kind_net(kind)
    if not supported(kind, activation):
        return
    feeds = m.feeds()
    ranges = calibrated(m.net, feeds)
    last = m.net.outputs[0].name
    ranges[last] = (ranges[last][0] * factor, ranges[last][1] * factor)
    made = read(write(quantize(m.net, ranges, activation)))
    assert problems(made) == []
    for kernels, reference in KERNELS.items():
        if kind == "SUM" and kernels == "reference":
            continue  # see test_int8_kernel
        for name, off in steps_off(made, feeds, reference).items():
            assert off <= STEPS[activation], (name, kernels)


@pytest.mark.parametrize("activation", STEPS)
@pytest.mark.parametrize("bias", [1e3, 1e6, 1e12, 1e30, -1e6])
def test_a_huge_bias(bias: float, activation: Activation) -> None:
    """It fits in the accumulator; beside it the products vanish, as they do in its range."""
    m = Making(1, 4, 4, 2)
    first = m.conv(channels=2)
    offsets = m.net.ops[0].inputs[2]
    assert offsets is not None and offsets.data is not None
    offsets.data = np.array([bias, 0.25], np.float32)
    m.done(first)
    ranges = calibrated(m.net, m.feeds())
    made = read(write(quantize(m.net, ranges, activation, extremes={})))  # else it stays float
    assert problems(made) == []
    stored = maker(made, first.name).inputs[2]
    assert stored is not None and stored.data is not None
    assert np.abs(stored.data).max() <= (2**30 + 1 if activation == "s8" else 2**46)
    scale = abs(bias) / (255 if activation == "s8" else 32767)
    for reference in KERNELS.values():
        wanted, found = (outputs(n, m.feeds(), reference) for n in (m.net, made))
        for left, right in zip(wanted, found, strict=True):
            assert np.abs(left[first.name] - right[first.name]).max() <= 1.1 * scale


@pytest.mark.parametrize("activation", STEPS)
def test_zero_weights_leave_the_bias(activation: Activation) -> None:
    m = Making(1, 4, 4, 2)
    first = m.conv(channels=3)
    weight, bias = m.net.ops[0].inputs[1:]
    assert weight is not None and bias is not None
    weight.data, bias.data = np.zeros(weight.shape, np.float32), np.array([0.5, -1, 0], np.float32)
    m.done(first)
    made = quantized(m, activation)
    for reference in KERNELS.values():
        for found in outputs(made, m.feeds(), reference):
            error = np.abs(found[first.name] - bias.data)
            assert error.max() <= 1.5 / 255


@pytest.mark.parametrize("activation", STEPS)
def test_one_channel(activation: Activation) -> None:
    m = Making(1, 6, 6, 1)
    first = m.conv(channels=1)
    inputs = [first, m.floats(1, 3, 3, 1), m.floats(1)]
    deep = m.op("DEPTHWISE_CONV_2D", inputs, 1, 6, 6, 1, depthMultiplier=1, **SQUARE())
    dense = m.op("RESHAPE", [deep, m.ints(1, 36)], 1, 36)
    m.done(m.op("FULLY_CONNECTED", [dense, m.floats(1, 36), m.floats(1)], 1, 1))
    check_runs(m.net, quantized(m, activation), m.feeds(), 28)


def test_a_convolution_without_a_bias_gets_one() -> None:
    """XNNPACK has none without."""
    m = Making(1, 4, 4, 2)
    m.done(m.conv(channels=2, bias=False))
    ranges = calibrated(m.net, m.feeds())
    op = m.net.ops[0]
    bare = Net(m.net.inputs, m.net.outputs, [Op(op.kind, op.inputs[:2], op.outputs, op.options)])
    made = read(write(quantize(bare, ranges)))
    assert problems(made) == []
    bias = maker(made, m.net.outputs[0].name).inputs[2]
    assert bias is not None and bias.data is not None and not bias.data.any()
    check_runs(m.net, made, m.feeds(), 35)


def limited() -> tuple[Making, str]:
    """A maximum over values that the least float surrounds; -> also what the padded is called.
    Most are positive, so that the zero point is not: a sum with it may wrap around."""
    m = Making(1, 5, 5, 2)
    least = constant("least", np.float32(np.finfo(np.float32).min))
    pads = m.ints([0, 0], [1, 1], [1, 1], [0, 0])
    padded = m.op("PADV2", [m.conv(channels=2, offset=0.3), pads, least], 1, 7, 7, 2)
    sides = {**POOL, "filterHeight": 3, "filterWidth": 3}
    m.done(m.op("MAX_POOL_2D", [padded], 1, 3, 3, 2, **sides))
    return m, padded.name


@pytest.mark.parametrize("activation", STEPS)
def test_padding_for_a_maximum_does_not_count(activation: Activation) -> None:
    """The least float before a MAX_POOL_2D, as a converter pads: it saturates, and the scale is
    that of the values."""
    m, _ = limited()
    check_runs(m.net, quantized(m, activation), m.feeds(), 32)


@pytest.mark.parametrize("activation", STEPS)
def test_a_limit_that_is_padded_in_floats(activation: Activation) -> None:
    """It is beyond what QUANTIZE can take."""
    m, padded = limited()
    made = quantized(m, activation, keep_float=frozenset({padded}))
    check_runs(m.net, made, m.feeds(), 32)
    ranges = calibrated(m.net, m.feeds())
    del ranges[padded]
    check_runs(m.net, read(write(quantize(m.net, ranges, activation))), m.feeds(), 32)


@pytest.mark.parametrize("float_", [False, True])
def test_a_padding_that_is_no_limit_counts(float_: bool) -> None:
    """A number outside of the values, whether it is padded in integers or in floats."""
    m = Making(1, 5, 5, 2)
    pads = m.ints([0, 0], [1, 1], [1, 1], [0, 0])
    padded = m.op("PADV2", [m.conv(channels=2), pads, constant("two", np.float32(2))], 1, 7, 7, 2)
    m.done(m.conv(padded, channels=2))
    made = quantized(m, keep_float=frozenset({padded.name} if float_ else ()))
    assert maker(made, m.net.outputs[0].name).taken[0].dtype == np.int8
    check_runs(m.net, made, m.feeds(), 30)


@pytest.mark.parametrize("mask", [-1e4, -1e9, float(np.finfo(np.float32).min)])
def test_a_mask_of_huge_numbers(mask: float) -> None:
    """Of attention, added before a SOFTMAX: what is masked is 0, the rest is what it was."""
    m = Making(1, 4, 4, 4)
    first = m.op("RESHAPE", [m.conv(spread=3.0), m.ints(16, 4)], 16, 4)
    hidden = constant("mask", np.array([0, 0, mask, 0], np.float32))
    m.done(m.op("SOFTMAX", [m.op("ADD", [first, hidden], 16, 4)], 16, 4, beta=1.0))
    check_runs(m.net, quantized(m), m.feeds(), 25)


def test_rounded_weights() -> None:
    weight = np.array([[0.0, 1.27, -1.27], [0.0, 0.0, 0.0], [1e-40, 0, 0]], np.float32)
    integers, scales = rounded(weight, 0)
    np.testing.assert_array_equal(integers, [[0, 127, -127], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(scales, [0.01, 1 / 127, 1 / 127], rtol=1e-6)
    integers, scales = rounded(weight, None)
    np.testing.assert_allclose(scales, [0.01], rtol=1e-6)
    integers, scales = rounded(weight, 0, np.array([0.02, 0.0, 0.0]))
    np.testing.assert_array_equal(integers[0], [0, 64, -64])


# --- 4. random graphs


class Growing:
    """An ONNX graph of images and what is made of them, that grows by drawn operators."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.draw = draw
        self.random = np.random.default_rng(draw(st.integers(0, 999)))
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.side, self.depth = draw(st.sampled_from([4, 5, 8])), draw(st.sampled_from([1, 2, 3]))
        self.images: dict[str, tuple[int, int]] = {"x": (self.depth, self.side)}
        """Name -> channels and side length."""

    def one(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def weights(self, *shape: int, spread: float = 1.0) -> str:
        name = f"c{len(self.constants)}"
        array = self.random.uniform(-spread, spread, shape)
        self.constants.append(initializer(name, array))
        return name

    def node(self, kind: str, inputs: str, **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(node(kind, inputs, name, **attributes))
        return name

    def conv(self, taken: str) -> str:
        channels, side = self.images[taken]
        size, stride = self.one(1, 3), self.one(1, 2)
        group = self.one(1, channels)
        out = channels if group > 1 else self.one(1, 2, 4)
        pad = size // 2 if self.one(True, False) or side < size else 0
        weight = self.weights(out, channels // group, size, size, spread=1.5 / size)
        name = self.node(
            "Conv",
            f"{taken} {weight} {self.weights(out, spread=0.3)}",
            kernel_shape=[size] * 2,
            strides=[stride] * 2,
            pads=[pad] * 4,
            group=group,
        )
        self.images[name] = (out, (side + 2 * pad - size) // stride + 1)
        return name

    def pool(self, taken: str) -> str:
        channels, side = self.images[taken]
        if side < 3:
            return self.activation(taken)
        kind = self.one("MaxPool", "AveragePool")
        size, pad = self.one(2, 3), self.one(0, 1)
        name = self.node(kind, taken, kernel_shape=[size] * 2, strides=[2, 2], pads=[pad] * 4)
        self.images[name] = (channels, (side + 2 * pad - size) // 2 + 1)
        return name

    def activation(self, taken: str) -> str:
        kind = self.one("Relu", "Clip", "Sigmoid", "Tanh", "HardSwish", "LeakyRelu", "Softmax")
        if kind == "Clip":
            least, most = self.weights(), self.weights()
            self.constants[-2] = initializer(least, 0.0)
            self.constants[-1] = initializer(most, 6.0)
            name = self.node(kind, f"{taken} {least} {most}")
        elif kind == "Softmax":
            name = self.node(kind, taken, axis=self.one(1, 3))
        else:
            name = self.node(kind, taken)
        self.images[name] = self.images[taken]
        return name

    def joined(self, taken: str) -> str:
        channels, side = self.images[taken]
        kind = self.one("Add", "Mul", "Sub", "Max", "Concat")
        same = kind != "Concat"
        others = [
            other
            for other, shape in self.images.items()
            if shape[1] == side and (not same or shape[0] == channels)
        ]
        other = self.one(*others)
        if kind == "Concat":
            name = self.node(kind, f"{taken} {other}", axis=1)
            self.images[name] = (channels + self.images[other][0], side)
            return name
        if self.one(True, False, False):
            other = self.weights(channels, 1, 1)
        name = self.node(kind, f"{taken} {other}")
        self.images[name] = (channels, side)
        return name

    def padded(self, taken: str) -> str:
        channels, side = self.images[taken]
        pads = f"p{len(self.constants)}"
        self.constants.append(initializer(pads, [0, 0, 1, 1, 0, 0, 1, 1], "int64"))
        mode = self.one("constant", "reflect") if side > 1 else "constant"
        name = self.node("Pad", f"{taken} {pads}", mode=mode)
        self.images[name] = (channels, side + 2)
        return name

    def whole(self) -> Any:
        taken = self.conv("x")
        for _ in range(self.draw(st.integers(1, 6))):
            step = self.one(
                self.conv, self.conv, self.pool, self.activation, self.joined, self.padded
            )
            taken = step(taken if self.one(True, True, False) else self.one(*self.images))
        outputs = [taken]
        channels, side = self.images[taken]
        if self.one(True, False):
            flat = self.node("Flatten", self.node("GlobalAveragePool", taken))
            count = channels
            if self.one(True, False):
                flat, count = self.node("Flatten", taken), channels * side * side
            dense = self.node("Gemm", f"{flat} {self.weights(count, 3)} {self.weights(3)}")
            outputs.append(self.node("Softmax", dense) if self.one(True, False) else dense)
        found = [value(name, None) for name in outputs]
        taken_in = [value("x", [1, self.depth, self.side, self.side])]
        return build(self.nodes, taken_in, found, self.constants)


@st.composite
def graphs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    return Growing(draw).whole()


LEAST_SHARE = 0.15
"""Of the largest value of an output: what eight operators of 8 bits may add up to in the mean."""


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(graphs(), st.sampled_from(["s8", "s8", "s16"]), st.integers(0, 2**32), st.booleans())
def test_random_graphs(
    tmp_path: Path, model: Any, activation: Activation, choice: int, all_integer: bool
) -> None:
    """In integers as far as it goes, or with some operators and tensors left in floats."""
    path = save(model, tmp_path / "given.onnx")
    onnx_float.simplify(str(path), str(tmp_path))
    net = convert.lower(tmp_path / "model.onnx")
    random = np.random.default_rng(1)
    name = net.inputs[0].name
    feeds = [{name: random.normal(size=net.inputs[0].shape).astype(np.float32)} for _ in range(3)]
    ranges, keep_float = calibrated(net, feeds), frozenset[str]()
    if not all_integer:
        picked = np.random.default_rng(choice)
        keep_float = frozenset(op.outputs[0].name for op in net.ops if picked.random() < 0.2)
        ranges = {name: found for name, found in ranges.items() if picked.random() < 0.9}
    weighted = any(op.kind in WEIGHTED for op in net.ops)
    try:
        content = write(quantize(net, ranges, activation, keep_float))
    except UnsupportedError:
        assert not (weighted and all_integer)
        return
    assert weighted
    assert write(quantize(net, ranges, activation, keep_float)) == content
    made = read(content)
    assert problems(made) == []
    by_name = {t.name: op for op in made.ops for t in op.outputs if op.kind != "DEQUANTIZE"}
    assert all(name in by_name for name in keep_float)
    outs = [tensor.name for tensor in net.outputs]
    for reference in KERNELS.values():
        for kind, off in steps_off(made, feeds, reference).items():
            assert off <= ROUGH.get((activation, kind), STEPS[activation]), (kind, reference)
        wanted, found = (outputs(n, feeds, reference) for n in (net, made))
        for out in outs:
            left, right = (np.stack([run[out] for run in runs]) for runs in (wanted, found))
            assert np.isfinite(right).all()
            peak = float(np.abs(left).max())
            assert np.abs(left - right).mean() <= LEAST_SHARE * peak + 1e-6, out
    io.integers(made)
    assert problems(read(write(made))) == []
    for reference in KERNELS.values():
        interpreter(write(made), reference).invoke()


# --- 5. smaller weights in a float graph


def wide() -> Making:
    """Its weights are most of the file."""
    m = Making(1, 6, 6, 8)
    deep = m.op(
        "DEPTHWISE_CONV_2D", [m.conv(channels=32), m.floats(1, 3, 3, 32), m.floats(32)],
        1, 6, 6, 32, depthMultiplier=1, **SQUARE(),
    )  # fmt: skip
    flat = m.op("RESHAPE", [deep, m.ints(1, 1152)], 1, 1152)
    m.done(m.op("FULLY_CONNECTED", [flat, m.floats(32, 1152), m.floats(32)], 1, 32))
    return m


def test_halved_weights() -> None:
    m = wide()
    before = write(m.net)
    made = read(write(weights.halved(m.net)))
    assert write(m.net) == before
    assert problems(made) == []
    assert len(write(made)) < 0.55 * len(before)
    halves = {t.name: t for t in made.tensors() if t.dtype == np.float16}
    assert len(halves) == 3 and all(t.size >= weights.LEAST for t in halves.values())
    for op in m.net.ops:
        for tensor in op.taken:
            if f"{tensor.name}/half" in halves:
                half = halves[f"{tensor.name}/half"].data
                assert tensor.data is not None and half is not None
                np.testing.assert_array_equal(half, tensor.data.astype(np.float16))
    # Each weight is off by 2**-11 of itself at most: 66 dB, less for what cancels.
    check_runs(m.net, made, m.feeds(), 60)


def test_a_weight_that_two_take_is_halved_once() -> None:
    m = Making(1, 4, 4, 4)
    first = m.conv()
    twin = m.op("CONV_2D", [first, *m.net.ops[0].inputs[1:]], 1, 4, 4, 4, **SQUARE())
    m.done(twin)
    made = weights.halved(m.net)
    assert kinds(made) == ["DEQUANTIZE", "CONV_2D", "CONV_2D"]
    check_runs(m.net, read(write(made)), m.feeds(), 60)


def test_weights_that_cannot_be_halved() -> None:
    m = Making(1, 4, 4, 1)
    m.done(m.conv(channels=1))
    with pytest.raises(UnsupportedError, match="no weights"):
        weights.halved(m.net)
    m = Making(1, 4, 4, 4)
    m.done(m.conv())
    weight = m.net.ops[0].inputs[1]
    assert weight is not None and weight.data is not None
    weight.data[0, 0, 0, 0] = 7e4
    with pytest.raises(UnsupportedError, match=f"{weight.name}.*float16"):
        weights.halved(m.net)
    weight.data[0, 0, 0, 0] = 65504
    assert weights.halved(m.net)


def test_dynamic_weights() -> None:
    m = wide()
    before = write(m.net)
    made = read(write(weights.dynamic(m.net)))
    assert write(m.net) == before
    assert problems(made) == []
    assert len(write(made)) < 0.35 * len(before)
    for op in made.ops:
        weight = op.taken[1] if op.kind in ("CONV_2D", "FULLY_CONNECTED") else None
        if weight is None:
            continue
        assert weight.dtype == np.int8 and weight.scale is not None and weight.data is not None
        assert weight.zero_point is not None and not weight.zero_point.any()
        assert weight.scale.size == (32 if op.kind == "CONV_2D" else 1)
        assert int(weight.data.min()) >= -127
        assert op.taken[0].is_float and op.taken[2].is_float and op.outputs[0].is_float
    assert next(op for op in made.ops if op.kind == "DEPTHWISE_CONV_2D").taken[1].is_float
    # 8-bit weights, and activations in 8 bits of their own range.
    check_runs(m.net, made, m.feeds(), 30)


def test_dynamic_weights_of_dead_channels_and_none() -> None:
    m = Making(1, 4, 4, 2)
    m.done(m.conv(channels=2))
    weight = m.net.ops[0].inputs[1]
    assert weight is not None and weight.data is not None
    weight.data[0] = 0
    check_runs(m.net, read(write(weights.dynamic(m.net))), m.feeds(), 30)
    m = Making(1, 4, 4, 2)
    m.done(m.op("RELU", [m.x], 1, 4, 4, 2))
    with pytest.raises(UnsupportedError):
        weights.dynamic(m.net)


def test_an_epsilon_beside_large_numbers() -> None:
    """As in a normalization: its scale is not so small that kernels cannot add it."""
    m = Making(1, 4, 4, 2)
    square = m.op("MUL", [m.conv(channels=2)] * 2, 1, 4, 4, 2)
    m.done(m.op("ADD", [square, constant("epsilon", np.float32(1e-6))], 1, 4, 4, 2))
    made = quantized(m)
    assert not problems(read(write(made)))
    check_runs(m.net, made, m.feeds(), 28)
