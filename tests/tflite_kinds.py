"""A net for every kind of operator that TFLite's specification of quantization knows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onmetal.converters.tflite.net import SAME, VALID, Net, Op, Tensor, constant

Arrays = dict[str, np.ndarray]
F32 = np.dtype(np.float32)

SAMPLES = 4


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


def kind_net(kind: str) -> Making:
    m = Making(1, 6, 6, 3)
    made = BUILD[kind](m)
    m.done(*(made if isinstance(made, list) else [made]))
    return m


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


# --- 5. smaller weights in a float graph


def wide(channels: int = 32) -> Making:
    """Its weights are most of the file."""
    m, size = Making(1, 6, 6, 8), 36 * channels
    weight, bias = m.floats(1, 3, 3, channels), m.floats(channels)
    deep = m.op(
        "DEPTHWISE_CONV_2D", [m.conv(channels=channels), weight, bias],
        1, 6, 6, channels, depthMultiplier=1, **SQUARE(),
    )  # fmt: skip
    flat = m.op("RESHAPE", [deep, m.ints(1, size)], 1, size)
    m.done(m.op("FULLY_CONNECTED", [flat, m.floats(32, size), m.floats(32)], 1, 32))
    return m
