"""Smaller weights in a float net: halves, and 8 bits with dynamic ranges."""

import numpy as np
import pytest

from onmetal.converters.tflite import smaller_weights
from onmetal.converters.tflite.check import problems
from onmetal.converters.tflite.net import constant
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from tests.tflite_kinds import SQUARE, Making, wide
from tests.tflite_quantized import check_runs, kinds, quantized


def test_halved_weights() -> None:
    m = wide()
    before = write(m.net)
    made = read(write(smaller_weights.halved(m.net)))
    assert write(m.net) == before
    assert problems(made) == []
    assert len(write(made)) < 0.55 * len(before)
    halves = {t.name: t for t in made.tensors() if t.dtype == np.float16}
    assert len(halves) == 3 and all(t.size >= smaller_weights.LEAST for t in halves.values())
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
    made = smaller_weights.halved(m.net)
    assert kinds(made) == ["DEQUANTIZE", "CONV_2D", "CONV_2D"]
    check_runs(m.net, read(write(made)), m.feeds(), 60)


def test_what_is_added_to_products_in_8_bits_stays_as_it_is() -> None:
    m = wide(channels=96)
    before = smaller_weights.dynamic(m.net)
    made = read(write(smaller_weights.halved(before)))
    assert kinds(made) == [
        *("CONV_2D", "DEQUANTIZE", "DEQUANTIZE", "DEPTHWISE_CONV_2D", "RESHAPE", "FULLY_CONNECTED")
    ]
    # Half weights move activations, of which some round to another of 256 integers.
    check_runs(before, made, m.feeds(), 45)


def test_weights_that_cannot_be_halved() -> None:
    m = Making(1, 4, 4, 1)
    m.done(m.conv(channels=1))
    with pytest.raises(UnsupportedError, match="no weights"):
        smaller_weights.halved(m.net)
    m = Making(1, 4, 4, 4)
    m.done(m.conv())
    weight = m.net.ops[0].inputs[1]
    assert weight is not None and weight.data is not None
    weight.data[0, 0, 0, 0] = 7e4
    with pytest.raises(UnsupportedError, match=f"{weight.name}.*float16"):
        smaller_weights.halved(m.net)
    weight.data[0, 0, 0, 0] = 65504
    assert smaller_weights.halved(m.net)


def test_dynamic_weights() -> None:
    m = wide()
    before = write(m.net)
    made = read(write(smaller_weights.dynamic(m.net)))
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
    check_runs(m.net, read(write(smaller_weights.dynamic(m.net))), m.feeds(), 30)
    m = Making(1, 4, 4, 2)
    m.done(m.op("RELU", [m.x], 1, 4, 4, 2))
    with pytest.raises(UnsupportedError):
        smaller_weights.dynamic(m.net)


def test_an_epsilon_beside_large_numbers() -> None:
    """As in a normalization: its scale is not so small that kernels cannot add it."""
    m = Making(1, 4, 4, 2)
    square = m.op("MUL", [m.conv(channels=2)] * 2, 1, 4, 4, 2)
    m.done(m.op("ADD", [square, constant("epsilon", np.float32(1e-6))], 1, 4, 4, 2))
    made = quantized(m)
    assert not problems(read(write(made)))
    check_runs(m.net, made, m.feeds(), 28)
