"""Quantized .tflite files as ONNX: the numbers that integers stand for, beside LiteRT."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onmetal.converters.tflite import io
from onmetal.converters.tflite.grid import Activation
from onmetal.converters.tflite.net import Net, Op, Tensor, constant, signature_names
from onmetal.converters.tflite.quantize import quantize
from onmetal.converters.tflite.smaller_weights import dynamic
from onmetal.converters.tflite.specification import supported
from onmetal.errors import UnsupportedError
from tests.integer_nets import residual, tangled
from tests.tflite_kinds import BUILD, F32, POOL, SQUARE, Arrays, Making, kind_net, small
from tests.tflite_nets import whole
from tests.tflite_quantized import calibrated, sqnr
from tests.tflite_round_trip import (
    agrees,
    by_litert,
    by_onnx,
    converted,
    operators,
    session,
)

LEAST_DB = 30.0
STEPS = {
    # int16: LiteRT's kernels interpolate in tables of 513 numbers, of which ours has none.
    ("s16", "EXP"): 2,
    ("s16", "GELU"): 2,
    ("s16", "LOG"): 6,
    ("s16", "SOFTMAX"): 2,
    ("s16", "TANH"): 2,
    # int16: each product of two is rounded to a step before the next one.
    ("s16", "REDUCE_PROD"): 2,
    # int16: LiteRT's fractions have 10 bits, so that a step in 2^10 of the greatest gap is lost.
    ("s16", "RESIZE_BILINEAR"): 128,
}
"""How many steps of the output a single operator may be off LiteRT's kernels; 1 where not listed,
as kernels round fixed-point products."""
UNREFERENCED = {"DEPTH_TO_SPACE", "TILE", "ELU"}
"""LiteRT has no reference kernels of these, in 8 bits."""
FUSED = ("ADD", "SUB", "MUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "AVERAGE_POOL_2D",
         "MAX_POOL_2D")  # fmt: skip
POSITIVE = {"SQRT", "RSQRT", "LOG", "DIV"}


def fed(net: Net, seed: int = 5) -> Arrays:
    """Integers of the whole range, by the names of the signature."""
    random = np.random.default_rng(seed)
    feed: Arrays = {}
    for name, tensor in zip(signature_names(net)[0], net.inputs, strict=True):
        if tensor.dtype.kind in "iu":
            limits = np.iinfo(tensor.dtype)
            array: Any = random.integers(limits.min, limits.max + 1, tensor.shape)
        elif tensor.dtype.kind == "b":
            array = random.random(tensor.shape) < 0.5
        else:
            array = random.uniform(-1, 1, tensor.shape)
        feed[name] = np.asarray(array).astype(tensor.dtype)
    return feed


@cache
def alone(kind: str, activation: Activation) -> Net:
    """The operator by itself, of integers."""
    m = kind_net(kind)
    net = quantize(m.net, calibrated(m.net, m.feeds()), activation)
    op = next(entry for entry in reversed(net.ops) if entry.kind == kind)
    inputs = [tensor for tensor in dict.fromkeys(op.taken) if tensor.data is None]
    return Net(inputs, list(op.outputs), [op])


def lifted(net: Net) -> Arrays:
    """Inputs above their zero point, for operators of positive numbers."""
    feed = fed(net)
    for tensor in net.inputs:
        if tensor.zero_point is not None:
            least = min(int(tensor.zero_point[0]) + 1, np.iinfo(tensor.dtype).max)
            feed[tensor.name] = np.maximum(feed[tensor.name], least).astype(tensor.dtype)
    return feed


ACTIVATIONS: tuple[Activation, Activation] = ("s8", "s16")
WITH_KERNELS = [(kind, a) for kind in BUILD for a in ACTIVATIONS if supported(kind, a)]


@pytest.mark.parametrize(("kind", "activation"), WITH_KERNELS)
def test_an_operator_alone(kind: str, activation: Activation, tmp_path: Path) -> None:
    net = alone(kind, activation)
    feed = lifted(net) if kind in POSITIVE else fed(net)
    steps = STEPS.get((activation, kind), 1)
    agrees(net, feed, tmp_path, steps, reference=kind not in UNREFERENCED)


@pytest.mark.parametrize("code", [1, 2, 3])
@pytest.mark.parametrize("kind", FUSED)
def test_a_fused_activation(kind: str, code: int, tmp_path: Path) -> None:
    net = alone(kind, "s8")
    op = replace(net.ops[0], options={**net.ops[0].options, "fusedActivationFunction": code})
    fused = Net(net.inputs, net.outputs, [op])
    agrees(fused, fed(fused), tmp_path, 1, reference=True)


def test_a_bound_of_the_integers_is_not_written_again(tmp_path: Path) -> None:
    """ReLU of an output whose least integer stands for 0; else it is written."""
    for zero, written in ((-128, 0), (-100, 1)):
        net = alone("CONV_2D", "s8")
        out = replace(net.outputs[0], zero_point=np.array([zero]))
        settings = {**net.ops[0].options, "fusedActivationFunction": 1}
        op = replace(net.ops[0], outputs=[out], options=settings)
        made = agrees(Net(net.inputs, [out], [op]), fed(net), tmp_path, 1, reference=True)
        assert operators(made)["Relu"] == written


# --- the old quantization


def unsigned(net: Net) -> Net:
    """In uint8, as files before 2020 are: weights have one scale and a zero point."""
    new: dict[Tensor, Tensor] = {}

    def turned(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.scale is None or tensor.dtype != np.int8:
            return tensor
        if tensor not in new:
            assert tensor.zero_point is not None
            more: dict[str, Any] = {"dtype": np.dtype(np.uint8)}
            more["zero_point"] = tensor.zero_point[:1] + 128
            if tensor.data is not None:
                more["zero_point"] = np.array([117])
                more["data"] = (tensor.data.astype(int) // 2 + 117).astype(np.uint8)
                more["scale"] = tensor.scale[:1]
            new[tensor] = replace(tensor, **more)
        return new[tensor]

    ops = []
    for op in net.ops:
        inputs = [turned(tensor) for tensor in op.inputs]
        bias = inputs[2] if len(inputs) > 2 else None
        if bias is not None and bias.dtype == np.int32 and bias.scale is not None:
            source, weight = inputs[0], inputs[1]
            assert source is not None and weight is not None
            assert source.scale is not None and weight.scale is not None
            product = (source.scale * weight.scale).astype(np.float32)
            inputs[2] = replace(bias, scale=product, zero_point=np.zeros(1, np.int64))
        ops.append(replace(op, inputs=inputs, outputs=[turned(t) or t for t in op.outputs]))
    return Net([turned(t) or t for t in net.inputs], [turned(t) or t for t in net.outputs], ops)


@pytest.mark.parametrize(
    "kind", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "ADD", "MUL", "CONCATENATION",
             "AVERAGE_POOL_2D", "MAX_POOL_2D", "RESHAPE", "PAD", "RESIZE_BILINEAR"],
)  # fmt: skip
def test_an_operator_of_unsigned_bytes(kind: str, tmp_path: Path) -> None:
    net = unsigned(alone(kind, "s8"))
    assert net.inputs[0].dtype == np.uint8
    agrees(net, fed(net), tmp_path, 1, reference=True)


def test_parts_of_several_scales_are_joined(tmp_path: Path) -> None:
    """uint8 CONCATENATION rescales what flows into it."""
    net = unsigned(alone("CONCATENATION", "s8"))
    op = net.ops[0]
    parts = [
        replace(tensor, scale=np.asarray(tensor.scale) * np.float32(factor))
        for tensor, factor in zip(op.taken, (1.0, 0.5, 0.7), strict=True)
    ]
    joined = Net(parts, net.outputs, [replace(op, inputs=list(parts))])
    agrees(joined, fed(joined), tmp_path, 1, reference=True)


# --- weights alone


def test_weights_in_8_bits_beside_floats(tmp_path: Path) -> None:
    """LiteRT quantizes what it multiplies by them; what the file means is their product."""
    m = whole()
    net, feed = dynamic(m.net), m.feeds(1)[0]
    made = converted(net, tmp_path)
    assert operators(made)["DequantizeLinear"] == 2
    stored = {entry.data_type for entry in made.graph.initializer if len(entry.dims) > 1}
    assert onnx.TensorProto.INT8 in stored
    found, wanted = by_onnx(made, feed), by_litert(net, feed)
    for name, array in wanted.items():
        assert sqnr(array, found[name]) >= LEAST_DB
    exact = by_onnx(converted(_in_floats(net), tmp_path), feed)
    for name, array in exact.items():
        np.testing.assert_allclose(found[name], array, atol=1e-5 * np.abs(array).max())


def _in_floats(net: Net) -> Net:
    """With the numbers for which the weights stand."""

    def real(tensor: Tensor | None) -> Tensor | None:
        if tensor is None or tensor.data is None or tensor.scale is None:
            return tensor
        shape = [1] * tensor.data.ndim
        shape[tensor.axis] = -1
        return constant(tensor.name, tensor.data * tensor.scale.reshape(shape), np.float32)

    ops = [replace(op, inputs=[real(tensor) for tensor in op.inputs]) for op in net.ops]
    return Net(net.inputs, net.outputs, ops)


def test_a_table_of_integers_is_read_before_it_is_dequantized(tmp_path: Path) -> None:
    table = constant("table", np.arange(-60, 60, dtype=np.int8).reshape(20, 6))
    table.scale, table.zero_point = np.array([0.1], np.float32), np.array([3])
    words = Tensor("words", (2, 5), np.dtype(np.int32))
    for dtype, zero in ((np.int8, 3), (np.float32, None)):
        out = Tensor("out", (2, 5, 6), np.dtype(dtype))
        if zero is not None:
            out.scale, out.zero_point = table.scale, table.zero_point
            net = Net([words], [out], [Op("GATHER", [words, table], [out], {"axis": 0})])
        else:
            real = Tensor("real", table.shape, F32)
            ops = [Op("DEQUANTIZE", [table], [real]), Op("GATHER", [real, words], [out])]
            net = Net([words], [out], ops)
        if zero is not None:
            net.ops[0].inputs = [table, words]
        feed = {"words": np.random.default_rng(0).integers(0, 20, (2, 5)).astype(np.int32)}
        made = agrees(net, feed, tmp_path, 1e-6 if zero is None else 0)
        kinds = [node.op_type for node in made.graph.node]
        assert kinds.index("Gather") < kinds.index("DequantizeLinear")


# --- whole networks


def network(activation: Activation, name: str) -> tuple[Net, Arrays]:
    m = whole() if name == "whole" else small()
    net = quantize(m.net, calibrated(m.net, m.feeds()), activation)
    return net, m.feeds(1, seed=9)[0]


@pytest.mark.parametrize("activation", ["s8", "s16"])
@pytest.mark.parametrize("name", ["whole", "small"])
@pytest.mark.parametrize("ends", ["floats", "integers"])
def test_a_network(activation: Activation, name: str, ends: str, tmp_path: Path) -> None:
    net, feed = network(activation, name)
    if ends == "integers":
        feed = _quantized_feed(net, feed)
        io.integers(net)
    made = converted(net, tmp_path)
    opset = {"s8": 17, "s16": 21}[activation]
    assert made.opset_import[0].version == opset
    check_numbers(net, by_litert(net, feed), by_onnx(made, feed))


def _quantized_feed(net: Net, feed: Mapping[str, np.ndarray]) -> Arrays:
    found: Arrays = {}
    for op in net.ops:
        if op.kind == "QUANTIZE" and op.taken[0] in net.inputs:
            tensor, source = op.outputs[0], op.taken[0]
            assert tensor.scale is not None and tensor.zero_point is not None
            limits = np.iinfo(tensor.dtype)
            steps = np.round(feed[source.name] / tensor.scale[0]) + tensor.zero_point[0]
            found[source.name] = np.clip(steps, limits.min, limits.max).astype(tensor.dtype)
    return found


def check_numbers(net: Net, wanted: Arrays, found: Arrays) -> None:
    """As many dB as that, of the numbers for which integers stand."""
    for (name, array), tensor in zip(wanted.items(), net.outputs, strict=True):
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        zero = 0.0 if tensor.zero_point is None else float(tensor.zero_point[0])
        assert sqnr(array - zero, found[name] - zero) >= LEAST_DB, name


@pytest.mark.parametrize("seed", range(2))
def test_a_tangle_of_integer_operators(seed: int, tmp_path: Path) -> None:
    """Convolutions, pools, joins and pads that read any earlier tensor: each of them alone, on
    what LiteRT gives the others. (All in a row, random weights enlarge each step of difference.)"""
    net = tangled(seed)
    for op in net.ops:
        inputs = [tensor for tensor in dict.fromkeys(op.taken) if tensor.data is None]
        single = Net(inputs, list(op.outputs), [op])
        agrees(single, fed(single, seed), tmp_path, 1, reference=True)


def test_a_residual_network_is_fused_into_integer_operators(tmp_path: Path) -> None:
    """In ONNX Runtime none of its convolutions and sums stays in floats."""
    net = residual()
    for op in net.ops:
        if op.activation:  # as converters choose it: the least integer stands for 0
            op.outputs[0].zero_point = np.array([-128])
    feed = fed(net)
    model = converted(net, tmp_path)
    counts = operators(session_graph(model, tmp_path / "fused.onnx"))
    assert counts["QLinearConv"] == operators(model)["Conv"] > 4 and not counts["Conv"]
    assert counts["QLinearAdd"] == operators(model)["Add"] and not counts["Add"]
    check_numbers(net, by_litert(net, feed, True), by_onnx(model, feed, optimized=True))


def session_graph(model: Any, path: Path) -> Any:
    """The graph that ONNX Runtime executes on x86."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    content = model.SerializeToString()
    onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return onnx.load(path)


