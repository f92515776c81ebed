"""Operators of TFLite that onmetal itself does not write, or not in this form: a net for each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from onmetal.converters.tflite.net import SAME, VALID, Op, Tensor, constant
from tests.tflite_kinds import F32, SQUARE, Arrays, Making

CASES: dict[str, Callable[[], Making]] = {}
INT32, INT64, BOOL = np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.bool_)


def case(name: str) -> Callable[[Callable[[], Making]], Callable[[], Making]]:
    def register(function: Callable[[], Making]) -> Callable[[], Making]:
        assert name not in CASES, name
        CASES[name] = function
        return function

    return register


def taking(m: Making, dtype: Any, *shape: int, low: float = 0, high: float = 9) -> Tensor:
    """An input of another type; integers from `low` up to, not with, `high`."""
    tensor = m.input(*shape, low=low, high=high)
    tensor.dtype = np.dtype(dtype)
    return tensor


def fed(m: Making, seed: int = 3) -> Arrays:
    """Random values of the inputs' types."""
    random = np.random.default_rng(seed)
    feed: Arrays = {}
    for tensor, (low, high) in zip(m.net.inputs, m.spans, strict=True):
        if tensor.dtype.kind == "f":
            array: Any = random.uniform(low, high, tensor.shape)
        elif tensor.dtype.kind == "b":
            array = random.random(tensor.shape) < 0.5
        else:
            array = random.integers(int(low), int(high), tensor.shape)
        feed[tensor.name] = array.astype(tensor.dtype)
    return feed


def one(name: str, kind: str, shape: Sequence[int], out: Sequence[int], **options: Any) -> None:
    """A case of one operator of one float input."""

    def make() -> Making:
        m = Making(*shape)
        m.done(m.op(kind, [m.x], *out, **options))
        return m

    case(name)(make)


# --- element by element

for _kind in ("SQUARE", "FLOOR", "CEIL", "ROUND", "SIGN", "SIN", "COS", "NEG", "RELU_0_TO_1"):
    one(_kind.lower(), _kind, (2, 3, 4), (2, 3, 4))
one("softmax with beta", "SOFTMAX", (2, 5), (2, 5), beta=2.5)
one("l2 normalization of rank 2", "L2_NORMALIZATION", (3, 5), (3, 5))
one("zeros like", "ZEROS_LIKE", (2, 3), (2, 3))
for _radius in (1, 2):
    one(
        f"local response of radius {_radius}", "LOCAL_RESPONSE_NORMALIZATION", (1, 4, 5, 7),
        (1, 4, 5, 7), radius=_radius, bias=1.5, alpha=0.3, beta=0.6,
    )  # fmt: skip


@case("l2 normalization behind a convolution")
def l2_behind() -> Making:
    m = Making(1, 4, 5, 3)
    m.done(m.op("L2_NORMALIZATION", [m.conv()], 1, 4, 5, 4))
    return m


@case("local response behind a convolution")
def local_behind() -> Making:
    m = Making(1, 4, 5, 3)
    settings = {"radius": 1, "bias": 1.0, "alpha": 0.5, "beta": 0.5}
    m.done(m.op("LOCAL_RESPONSE_NORMALIZATION", [m.conv()], 1, 4, 5, 4, **settings))
    return m


def _divided(kind: str, dtype: Any) -> None:
    @case(f"{kind.lower()} of {np.dtype(dtype).name}")
    def make() -> Making:
        m = Making()
        left = taking(m, dtype, 4, 50, low=-20, high=20)
        values = np.array([-7, -3, -1, 1, 2, 5, 4, -2, 3, 9] * 5, dtype)
        m.done(m.op(kind, [left, constant("divisors", values)], 4, 50, dtype=dtype))
        return m


for _type in (np.float32, np.int32):
    _divided("FLOOR_MOD", _type)
    _divided("FLOOR_DIV", _type)
_divided("FLOOR_MOD", np.int64)


@case("whole numbers")
def whole_numbers() -> Making:
    m = Making()
    left = taking(m, INT32, 3, 4, low=-9, high=9)
    right = taking(m, INT32, 3, 4, low=1, high=9)
    made = [
        m.op(kind, [left, right], 3, 4, dtype=INT32)
        for kind in ("ADD", "SUB", "MUL", "DIV", "MAXIMUM", "MINIMUM", "SQUARED_DIFFERENCE")
    ]
    m.done(*made, m.op("ADD", [left, right], 3, 4, dtype=INT32, fusedActivationFunction=3))
    return m


