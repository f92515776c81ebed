"""The settings of each lowered operator that are swept, an entry an operator."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import onnx

from tests.tflite_graphs import (
    Fed,
    Given,
    floats,
)

SIMPLIFIED_BELOW = 13
"""Older files are raised to this opset before they are lowered."""


class Case(NamedTuple):
    inputs: list[Given]
    attributes: dict[str, Any] = {}  # noqa: RUF012
    opset: int = 17
    outputs: tuple[str, ...] = ("y",)


class Sweep(NamedTuple):
    make: Callable[..., Case | None]
    """One combination -> a case; None: the specification has no such one."""
    settings: dict[str, tuple[Any, ...]]
    most: int = 40
    """Combinations that are tried."""
    refused: bool = False
    """Whether all of them are."""


SWEPT: dict[str, list[Sweep]] = {}


def sweep(
    *kinds: str, most: int = 40, refused: bool = False, **settings: tuple[Any, ...]
) -> Callable[[Callable[..., Case | None]], Callable[..., Case | None]]:
    def register(make: Callable[..., Case | None]) -> Callable[..., Case | None]:
        for kind in kinds:
            SWEPT.setdefault(kind, []).append(Sweep(make, settings, most, refused))
        return make

    return register


def combinations(of: Sweep) -> Iterator[dict[str, Any]]:
    every = list(itertools.product(*of.settings.values()))
    places = np.random.default_rng(len(every)).permutation(len(every))[: of.most]
    for place in sorted(places):
        yield dict(zip(of.settings, every[place], strict=True))


def ints(*values: Any) -> np.ndarray:
    return np.array(values, np.int64)


def whole(*shape: int, low: int = -9, high: int = 9, dtype: Any = np.int64) -> Fed:
    return Fed(np.random.default_rng(shape).integers(low, high, shape).astype(dtype))


def positive(*shape: int) -> Fed:
    return Fed(np.abs(floats(*shape)) + np.float32(0.2))


def given(**attributes: Any) -> dict[str, Any]:
    """Without those that are None."""
    return {name: entry for name, entry in attributes.items() if entry is not None}


# --- windows


PADS = (None, "SAME_UPPER", "SAME_LOWER", "VALID", (1, 0), (0, 2), (2, 1))


def window(axes: int, kernel: int, stride: int, dilation: int, pad: Any) -> dict[str, Any]:
    """Settings that differ between the axes."""
    kernels = [kernel, max(1, kernel - 1)][:axes]
    strides = [stride, stride % 3 + 1][:axes]
    padding: dict[str, Any] = {}
    if isinstance(pad, str):
        padding = {"auto_pad": pad}
    elif pad:
        padding = {"pads": [pad[0], pad[1], *pad][:axes] + [pad[1], pad[0], *pad][:axes]}
    dilations = {"dilations": [dilation, 1][:axes]} if dilation > 1 else {}
    return {"kernel_shape": kernels, "strides": strides, **padding, **dilations}


@sweep(
    "Conv",
    most=60,
    axes=(1, 2),
    kernel=(1, 2, 3, 5),
    stride=(1, 2, 3),
    dilation=(1, 2, 3),
    pad=PADS,
    group=("one", "two", "depthwise", "multiplied"),
    bias=(True, False),
)
def conv(
    axes: int, kernel: int, stride: int, dilation: int, pad: Any, group: str, bias: bool
) -> Case:
    groups, inner, out = {
        "one": (1, 6, 5),
        "two": (2, 3, 4),
        "depthwise": (6, 1, 6),
        "multiplied": (6, 1, 12),
    }[group]
    found = window(axes, kernel, stride, dilation, pad)
    weight = floats(out, inner, *found["kernel_shape"])
    return Case(
        [(2, 6, *(13, 12)[:axes]), weight, *([floats(out)] if bias else [])],
        {**found, "group": groups},
    )


@sweep(
    "ConvTranspose",
    most=120,
    axes=(1, 2),
    kernel=(1, 2, 3, 4),
    stride=(1, 2, 3),
    dilation=(1, 2),
    pad=PADS,
    extra=(0, 1, 2),
    group=(1, 2),
    size=(None, "less", "more"),
)
def conv_transpose(
    axes: int, kernel: int, stride: int, dilation: int, pad: Any, extra: int, group: int, size: Any
) -> Case | None:
    found = window(axes, kernel, stride, dilation, pad)
    weight = floats(4, 3 if group == 1 else 2, *found["kernel_shape"])
    sizes = (6, 5)[:axes]
    if extra:
        found["output_padding"] = [min(extra, stride - 1), 0][:axes]
    if size:
        more = 1 if size == "more" else -1
        strides = found["strides"]
        found["output_shape"] = [n * s + more for n, s in zip(sizes, strides, strict=True)]
        if any(n < m for n, m in zip(found["output_shape"], sizes, strict=True)):
            return None  # ONNX infers shapes of other ranks for it
    return Case(
        [(2, 4, *sizes), weight, floats(weight.shape[1] * group)], {**found, "group": group}
    )


@sweep(
    *("MaxPool", "AveragePool"),
    most=70,
    axes=(1, 2),
    kernel=(1, 2, 3, 4),
    stride=(1, 2, 3),
    dilation=(1, 2),
    pad=PADS,
    ceil=(0, 1),
    include=(0, 1),
    size=(9, 10),
)
def pool(
    axes: int, kernel: int, stride: int, dilation: int, pad: Any, ceil: int, include: int, size: int
) -> Case | None:
    found = window(axes, kernel, stride, dilation, pad)
    if isinstance(pad, tuple) and max(pad) >= min(found["kernel_shape"]):
        return None
    more = {"ceil_mode": ceil} if ceil else {}
    return Case([(2, 3, *(size, 11)[:axes])], {**found, **more, "include": include}, opset=19)


@sweep("LpPool", "GlobalLpPool", refused=True, p=(1, 2))
def lp_pool(p: int) -> Case:
    return Case([(1, 3, 6, 6)], {"p": p, "kernel_shape": [2, 2]})


@sweep(
    "GlobalAveragePool", "GlobalMaxPool", shape=((2, 3, 5), (1, 3, 4, 5), (2, 3, 4, 3, 2), (2, 3))
)
def global_pool(shape: tuple[int, ...]) -> Case:
    return Case([shape])


# --- axes


@sweep("Softmax", "LogSoftmax", axis=(-3, -2, -1, 0, 1, 2, None), rank=(1, 3), opset=(11, 13))
def softmax(axis: int | None, rank: int, opset: int) -> Case:
    return Case([(3, 4, 5)[:rank]], given(axis=axis), opset)


@sweep("Hardmax", refused=True, axis=(-1, 1))
def hardmax(axis: int) -> Case:
    return Case([(2, 3, 4)], {"axis": axis})


REDUCES: tuple[str, ...] = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
)
REDUCES += ("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare")


@sweep(
    *REDUCES,
    most=14,
    axes=(None, (0,), (-1,), (1, -1), (-2,), (0, 1, 2), (2, 3), (0, -4)),
    rank=(1, 2, 3, 4, 5),
    keep=(0, 1, None),
    opset=(11, 13, 18),
    empty=(0, 1),
)
def reduce(kind: str, axes: Any, rank: int, keep: Any, opset: int, empty: int) -> Case | None:
    by_input = opset >= 18 or (opset == 13 and kind == "ReduceSum")
    if axes and any(not -rank <= axis < rank for axis in axes):
        return None
    if axes and len({axis % rank for axis in axes}) < len(axes):
        return None
    found = given(keepdims=keep)
    inputs: list[Given] = [positive(*(2, 3, 4, 2, 3)[:rank])]
    if axes and by_input:
        inputs.append(ints(*axes))
    elif axes:
        found["axes"] = list(axes)
    if empty and by_input and axes is None:
        found["noop_with_empty_axes"] = 1
    return Case(inputs, found, opset)


@sweep(
    *("ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "ReduceMean", "ReduceL1"),
    dtype=(np.int32, np.int64),
    axis=(0, -1),
)
def reduce_whole(dtype: Any, axis: int) -> Case:
    return Case([whole(3, 4, low=1, high=5, dtype=dtype)], {"axes": [axis]}, 11)


@sweep("ArgMax", "ArgMin", axis=(-2, -1, 0, 1, 2), keep=(0, 1), last=(0, 1), ties=(False, True))
def arg(axis: int, keep: int, last: int, ties: bool) -> Case:
    values = np.random.default_rng(0).integers(0, 3, (3, 4, 5)).astype(np.float32)
    array = values if ties else floats(3, 4, 5)
    return Case([Fed(array)], {"axis": axis, "keepdims": keep, "select_last_index": last})


@sweep("TopK", axis=(-3, -1, 0, 1, None), k=(1, 3), largest=(0, 1), ties=(0, 1))
def top_k(axis: Any, k: int, largest: int, ties: int) -> Case:
    values = np.random.default_rng(1).integers(0, 4, (3, 4, 5)).astype(np.float32)
    array = Fed(values if ties else floats(3, 4, 5))
    return Case([array, ints(k)], given(axis=axis, largest=largest), 17, ("y", "z"))


@sweep(
    "CumSum",
    axis=(-3, -1, 0, 1, 2),
    exclusive=(0, 1),
    reverse=(0, 1),
    dtype=(np.float32, np.int32, np.int64),
)
def cumsum(axis: int, exclusive: int, reverse: int, dtype: Any) -> Case:
    array = Fed(whole(2, 3, 4)[0].astype(dtype))
    return Case([array, np.array(axis, np.int64)], {"exclusive": exclusive, "reverse": reverse})


# --- normalization


@sweep(
    "LayerNormalization",
    axis=(-3, -2, -1, 0, 1, 2),
    bias=(False, True),
    epsilon=(1e-5, 1e-2),
    rank=(2, 3, 4),
)
def layer_norm(axis: int, bias: bool, epsilon: float, rank: int) -> Case | None:
    shape = (2, 3, 4, 5)[:rank]
    if not -rank <= axis < rank:
        return None
    tail = shape[axis:]
    inputs: list[Given] = [shape, floats(*tail), *([floats(*tail, seed=1)] if bias else [])]
    return Case(inputs, {"axis": axis, "epsilon": epsilon})


@sweep(
    "InstanceNormalization", shape=((2, 4, 7), (1, 4, 5, 6), (2, 4, 3, 4, 2)), epsilon=(1e-5, 0.1)
)
def instance_norm(shape: tuple[int, ...], epsilon: float) -> Case:
    return Case([shape, floats(4), floats(4, seed=1)], {"epsilon": epsilon})


@sweep(
    "GroupNormalization",
    shape=((2, 6, 7), (1, 6, 5, 4), (2, 6, 3, 4, 2)),
    groups=(1, 2, 3, 6),
    opset=(18, 21),
)
def group_norm(shape: tuple[int, ...], groups: int, opset: int) -> Case:
    count = groups if opset < 21 else 6
    return Case([shape, floats(count), floats(count, seed=1)], {"num_groups": groups}, opset)


@sweep(
    "BatchNormalization", shape=((2, 4), (2, 4, 7), (1, 4, 5, 6), (2, 4, 3, 4, 2)), opset=(9, 15)
)
def batch_norm(shape: tuple[int, ...], opset: int) -> Case:
    more = [np.abs(floats(4, seed=seed)) + np.float32(0.3) for seed in range(4)]
    return Case([shape, *more], {}, opset)


@sweep("LRN", size=(1, 2, 3, 5, 7), alpha=(1e-4, 0.5), beta=(0.5, 0.75), bias=(1.0, 2.0), most=20)
def lrn(size: int, alpha: float, beta: float, bias: float) -> Case:
    return Case([(2, 6, 4, 5)], {"size": size, "alpha": alpha, "beta": beta, "bias": bias})


@sweep("LpNormalization", p=(1, 2), axis=(-2, -1, 0, 1), shape=((3, 4), (2, 3, 4), (2, 3, 4, 5)))
def lp_norm(p: int, axis: int, shape: tuple[int, ...]) -> Case:
    return Case([shape], {"p": p, "axis": axis})


@sweep("MeanVarianceNormalization", axes=(None, (0, 2), (1, 2, 3), (-1,)))
def mean_variance(axes: Any) -> Case:
    return Case([(2, 3, 4, 5)], given(axes=list(axes) if axes else None))


# --- shapes and parts


@sweep(
    "Slice",
    most=120,
    axis=(0, 1, 2, -1, -3),
    start=(0, 1, -1, -2, 5, -100, 2**40),
    end=(0, 2, -1, 100, -100, 2**62, -(2**62)),
    step=(1, 2, -1, -2, 7),
)
def slice_(axis: int, start: int, end: int, step: int) -> Case:
    return Case([(4, 5, 6), ints(start), ints(end), ints(axis), ints(step)])


@sweep("Slice", axes=(None, (0, 1), (2, 0)), opset=(9, 10, 13))
def slice_of_opset(axes: Any, opset: int) -> Case:
    """Settings are attributes up to opset 9."""
    starts, ends = [1, -3], [3, 100]
    if opset < 10:
        return Case(
            [(4, 5, 6)], given(starts=starts, ends=ends, axes=list(axes) if axes else None), 9
        )
    more = [ints(*axes)] if axes else []
    return Case([(4, 5, 6), ints(*starts), ints(*ends), *more], {}, opset)


PAD_MODES = ("constant", "reflect", "edge", "wrap")


@sweep(
    "Pad",
    most=200,
    mode=PAD_MODES,
    pads=((0, 1, 2, 1, 0, 3), (1, 0, -1, 0, 2, 0), (-1, -1, 0, -1, 0, -2), (0, 0, 0, 0, 0, 0)),
    fill=(None, 1.5, -np.inf),
    opset=(2, 11, 13, 18, 19),
    axes=(None, (0, -1, 1)),
)
def pad(mode: str, pads: tuple[int, ...], fill: Any, opset: int, axes: Any) -> Case | None:
    if (mode == "wrap" and opset < 19) or (axes and opset < 18):
        return None
    if fill is not None and mode != "constant":
        return None
    if opset == 2:
        return Case([(4, 5, 6)], given(mode=mode, pads=list(pads), value=fill), 2)
    inputs: list[Given] = [(4, 5, 6), ints(*pads)]
    if fill is not None or axes:
        inputs.append(None if fill is None else np.array(fill, np.float32))
    if axes:
        inputs.append(ints(*axes))
    return Case(inputs, {"mode": mode}, opset)


@sweep("Squeeze", axes=(None, (0,), (-1,), (0, 2), (-4, -2)), opset=(11, 13))
@sweep("Unsqueeze", axes=((0,), (-1,), (0, 2), (-4, -2), (4, 1)), opset=(11, 13))
def squeeze(kind: str, axes: Any, opset: int) -> Case:
    shape: tuple[int, ...] = (1, 3, 1, 4, 1) if kind == "Squeeze" else (3, 4, 2)
    if kind == "Squeeze" and axes is not None:
        shape = tuple(1 if a in {x % 5 for x in axes} else n for a, n in enumerate((2, 3, 2, 4, 2)))
        if axes == (-4, -2):
            shape = (2, 1, 2, 1, 2)
    if axes is None:
        return Case([shape], {}, opset)
    if opset < 13:
        return Case([shape], {"axes": list(axes)}, opset)
    return Case([shape, ints(*axes)], {}, opset)


@sweep("Flatten", axis=(-3, -1, 0, 1, 2, 4), shape=((2, 3, 4, 5),))
def flatten(axis: int, shape: tuple[int, ...]) -> Case:
    return Case([shape], {"axis": axis})


@sweep("Reshape", to=((0, -1), (-1,), (2, 0, 2, 2), (4, 3, 2, -1), (1, 0, 8, 1)), zero=(0, 1))
def reshape(to: tuple[int, ...], zero: int) -> Case:
    return Case([(2, 3, 4), ints(*to)], {"allowzero": zero} if zero else {})


@sweep("Transpose", perm=tuple(itertools.permutations(range(3))))
def transpose(perm: tuple[int, ...]) -> Case:
    return Case([(2, 3, 4)], {"perm": list(perm)})


@sweep("Transpose", most=12, perm=tuple(itertools.permutations(range(5))))
def transpose_of_five(perm: tuple[int, ...]) -> Case:
    return Case([(2, 3, 4, 1, 2)], {"perm": list(perm)})


@sweep(
    "Expand", to=((1,), (2, 1, 1, 4), (3, 4), (5, 2, 3, 4)), shape=((3, 1), (1, 4), (3, 4), (1,))
)
def expand(to: tuple[int, ...], shape: tuple[int, ...]) -> Case:
    return Case([shape, ints(*to)])


@sweep(
    "Tile", shape=((3,), (2, 3), (2, 3, 4), (2, 1, 3, 2), (1, 2, 1, 3, 2)), times=((1, 2, 3, 1, 2),)
)
def tile(shape: tuple[int, ...], times: tuple[int, ...]) -> Case:
    return Case([shape, ints(*times[: len(shape)])])


@sweep("Concat", axis=(-4, -2, -1, 0, 1, 3), count=(1, 2, 3), constant=(False, True))
def concat(axis: int, count: int, constant: bool) -> Case:
    inputs: list[Given] = []
    for number in range(count):
        shape = [2, 3, 4, 5]
        shape[axis] = number + 1
        inputs.append(floats(*shape) if constant and number else tuple(shape))
    return Case(inputs, {"axis": axis})


@sweep(
    "Split",
    axis=(-3, -1, 0, 1),
    sizes=(None, (1, 3), (2, 2), (1, 2, 1)),
    opset=(11, 13, 18),
)
def split(axis: int, sizes: Any, opset: int) -> Case | None:
    shape = [2, 3, 5]
    shape[axis] = 4
    outputs = ("y", "z", "u")[: len(sizes or (0, 0))]
    found: dict[str, Any] = {"axis": axis}
    inputs: list[Given] = [tuple(shape)]
    if sizes and opset < 13:
        found["split"] = list(sizes)
    elif sizes:
        inputs.append(ints(*sizes))
    elif opset >= 18:
        found["num_outputs"] = 2
    return Case(inputs, found, opset, outputs)


@sweep("Split", count=(2, 3, 4), axis=(0, -1))
def split_unevenly(count: int, axis: int) -> Case:
    """The last one is smaller."""
    found = {"axis": axis, "num_outputs": count}
    return Case([(7, 3, 7)], found, 18, ("y", "z", "u", "v")[:count])


INDICES = (0, -1, (0,), (2, -1, 0), ((0, 1), (-1, 2)))


@sweep(
    "Gather",
    most=60,
    axis=(-3, -1, 0, 1, 2),
    index=INDICES,
    fed=(False, True),
    dtype=(np.int32, np.int64),
    data=(np.float32, np.int64),
)
def gather(axis: int, index: Any, fed: bool, dtype: Any, data: Any) -> Case:
    """Indices that are fed are not negative: docs/tflite.md says so."""
    array = np.array(index, dtype)
    values = Fed(whole(4, 3, 5)[0].astype(data))
    return Case([values, Fed(np.abs(array)) if fed else array], {"axis": axis})


@sweep(
    "GatherND",
    index=(((0,), (-1,)), ((0, 1), (-1, -2)), ((0, 1, 2), (3, -1, -1)), (((1, -1),),)),
    fed=(False, True),
    batch=(0, 1),
)
def gather_nd(index: Any, fed: bool, batch: int) -> Case | None:
    array = np.array(index, np.int64)
    if batch and array.ndim < 2:
        return None
    more = {"batch_dims": 1} if batch else {}
    shape = (array.shape[0], 3, 5) if batch else (4, 3, 5)
    return Case([shape, Fed(np.abs(array)) if fed else array], more)


@sweep("ScatterND", "ScatterElements", "GatherElements", refused=True, n=(1,))
def scatter(kind: str, n: int) -> Case:
    index = ints([0], [1]) if kind == "ScatterND" else whole(2, 3, low=0, high=2)[0]
    more: list[Given] = [] if kind == "GatherElements" else [floats(2, 3)]
    return Case([(4, 3), index, *more])


@sweep(
    "OneHot",
    axis=(-2, -1, 0, 1, 2),
    depth=(3, 6),
    fed=(False, True),
    dtype=(np.int32, np.int64, np.float32),
    low=(0, -3),
)
def one_hot(axis: int, depth: int, fed: bool, dtype: Any, low: int) -> Case:
    array = whole(2, 4, low=low, high=6)[0].astype(dtype)
    index: Given = Fed(array) if fed else array
    return Case([index, ints(depth), np.array([-1, 2], np.float32)], {"axis": axis})


@sweep("DepthToSpace", mode=("DCR", "CRD"), block=(1, 2, 3), shape=((1, 36, 2, 3), (2, 72, 3, 1)))
def depth_to_space(mode: str, block: int, shape: tuple[int, ...]) -> Case:
    return Case([shape], {"mode": mode, "blocksize": block})


@sweep("SpaceToDepth", block=(1, 2, 3), shape=((1, 3, 6, 12), (2, 1, 12, 6)))
def space_to_depth(block: int, shape: tuple[int, ...]) -> Case:
    return Case([shape], {"blocksize": block})


@sweep("Trilu", "Einsum", "NonZero", "Unique", "Erf", refused=True, n=(1,))
def others(kind: str, n: int) -> Case:
    if kind == "Einsum":
        return Case([(3, 4), (4, 5)], {"equation": "ij,jk->ik"})
    return Case([(3, 4)])


# --- element by element

RANKS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = (
    ((), ()),
    ((), (3,)),
    ((3,), ()),
    ((1,), (2, 3)),
    ((2, 1), (1, 3)),
    ((2, 3, 4), (3, 1)),
    ((1, 3, 1, 2), (2, 1, 4, 1)),
    ((4,), (2, 1, 3, 4)),
    ((2, 3, 1, 2, 2), (3, 4, 1, 2)),
    ((2, 1, 2, 1, 3, 2), (3, 1, 2, 1, 1)),
    ((2,), (1, 1, 2, 1, 3, 2)),
)
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Pow", "Mean", "Sum")
COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")


def operand(shape: tuple[int, ...], seed: int, fed: bool, dtype: Any = np.float32) -> Given:
    array = np.random.default_rng([seed, *shape]).uniform(0.5, 6, shape).astype(dtype)
    return Fed(array) if fed else array


@sweep(*ARITHMETIC, *COMPARISONS, ranks=RANKS, fed=((True, True), (True, False), (False, True)))
def broadcast(ranks: Any, fed: tuple[bool, bool]) -> Case:
    return Case([operand(shape, n, fed[n]) for n, shape in enumerate(ranks)])


@sweep("And", "Or", "Xor", ranks=RANKS, fed=((True, True), (True, False)))
def truths(ranks: Any, fed: tuple[bool, bool]) -> Case:
    arrays = [np.random.default_rng([n, *s]).random(s) < 0.5 for n, s in enumerate(ranks)]
    return Case([Fed(a) if f else a for a, f in zip(arrays, fed, strict=True)])


@sweep("Where", ranks=RANKS, fed=((True, True), (True, False), (False, True)))
def where(ranks: Any, fed: tuple[bool, bool]) -> Case:
    left, right = ranks
    mask = Fed(np.random.default_rng(left).random(left) < 0.5)
    return Case([mask, operand(right, 1, fed[0]), operand(left, 2, fed[1])])


@sweep(
    *("Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Pow", *COMPARISONS),
    dtype=(np.int32, np.int64, np.uint8, np.int8),
    fed=(True, False),
    sign=(1, -1),
)
def of_whole_numbers(dtype: Any, fed: bool, sign: int) -> Case | None:
    left = np.arange(-12, 12).reshape(4, 6)
    right = np.array([1, 2, 3, 4, 5, 7]) * sign
    if sign < 0 and dtype == np.uint8:
        return None
    if dtype == np.uint8:
        left = left + 12
    return Case([Fed(left.astype(dtype)), Fed(right.astype(dtype)) if fed else right.astype(dtype)])


@sweep(
    "Pow",
    exponent=(0, 1, 2, 3, 4, -1, -2, 0.5, -0.5, 1.5),
    sign=(1, -1),
    dtype=(np.float32, np.int64),
)
def power(exponent: float, sign: int, dtype: Any) -> Case | None:
    if dtype == np.int64 and exponent != int(exponent):
        return None
    base = np.abs(floats(3, 4)) + np.float32(0.3)
    return Case([Fed(base * np.float32(sign)), np.array(exponent, dtype)])


@sweep("Mod", fmod=(0, 1), dtype=(np.float32, np.int32, np.int64), sign=(1, -1))
def modulo(fmod: int, dtype: Any, sign: int) -> Case | None:
    if dtype == np.float32 and not fmod:
        return None
    left = np.arange(-12, 12).reshape(4, 6).astype(dtype)
    return Case([Fed(left), np.array([3, 5, 7, 2, 4, 9], dtype) * dtype(sign)], {"fmod": fmod})


UNARY: tuple[str, ...] = (
    "Abs",
    "Ceil",
    "Cos",
    "Elu",
    "Celu",
    "Selu",
    "Exp",
    "Floor",
    "HardSigmoid",
    "HardSwish",
)
UNARY += ("LeakyRelu", "Neg", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign")
UNARY += ("Tanh", "ThresholdedRelu", "Identity", "IsNaN", "Reciprocal")
SPECIAL = np.array([0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, 3, 6, 100, -100], np.float32)


@sweep(*UNARY, shape=((), (1,), (12,), (3, 4), (1, 2, 2, 3), (1, 2, 1, 2, 1, 3)))
def unary(kind: str, shape: tuple[int, ...]) -> Case:
    array = (SPECIAL * (0.1 if kind == "Exp" else 1))[: int(np.prod(shape))].reshape(shape)
    array = np.where(array == 0, np.float32(0.25), array) if kind == "Reciprocal" else array
    return Case([Fed(np.asarray(array, np.float32))], {})


@sweep("Log", "Sqrt", shape=((), (1,), (12,), (1, 2, 2, 3)))
def of_positive(shape: tuple[int, ...]) -> Case:
    return Case([positive(*shape)])


@sweep("Mish", "Gelu", approximate=("none", "tanh"), shape=((), (12,), (1, 2, 2, 3)))
def newer(kind: str, approximate: str, shape: tuple[int, ...]) -> Case | None:
    if kind == "Mish" and approximate == "tanh":
        return None
    array = (SPECIAL * np.float32(0.3))[: int(np.prod(shape))].reshape(shape)
    return Case([Fed(array)], {"approximate": approximate} if kind == "Gelu" else {}, 20)


@sweep(
    "Clip",
    least=(None, -1.0, 0.0, 0.5, -np.inf, 2.0),
    most_=(None, 0.0, 1.0, 6.0, np.inf),
    opset=(6, 11, 13),
    shape=((12,), (2, 6)),
    most=60,
)
def clip(least: Any, most_: Any, opset: int, shape: tuple[int, ...]) -> Case:
    array: Given = Fed(SPECIAL.reshape(shape))
    if opset < 11:
        return Case([array], given(min=least, max=most_), opset)
    bounds = [None if n is None else np.array(n, np.float32) for n in (least, most_)]
    return Case([array, *bounds], {}, opset)


@sweep(
    "PRelu",
    slope=((), (1,), (6, 1, 1), (1, 6, 1, 1), (6, 4, 5), (4, 5), (5,), (4, 1), (2, 1, 1, 1)),
)
def prelu(slope: tuple[int, ...]) -> Case:
    return Case([(2, 6, 4, 5), floats(*slope)])


NUMBERS = (np.float32, np.int32, np.int64, np.bool_, np.uint8, np.int8)


@sweep("Cast", source=(*NUMBERS, np.float16), to=NUMBERS)
def cast(source: Any, to: Any) -> Case:
    array = np.array([0, 1, 2.75, 100, 126.5, 0.3], np.float32).astype(source)
    return Case([Fed(array)], {"to": onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to))})


# --- products


@sweep(
    "Gemm",
    most=50,
    left=(0, 1),
    right=(0, 1),
    constant=(True, False),
    third=(None, (), (1,), (5,), (1, 5), (3, 1), (3, 5)),
    fed=(True, False),
    alpha=(None, 0.5),
    beta=(None, 2.0),
)
def gemm(
    left: int, right: int, constant: bool, third: Any, fed: bool, alpha: Any, beta: Any
) -> Case:
    first = (4, 3) if left else (3, 4)
    second = (5, 4) if right else (4, 5)
    inputs: list[Given] = [first, floats(*second) if constant else second]
    if third is not None:
        inputs.append(Fed(floats(*third)) if fed else floats(*third))
    return Case(inputs, given(transA=left, transB=right, alpha=alpha, beta=beta))


PRODUCTS = (
    ((4,), (4,)),
    ((4,), (4, 3)),
    ((3, 4), (4,)),
    ((2, 3, 4), (4,)),
    ((4,), (2, 4, 3)),
    ((3, 4), (4, 5)),
    ((2, 3, 4), (4, 5)),
    ((3, 4), (2, 4, 5)),
    ((2, 1, 3, 4), (3, 4, 5)),
    ((1, 2, 3, 4), (2, 1, 4, 5)),
    ((2, 1, 2, 3, 4), (2, 4, 5)),
    ((2, 1, 1, 2, 3, 4), (4, 5)),
)


@sweep("MatMul", shapes=PRODUCTS, fed=((True, True), (True, False), (False, True)))
def matmul(shapes: Any, fed: tuple[bool, bool]) -> Case:
    pairs = zip(shapes, fed, strict=True)
    return Case([Fed(floats(*s, seed=n)) if f else floats(*s) for n, (s, f) in enumerate(pairs)])
