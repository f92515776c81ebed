"""The quantizer of TFLite keeps its specification: scales, zero points, shared scales."""

from collections.abc import Callable

import numpy as np
import pytest

from onmetal.converters.tflite import io
from onmetal.converters.tflite.check import problems
from onmetal.converters.tflite.grid import Activation
from onmetal.converters.tflite.net import SAME, VALID, Net, Tensor, constant
from onmetal.converters.tflite.parsing import read
from onmetal.converters.tflite.quantize import observed, quantize
from onmetal.converters.tflite.reference import Exposed
from onmetal.converters.tflite.specification import FIXED, SHARED, WEIGHTED, supported
from onmetal.converters.tflite.writing import write
from onmetal.errors import UnsupportedError
from tests.tflite_kinds import POOL, SQUARE, Making, kind_net, small
from tests.tflite_quantized import (
    KERNELS,
    LEAST_DB,
    STEPS,
    calibrated,
    check_runs,
    joined,
    kinds,
    maker,
    outputs,
    quantized,
    real,
    sqnr,
    steps_off,
)


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