@case("fused activations")
def fused() -> Making:
    m = Making(1, 5, 4, 3, low=-3, high=3)
    other = m.input(1, 5, 4, 3, low=-9, high=9)
    made = [
        m.op(kind, [m.x, other], 1, 5, 4, 3, fusedActivationFunction=code)
        for kind, code in (("ADD", 1), ("SUB", 2), ("MUL", 3), ("DIV", 1), ("ADD", 3))
    ]
    inputs = [m.x, m.floats(4, 3, 3, 3), m.floats(4)]
    for code in (1, 2, 3):
        more = SQUARE(2) | {"fusedActivationFunction": code}
        made.append(m.op("CONV_2D", inputs, 1, 3, 2, 4, **more))
    m.done(*made)
    return m


@case("sum of several")
def add_n() -> Making:
    m = Making(1, 4, 4, 3)
    m.done(m.op("ADD_N", [m.conv(), m.conv(), m.conv()], 1, 4, 4, 4))
    return m


@case("choices by rows")
def select() -> Making:
    """The mask of SELECT has the first axis only."""
    m = Making()
    mask = taking(m, BOOL, 4)
    left, right = m.input(4, 3, 2), m.input(4, 3, 2)
    m.done(m.op("SELECT", [mask, left, right], 4, 3, 2))
    return m


@case("choices behind a convolution")
def select_behind() -> Making:
    m = Making(1, 4, 4, 3)
    left = m.conv()
    mask = m.op("GREATER", [left, m.floats(4)], 1, 4, 4, 4, dtype=BOOL)
    either = m.op("LOGICAL_OR", [mask, m.op("LOGICAL_NOT", [mask], 1, 4, 4, 4, dtype=BOOL)],
                  1, 4, 4, 4, dtype=BOOL)  # fmt: skip
    both = m.op("LOGICAL_AND", [mask, either], 1, 4, 4, 4, dtype=BOOL)
    m.done(m.op("SELECT_V2", [both, left, m.floats(1)], 1, 4, 4, 4))
    return m


@case("any and all")
def any_and_all() -> Making:
    m = Making()
    mask = taking(m, BOOL, 2, 3, 4)
    m.done(
        m.op("REDUCE_ANY", [mask, m.ints(1)], 2, 4, dtype=BOOL, keepDims=False),
        m.op("REDUCE_ALL", [mask, m.ints(0, 2)], 1, 3, 1, dtype=BOOL, keepDims=True),
    )
    return m


@case("casts")
def casts() -> Making:
    m = Making(2, 5, low=0, high=9)
    flags = taking(m, BOOL, 2, 5)
    m.done(
        m.op("CAST", [m.x], 2, 5, dtype=INT32),
        m.op("CAST", [m.x], 2, 5, dtype=INT64),
        m.op("CAST", [flags], 2, 5, dtype=F32),
    )
    return m


@case("reductions behind a convolution")
def reductions() -> Making:
    m = Making(2, 4, 5, 3)
    x = m.conv()
    m.done(
        m.op("MEAN", [x, m.ints(1, 2)], 2, 4, keepDims=False),
        m.op("MEAN", [x, m.ints(2, 1)], 2, 1, 1, 4, keepDims=True),
        m.op("MEAN", [x, m.ints(3)], 2, 4, 5, keepDims=False),
        m.op("SUM", [x, m.ints(-1, 1)], 2, 5, keepDims=False),
        m.op("REDUCE_MAX", [x, m.ints(0)], 4, 5, 4, keepDims=False),
        m.op("REDUCE_PROD", [x, m.ints(1)], 2, 1, 5, 4, keepDims=True),
        m.op("REDUCE_MIN", [m.op("TRANSPOSE", [x, m.ints(3, 0, 1, 2)], 4, 2, 4, 5), m.ints(1)],
             4, 4, 5, keepDims=False),
    )  # fmt: skip
    return m


@case("the mean of whole numbers")
def mean_of_ints() -> Making:
    m = Making()
    x = taking(m, INT32, 3, 5, low=-9, high=9)
    m.done(m.op("MEAN", [x, m.ints(1)], 3, dtype=INT32, keepDims=False))
    return m