@pytest.mark.parametrize("kind", ["CONV_2D", "CONCATENATION", "PAD"])
def test_openvino_reads_it(kind: str, tmp_path: Path) -> None:
    import openvino

    net = alone(kind, "s8")
    path = tmp_path / "integers.onnx"
    onnx.save(converted(net, tmp_path), path)
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(path), "CPU", settings)
    feed = fed(net)
    name, wanted = next(iter(by_litert(net, feed).items()))
    found = compiled(feed)[name]
    assert found.dtype == np.int8
    assert np.abs(found.astype(int) - wanted).max() <= 1


# --- the form


def test_integers_and_scales_are_the_files(tmp_path: Path) -> None:
    """Weights stay integers, with their scales along ONNX's axis of output channels; the bias has
    the scales of the products."""
    m = small()
    net = quantize(m.net, calibrated(m.net, m.feeds()))
    made = converted(net, tmp_path)
    arrays = {entry.name: numpy_helper.to_array(entry) for entry in made.graph.initializer}
    makers = {name: node for node in made.graph.node for name in node.output}
    axes = {"Conv": 0, "ConvTranspose": 1}
    seen = 0
    for node in made.graph.node:
        if node.op_type not in axes:
            continue
        parts = [makers[name] for name in node.input]
        assert all(part.op_type == "DequantizeLinear" for part in parts)
        source, weight, bias = ([arrays.get(name) for name in part.input] for part in parts)
        assert weight[0] is not None and weight[0].dtype == np.int8
        assert bias[0] is not None and bias[0].dtype == np.int32
        assert {entry.name: entry.i for entry in parts[1].attribute} == {"axis": axes[node.op_type]}
        assert weight[1] is not None and len(weight[1]) == weight[0].shape[axes[node.op_type]]
        assert source[1] is not None and bias[1] is not None
        np.testing.assert_allclose(bias[1], source[1] * weight[1], rtol=1e-6)
        seen += 1
    assert seen == 3


