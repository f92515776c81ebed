"""Ranges that are of no use: zeros, tiny and huge ones, huge biases, padding and masks."""

import numpy as np
import pytest

from onmetal.converters.tflite.check import problems
from onmetal.converters.tflite.grid import Activation, rounded
from onmetal.converters.tflite.net import Net, Op, Tensor, constant
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.quantize import quantize
from onmetal.converters.tflite.specification import supported
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from tests.tflite_kinds import POOL, SQUARE, Making, kind_net
from tests.tflite_quantized import (
    KERNELS,
    STEPS,
    calibrated,
    check_runs,
    joined,
    maker,
    outputs,
    quantized,
    steps_off,
)


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