@case("cumulative sums")
def cumsum() -> Making:
    m = Making(2, 5, 3)
    m.done(
        m.op("CUMSUM", [m.x, m.number(1)], 2, 5, 3, exclusive=False, reverse=False),
        m.op("CUMSUM", [m.x, m.number(-1)], 2, 5, 3, exclusive=True, reverse=False),
        m.op("CUMSUM", [m.x, m.number(0)], 2, 5, 3, exclusive=True, reverse=True),
    )
    return m


@case("greatest ones behind a convolution")
def greatest() -> Making:
    m = Making(1, 4, 5, 3)
    x = m.conv()
    values, places = Tensor("values", (1, 4, 5, 2), F32), Tensor("places", (1, 4, 5, 2), INT32)
    m.net.ops.append(Op("TOPK_V2", [x, m.number(2)], [values, places]))
    m.done(
        values,
        places,
        m.op("ARG_MAX", [x, m.number(1)], 1, 5, 4, dtype=INT32, outputType=2),
        m.op("ARG_MIN", [x, m.number(-1)], 1, 4, 5, dtype=INT64, outputType=4),
    )
    return m


# --- indices


@case("gather of batches")
def gather_batches() -> Making:
    m = Making(2, 3, 4, 5)
    few = taking(m, INT32, 2, 2, high=4)
    many = taking(m, INT32, 2, 3, 2, high=5)
    m.done(
        m.op("GATHER", [m.x, few], 2, 3, 2, 5, axis=2, batchDims=1),
        m.op("GATHER", [m.x, many], 2, 3, 4, 2, axis=3, batchDims=2),
        m.op("GATHER", [m.x, m.ints(2, 0)], 2, 2, 4, 5, axis=1),
    )
    return m


@case("gather behind a convolution")
def gather_behind() -> Making:
    m = Making(1, 4, 5, 3)
    x = m.conv()
    rows = constant("rows", np.array([[1, 0], [3, 2]], np.int32))
    m.done(
        m.op("GATHER", [x, m.ints(3, 0, 1)], 1, 4, 5, 3, axis=-1),
        m.op("GATHER", [x, rows], 1, 2, 2, 5, 4, axis=1),
        m.op("GATHER", [x, m.number(2)], 1, 4, 4, axis=2),
    )
    return m


@case("tables")
def tables() -> Making:
    m = Making()
    words = taking(m, INT32, 2, 7, high=11)
    line = taking(m, INT32, 5, high=11)
    m.done(
        m.op("GATHER", [m.floats(11, 6), words], 2, 7, 6, axis=0),
        m.op("EMBEDDING_LOOKUP", [line, m.floats(11, 3)], 5, 3),
    )
    return m


@case("one hot")
def one_hot() -> Making:
    m = Making()
    words = taking(m, INT32, 2, 3, low=-2, high=8)
    on, off = constant("on", np.float32(2.5)), constant("off", np.float32(-1))
    m.done(
        m.op("ONE_HOT", [words, m.number(6), on, off], 2, 3, 6, axis=-1),
        m.op("ONE_HOT", [words, m.number(4), on, off], 2, 4, 3, axis=1),
    )
    return m


@case("scattered")
def scattered() -> Making:
    m = Making(4, 3)
    places = m.ints([4], [1], [4], [0])
    m.done(m.op("SCATTER_ND", [places, m.x, m.ints(6, 3)], 6, 3))
    return m


@case("an update at a computed place")
def updated() -> Making:
    m = Making(1, 6, 4)
    start = taking(m, INT32, 3, low=-2, high=7)
    m.done(m.op("DYNAMIC_UPDATE_SLICE", [m.x, m.floats(1, 2, 3), start], 1, 6, 4))
    return m


@case("reversed")
def reversed_() -> Making:
    m = Making(2, 4, 5, 3)
    lengths = taking(m, INT32, 2, low=1, high=5)
    m.done(
        m.op("REVERSE_V2", [m.conv(), m.ints(3)], 2, 4, 5, 4),
        m.op("REVERSE_V2", [m.x, m.ints(1)], 2, 4, 5, 3),
        m.op("REVERSE_SEQUENCE", [m.x, lengths], 2, 4, 5, 3, seqDim=1, batchDim=0),
    )
    return m