def test_a_computed_tensor_with_scales_of_channels_is_refused(tmp_path: Path) -> None:
    net = alone("RELU", "s8")
    out = replace(net.outputs[0], scale=np.ones(4, np.float32), zero_point=np.zeros(4, np.int64))
    out.axis = 3
    op = replace(net.ops[0], outputs=[out])
    with pytest.raises(UnsupportedError, match=r"RELU .*a scale for each channel"):
        converted(Net(net.inputs, [out], [op]), tmp_path)


def test_a_pool_of_integers_keeps_pairs_around_it(tmp_path: Path) -> None:
    m = Making(1, 8, 8, 3)
    pooled = m.op("MAX_POOL_2D", [m.conv()], 1, 4, 4, 4, **POOL)
    m.done(m.op("DEPTHWISE_CONV_2D", [pooled, m.floats(1, 3, 3, 4), m.floats(4)], 1, 4, 4, 4,
                depthMultiplier=1, **SQUARE()))  # fmt: skip
    net = quantize(m.net, calibrated(m.net, m.feeds()))
    made = converted(net, tmp_path)
    makers = {name: node for node in made.graph.node for name in node.output}
    readers = {name: node for node in made.graph.node for name in node.input}
    pool = next(node for node in made.graph.node if node.op_type == "MaxPool")
    assert makers[pool.input[0]].op_type == "DequantizeLinear"
    assert readers[pool.output[0]].op_type == "QuantizeLinear"
    assert session(made) is not None
