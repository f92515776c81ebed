"""Quantized graphs of numbers at the edge: zeros, constants, huge and tiny ranges, huge biases."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onmetal.calibration import search
from onmetal.calibration.qdq_writer import quantize
from onmetal.converters.onnx.graph import Graph
from onmetal.errors import UnsupportedError
from onmetal.targets import Format
from tests.onnx_models import node, save
from tests.qdq_checks import (
    ALL,
    CONV,
    END_OF_A,
    FORMATS,
    RELU,
    W,
    check_exact,
    check_rules,
    check_runtimes,
    feeds_for,
    floats,
    made,
    placed,
    quantized,
    small,
)
from tests.qdq_reference import Case, in_runtimes, opened, ranges_of, traced


def eye(channels: int = 2) -> np.ndarray:
    """The weight of a Conv that gives what it takes."""
    return np.eye(channels, dtype=np.float32).reshape(channels, channels, 1, 1)


def test_a_model_with_nothing_to_quantize_is_told_so(tmp_path: Path) -> None:
    model = small(node("Sigmoid", "x", "s"), node("Mul", "x s", "y"))
    path = save(model, tmp_path / "model.onnx")
    assert not placed(model).integer
    with pytest.raises(UnsupportedError, match="nothing in it can be quantized"):
        search.tensors(str(path), [ALL])
    m = quantized(model)
    assert [entry.op_type for entry in m.written.graph.node] == ["Sigmoid", "Mul"]


each_format = pytest.mark.parametrize("form", FORMATS, ids=range(len(FORMATS)))


@each_format
def test_inputs_of_nothing_but_zeros_give_what_the_float_model_gives(form: Format) -> None:
    model = small(
        node("Conv", "x w b", "a"),
        RELU,
        node("MaxPool", "r", "m", kernel_shape=[2, 2]),
        node("Conv", "m w", "y"),
        w=W,
        b=floats(2),
    )
    m = made(Case(model, feeds_for(model, scale=0)), form)
    check_rules(m)
    check_runtimes(m, check_exact(m, m.feeds))
    assert m.twin.lattices["x"].scale == 1


@each_format
def test_a_dead_range_gives_zeros(form: Format) -> None:
    """A Relu that never lets anything through."""
    model = small(
        node("Conv", "x w b", "a"),
        RELU,
        node("Conv", "r w", "c"),
        node("Add", "c r", "y"),
        w=W,
        b=np.array([-100, -100], np.float32),
    )
    m = made(Case(model, feeds_for(model)), form)
    check_rules(m)
    check_runtimes(m, check_exact(m, m.feeds))
    for found in in_runtimes(m.written, m.feeds).values():
        assert all(not outputs["y"].any() for outputs in found)


@each_format
def test_a_constant_tensor_is_exact_to_a_step(form: Format) -> None:
    nodes = [node("Mul", "x zero", "z"), node("Conv", "z w b", "y")]
    model = small(*nodes, w=W, zero=np.float32(0), b=np.array([3, -0.01], np.float32))
    m = quantized(model, form)
    check_runtimes(m, traced(m.written, m.feeds))


def opening_zeros(form: Format) -> list[str]:
    """OpenVINO 2026.4 opens no Conv whose u8 weights have the zero point 0, which are all >= 0."""
    ranged = form.weight == "u8" and not form.weight_symmetric
    return ["onnxruntime", *([] if ranged else ["openvino"])]


@each_format
@pytest.mark.parametrize("empty", [[0], [1], [0, 1]])
def test_channels_of_nothing_but_zeros_give_their_bias(form: Format, empty: list[int]) -> None:
    weight = floats(2, 2, 3, 3)
    weight[empty] = 0
    model = small(node("Conv", "x w b", "y"), w=weight, b=np.array([0.5, -2], np.float32))
    m = made(Case(model, feeds_for(model)), form)
    onnx.checker.check_model(m.written, full_check=True)
    step = float(m.twin.lattices["y"].scale)
    for found in in_runtimes(m.written, m.feeds, opening_zeros(form)).values():
        for exact, outputs in zip(m.traces, found, strict=True):
            assert np.isfinite(outputs["y"]).all()
            gap = np.abs(outputs["y"] - exact["y"])[:, empty]
            assert gap.max() <= step


@each_format
@pytest.mark.parametrize("bias", [0.0, 1.0, -1.0])
@pytest.mark.parametrize(
    ("inputs", "weight"),
    [
        (1e30, 1e-30),
        (1e-30, 1e30),
        (1e30, 1.0),
        (1.0, 1e30),
        (1e-30, 1.0),
        (1.0, 1e-30),
        (1e-30, 1e-30),
        (1e-40, 1.0),
        (1.0, 1e-42),
    ],
)
def test_huge_and_tiny_numbers_keep_their_accuracy(
    form: Format, inputs: float, weight: float, bias: float
) -> None:
    model = small(
        node("Conv", "x w b", "a"),
        node("Conv", "a w1", "y"),
        w=np.float64(weight) * floats(2, 2, 3, 3),
        b=np.array([bias, bias]),
        w1=eye(),
    )
    m = made(Case(model, feeds_for(model, scale=inputs)), form)
    onnx.checker.check_model(m.written, full_check=True)
    names = {"ORT_DISABLE_ALL", "ORT_ENABLE_ALL"}
    for level in names:
        session = opened(m.written, level)
        for exact, feed in zip(m.traces, m.feeds, strict=True):
            found = session.run(None, feed)[0]
            peak = max(float(np.abs(trace["y"]).max()) for trace in m.traces)
            assert np.isfinite(found).all()
            if peak > 1e-35:
                assert np.abs(found - exact["y"]).max() <= 0.06 * peak
            else:
                assert np.abs(found).max() <= 1e-35


@each_format
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("bias", [200.0, 3e4, 1e9])
def test_a_huge_bias_overflows_no_accumulator(form: Format, sign: int, bias: float) -> None:
    """Products that all have the sign of the bias are added to it in 32 bits."""
    weight = sign * 1e-3 * np.abs(floats(2, 2, 3, 3))
    model = small(
        node("Conv", "x w b", "a"),
        node("Conv", "a w1", "y"),
        w=weight,
        b=np.array([sign * bias, sign]),
        w1=eye(),
    )
    feeds = [{"x": np.abs(feed["x"])} for feed in feeds_for(model)]
    m = made(Case(model, feeds), form)
    graph = Graph(m.written)
    conv = next(entry for entry in graph.nodes if entry.name == "a")
    bias_maker = graph.producer[conv.input[2]]
    integers = graph.constant(bias_maker.input[0])
    assert integers is not None and integers.dtype == np.int32
    of_input, of_weight, of_bias = (
        np.asarray(graph.constant(graph.producer[name].input[1])) for name in conv.input
    )
    np.testing.assert_allclose(of_input * of_weight, of_bias, rtol=1e-6)
    for outputs in in_runtimes(m.written, feeds, opening_zeros(form)).values():
        for exact, found in zip(m.traces, outputs, strict=True):
            step = float(m.twin.lattices["y"].scale)
            assert np.abs(found["y"] - exact["y"]).max() <= 3 * step


def test_a_range_that_is_missing_or_infinite_is_told() -> None:
    model = small(CONV, END_OF_A, w=W)
    found = placed(model)
    ranges = ranges_of(traced(model, feeds_for(model)))
    for wrong in ((-np.inf, np.inf), (0.0, np.inf), (np.nan, np.nan)):
        with pytest.raises(UnsupportedError):
            quantize(model, ALL, found, {**ranges, "a": wrong})
    del ranges["a"]
    with pytest.raises(UnsupportedError, match="'a'"):
        quantize(model, ALL, found, ranges)