def _slice(name: str, out: Sequence[int], spans: Sequence[Sequence[int]], **masks: int) -> None:
    @case(f"strided slice {name}")
    def make() -> Making:
        m = Making(4, 5, 6)
        inputs = [m.x, *(m.ints(*span) for span in spans)]
        m.done(m.op("STRIDED_SLICE", inputs, *out, **masks))
        return m


_slice("backwards", (4, 5, 6), ([3, -1, 5], [0, 0, 0], [-1, -1, -1]), beginMask=7, endMask=7)
_slice("backwards to an end", (2, 5, 2), ([3, 0, -2], [1, 5, 0], [-1, 1, -3]))
_slice("that drops an axis", (5, 3), ([2, 0, 0], [3, 5, 6], [1, 1, 2]), shrinkAxisMask=1)
_slice("that drops the last", (4, 5), ([0, 0, -1], [4, 5, 0], [1, 1, 1]), shrinkAxisMask=4)
_slice("with an ellipsis", (4, 5, 2), ([9, 1], [9, 5], [1, 2]), ellipsisMask=1)
_slice("with a new axis", (2, 1, 5, 6), ([1, 0], [3, 0], [1, 1]), newAxisMask=2)
_slice("beyond the ends", (3, 5, 6), ([-3, -100, 0], [100, 100, 6], [1, 1, 1]))


@case("slices behind a convolution")
def slices() -> Making:
    m = Making(1, 6, 6, 3)
    x = m.conv()
    spans = [m.ints(0, 5, 1, 0), m.ints(1, 0, 6, 4), m.ints(1, -2, 2, 3)]
    drops = [m.ints(0, 2, 0, 0), m.ints(1, 3, 6, 4), m.ints(1, 1, 1, 1)]
    m.done(
        m.op("SLICE", [x, m.ints(0, 1, 2, 1), m.ints(1, -1, 3, 2)], 1, 5, 3, 2),
        m.op("STRIDED_SLICE", [x, *spans], 1, 3, 3, 2),
        m.op("STRIDED_SLICE", [x, *drops], 1, 6, 4, shrinkAxisMask=2),
        *m.many("UNPACK", [x], *[(1, 6, 4)] * 6, axis=1, num=6)[:2],
        *m.many("SPLIT", [m.number(2), x], *[(1, 6, 3, 4)] * 2, numSplits=2),
    )
    return m


# --- shapes


@case("a shape that is computed")
def computed_shape() -> Making:
    """As TensorFlow's converter flattens a batch of any size."""
    m = Making(2, 3, 4)
    size = m.op("SHAPE", [m.x], 3, dtype=INT32, outType=2)
    spans = [m.ints(0), m.ints(1), m.ints(1)]
    batch = m.op("STRIDED_SLICE", [size, *spans], dtype=INT32, shrinkAxisMask=1)
    pair = m.op("PACK", [batch, m.number(12)], 2, dtype=INT32, axis=0, valuesCount=2)
    flat = m.op("RESHAPE", [m.x, pair], 2, 12)
    m.done(m.op("FULLY_CONNECTED", [flat, m.floats(5, 12), m.floats(5)], 2, 5))
    return m


@case("shapes that are constants")
def constant_shapes() -> Making:
    m = Making(2, 3)
    rank = m.op("RANK", [m.x], dtype=INT32)
    line = m.op("RANGE", [m.number(0), rank, m.number(1)], 2, dtype=INT32)
    size = m.op("SHAPE", [m.x], 2, dtype=INT32, outType=2)
    both = m.op("BROADCAST_ARGS", [size, m.ints(4, 1, 1)], 3, dtype=INT32)
    m.done(m.op("SUM", [m.x, line], keepDims=False), m.op("BROADCAST_TO", [m.x, both], 4, 2, 3))
    return m


@case("numbers on a grid of 8 bits")
def fake_quant() -> Making:
    m = Making(40, 50, low=-2, high=3)
    settings = {"numBits": 8, "narrowRange": False}
    m.done(
        m.op("FAKE_QUANT", [m.x], 40, 50, min=-1.0, max=2.0, **settings),
        m.op("FAKE_QUANT", [m.x], 40, 50, min=0.0, max=2.5, **settings),
    )
    return m


@case("filled")
def filled() -> Making:
    m = Making()
    number = m.input()
    m.done(m.op("FILL", [m.ints(2, 3), number], 2, 3))
    return m


@case("packed behind a convolution")
def packed() -> Making:
    m = Making(1, 4, 5, 3)
    x = m.conv()
    m.done(
        m.op("PACK", [x, m.conv()], 1, 4, 5, 4, 2, axis=4, valuesCount=2),
        m.op("PACK", [x, m.conv()], 2, 1, 4, 5, 4, axis=0, valuesCount=2),
        m.op("EXPAND_DIMS", [x, m.number(-1)], 1, 4, 5, 4, 1),
        m.op("SQUEEZE", [x], 4, 5, 4, squeezeDims=[0]),
        m.op("TILE", [x, m.ints(1, 2, 1, 3)], 1, 8, 5, 12),
        m.op("BROADCAST_TO", [x, m.ints(3, 4, 5, 4)], 3, 4, 5, 4),
    )
    return m


def _spread(sizes: Sequence[int], pads: Sequence[Sequence[int]], shape: Sequence[int]) -> None:
    """There, and back with what was added cut off."""
    batch, high, wide, depth = shape
    big = [high + sum(pads[0]), wide + sum(pads[1])]
    many = (batch * sizes[0] * sizes[1], big[0] // sizes[0], big[1] // sizes[1], depth)

    @case(f"space to batch {list(sizes)} {pads}")
    def make() -> Making:
        m = Making(*shape)
        there = m.op("SPACE_TO_BATCH_ND", [m.x, m.ints(*sizes), m.ints(*pads)], *many)
        back = m.op("BATCH_TO_SPACE_ND", [there, m.ints(*sizes), m.ints(*pads)], *shape)
        m.done(there, back)
        return m


_spread((2, 2), ([0, 0], [0, 0]), (1, 4, 6, 3))
_spread((2, 3), ([1, 1], [0, 2]), (2, 4, 7, 3))


@case("mirrored edges")
def mirrored() -> Making:
    m = Making(1, 4, 5, 3)
    pads = m.ints([0, 0], [2, 3], [1, 2], [1, 0])
    m.done(
        m.op("MIRROR_PAD", [m.conv(), pads], 1, 9, 8, 5, mode=1),
        m.op("MIRROR_PAD", [m.x, pads], 1, 9, 8, 4, mode=0),
    )
    return m


# --- windows


@case("l2 pool")
def l2_pool() -> Making:
    m = Making(1, 7, 6, 3)
    sides = {"padding": SAME, "strideH": 2, "strideW": 1, "filterHeight": 3, "filterWidth": 2}
    m.done(m.op("L2_POOL_2D", [m.x], 1, 4, 6, 3, **sides))
    return m


def _windows(kind: str, padding: int, sizes: Sequence[int]) -> None:
    @case(f"{kind.lower()} {'same' if padding == SAME else 'valid'} {list(sizes)}")
    def make() -> Making:
        high, wide, stride = sizes
        m = Making(2, 7, 9, 4)
        outs = [
            -(-(n if padding == SAME else n - k + 1) // stride)
            for n, k in zip((7, 9), (high, wide), strict=True)
        ]
        sides = {"padding": padding, "strideH": stride, "strideW": stride}
        sides |= {"filterHeight": high, "filterWidth": wide, "fusedActivationFunction": 1}
        m.done(m.op(kind, [m.x], 2, *outs, 4, **sides))
        return m


for _kind in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
    for _padding in (SAME, VALID):
        for _sizes in ((2, 2, 2), (3, 5, 1), (7, 9, 1), (4, 3, 3)):
            _windows(_kind, _padding, _sizes)


def _transposed(padding: int, k: int, stride: int, out: Sequence[int], code: int = 0) -> None:
    @case(f"transposed {'same' if padding == SAME else 'valid'} {k} {stride} {list(out)} {code}")
    def make() -> Making:
        m = Making(1, 5, 4, 3)
        inputs = [m.ints(1, *out, 2), m.floats(2, k, k, 3), m.x, m.floats(2)]
        sides = {"padding": padding, "strideH": stride, "strideW": stride}
        sides["fusedActivationFunction"] = code
        m.done(m.op("TRANSPOSE_CONV", inputs, 1, *out, 2, **sides))
        return m


_transposed(SAME, 3, 2, (10, 8))
_transposed(SAME, 3, 2, (9, 7))
_transposed(SAME, 2, 2, (10, 8), 1)
_transposed(SAME, 1, 3, (15, 12))
_transposed(SAME, 5, 2, (10, 8))
_transposed(VALID, 3, 2, (11, 9), 3)
_transposed(VALID, 2, 3, (14, 11))


def between_blocks(kind: str = "CONV_2D", pads: int = 2, crop: int = 0) -> Making:
    """A convolution dilated by 2, as TensorFlow's converter writes it for a batch of any size."""
    m = Making(1, 9, 8, 3)
    high, wide = 9 + 2 * pads + 1, 8 + 2 * pads
    corners = [pads, pads + 1], [pads, pads]
    spread = m.op("SPACE_TO_BATCH_ND", [m.x, m.ints(2, 2), m.ints(*corners)],
                  4, high // 2, wide // 2, 3)  # fmt: skip
    weights = m.floats(5, 3, 3, 3) if kind == "CONV_2D" else m.floats(1, 3, 3, 6)
    depth = 5 if kind == "CONV_2D" else 6
    more: dict[str, Any] = {} if kind == "CONV_2D" else {"depthMultiplier": 2}
    many = m.op(kind, [spread, weights, m.floats(depth)], 4, high // 2 - 2, wide // 2 - 2, depth,
                **SQUARE(1, VALID), **more)  # fmt: skip
    crops = m.ints([crop, 1], [0, crop])
    m.done(m.op("BATCH_TO_SPACE_ND", [many, m.ints(2, 2), crops],
                1, high - 5 - crop, wide - 4 - crop, depth))  # fmt: skip
    return m


def sequence_between_blocks() -> Making:
    """The same of a convolution over one axis."""
    m = Making(2, 13, 3)
    spread = m.op("SPACE_TO_BATCH_ND", [m.x, m.ints(3), m.ints([3, 2])], 6, 6, 3)
    image = m.op("EXPAND_DIMS", [spread, m.number(1)], 6, 1, 6, 3)
    many = m.op("CONV_2D", [image, m.floats(5, 1, 2, 3), m.floats(5)], 6, 1, 5, 5,
                **SQUARE(1, VALID), fusedActivationFunction=1)  # fmt: skip
    narrow = m.op("SQUEEZE", [many], 6, 5, 5, squeezeDims=[1])
    m.done(m.op("BATCH_TO_SPACE_ND", [narrow, m.ints(3), m.ints([0, 2])], 2, 13, 5))
    return m


case("dilated between blocks")(between_blocks)
case("dilated between blocks, by channel")(lambda: between_blocks("DEPTHWISE_CONV_2D"))
case("dilated between blocks, cropped")(lambda: between_blocks(pads=1, crop=1))
case("dilated between blocks, cropped more than padded")(lambda: between_blocks(pads=0, crop=1))
case("dilated sequence between blocks")(sequence_between_blocks)


@case("dilated and grouped")
def dilated() -> Making:
    m = Making(1, 9, 8, 6)
    m.done(
        m.op("CONV_2D", [m.x, m.floats(4, 3, 3, 6), m.floats(4)], 1, 9, 8, 4, **SQUARE(1, SAME, 2)),
        m.op("CONV_2D", [m.x, m.floats(4, 3, 3, 3), m.floats(4)], 1, 7, 6, 4, **SQUARE(1, VALID)),
        m.op("DEPTHWISE_CONV_2D", [m.x, m.floats(1, 3, 2, 18), m.floats(18)], 1, 9, 8, 18,
             depthMultiplier=3, **SQUARE(1, SAME, 2)),
        m.op("DEPTHWISE_CONV_2D", [m.x, m.floats(1, 3, 3, 6), m.floats(6)], 1, 5, 4, 6,
             depthMultiplier=1, **SQUARE(2, SAME)),
    )  # fmt: skip
    return m


def _volumes(padding: int, stride: int) -> None:
    @case(f"volumes {'same' if padding == SAME else 'valid'} {stride}")
    def make() -> Making:
        m = Making(2, 6, 7, 8, 4)
        sides = {"padding": padding, "fusedActivationFunction": 1}
        for side in "DHW":
            sides |= {f"stride{side}": stride, f"dilation{side}Factor": 1}
        kernel = (3, 2, 3)
        sizes = [
            -(-(n if padding == SAME else n - k + 1) // stride)
            for n, k in zip((6, 7, 8), kernel, strict=True)
        ]
        weights = [m.floats(*kernel, 4, 5), m.floats(5)]
        small = m.op("CONV_3D", [m.x, *weights], 2, *sizes, 5, **sides)
        wide = [n * stride if padding == SAME else (n - 1) * stride + k
                for n, k in zip(sizes, kernel, strict=True)]  # fmt: skip
        back = [m.ints(2, *wide, 3), m.floats(*kernel, 3, 5), small]
        m.done(small, m.op("CONV_3D_TRANSPOSE", back, 2, *wide, 3, **sides))
        return m


for _padding in (SAME, VALID):
    for _stride in (1, 2):
        _volumes(_padding, _stride)


for _align, _half in ((False, False), (True, False), (False, True)):
    for _out in ((8, 10), (3, 9), (1, 1), (7, 13), (4, 5)):
        for _kind in ("RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR"):

            def _resized(
                kind: str = _kind,
                align: bool = _align,
                half: bool = _half,
                out: tuple[int, int] = _out,
            ) -> Making:
                m = Making(2, 4, 5, 3)
                sides = {"alignCorners": align, "halfPixelCenters": half}
                m.done(m.op(kind, [m.x, m.ints(*out)], 2, *out, 3, **sides))
                return m

            case(f"{_kind.lower()} {list(_out)} {_align} {_half}")(_resized)


# --- products


@case("dense layers of several ranks")
def dense() -> Making:
    m = Making(2, 3, 4)
    weights = m.floats(5, 4)
    m.done(
        m.op("FULLY_CONNECTED", [m.x, weights, m.floats(5)], 2, 3, 5, keepNumDims=True,
             fusedActivationFunction=1),
        m.op("FULLY_CONNECTED", [m.x, weights, None], 6, 5, keepNumDims=False),
        m.op("FULLY_CONNECTED", [m.x, m.floats(2, 12)], 2, 2, fusedActivationFunction=3),
    )  # fmt: skip
    return m


@case("flattened images")
def flattened() -> Making:
    """Rows, columns and channels differ, so that none is taken for another."""
    m = Making(2, 4, 5, 3)
    x = m.conv()
    flat = m.op("RESHAPE", [x, m.ints(2, 80)], 2, 80)
    first = m.op("FULLY_CONNECTED", [flat, m.floats(6, 80), m.floats(6)], 2, 6)
    second = m.op("FULLY_CONNECTED", [flat, m.floats(3, 80)], 2, 3)
    whole = m.op("RESHAPE", [m.op("RELU", [x], 2, 4, 5, 4), m.ints(2, 80)], 2, 80)
    m.done(first, second, m.op("ADD", [whole, m.floats(80)], 2, 80))
    return m


@case("products of batches")
def products() -> Making:
    m = Making(2, 3, 4)
    other = m.input(2, 5, 3)
    m.done(
        m.op("BATCH_MATMUL", [m.x, other], 2, 4, 5, adjX=True, adjY=True),
        m.op("BATCH_MATMUL", [m.x, m.floats(4, 6)], 2, 3, 6, adjX=False, adjY=False),
        m.op("BATCH_MATMUL", [m.x, m.floats(6, 4)], 2, 3, 6, adjX=False, adjY=True),
    )
    return m


@case("weights in float16")
def halves() -> Making:
    m = Making(1, 6, 6, 3)

    def half(*shape: int) -> Tensor:
        stored = constant(m.name("half"), m.floats(*shape).data, np.float16)
        return m.op("DEQUANTIZE", [stored], *shape)

    image = m.op("CONV_2D", [m.x, half(4, 3, 3, 3), half(4)], 1, 6, 6, 4, **SQUARE())
    deep = m.op(
        "DEPTHWISE_CONV_2D", [image, half(1, 3, 3, 4), half(4)],
        1, 6, 6, 4, depthMultiplier=1, **SQUARE(),
    )  # fmt: skip
    added = m.op("ADD", [deep, half(4)], 1, 6, 6, 4)
    m.done(m.op("FULLY_CONNECTED", [added, half(5, 144), half(5)], 1, 5))
    return m
