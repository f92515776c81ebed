"""Weights, constants and names of a quantized graph; a model of an old opset."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from onmetal.converters.onnx import floats as onnx_float
from onmetal.converters.onnx.graph import Graph
from onmetal.records import plain
from onmetal.targets import Format
from tests.onnx_models import build, constant, node, save, value
from tests.qdq_checks import (
    CLOSE,
    CONV,
    FORMATS,
    IMAGE,
    RELU,
    Made,
    V,
    W,
    check_exact,
    check_rules,
    check_runtimes,
    feeds_for,
    floats,
    made,
    quantized,
    small,
)
from tests.qdq_reference import EVERY, Case, ranges_of, traced

# --- weights, constants, names


def constants_of(m: Made, name: str) -> list[np.ndarray]:
    """Integers, scale and zero point of the second input of a node."""
    graph = Graph(m.written)
    copy = next(entry for entry in graph.nodes if entry.name == name)
    arrays = [graph.constant(entry) for entry in graph.producer[copy.input[1]].input]
    assert all(array is not None for array in arrays)
    return arrays  # type: ignore[return-value]


@pytest.mark.parametrize("weight", ["s8", "u8"])
@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_have_the_types_limits_and_zero_points_of_their_format(
    weight: Any, bits: Any, symmetric: bool, per_channel: bool
) -> None:
    if (weight, bits, symmetric) == ("u8", 7, True):
        bits = 8
    form = Format(
        operators=EVERY,
        weight=weight,
        weight_bits=bits,
        weight_symmetric=symmetric,
        per_channel=per_channel,
    )
    m = quantized(small(node("Conv", "x w", "y"), w=floats(3, 2, 3, 3) + 0.3), form)
    integers, scale, zero = constants_of(m, "y")
    middle = 0 if weight == "s8" else 2 ** (bits - 1)
    most = 2 ** (bits - 1) - 1
    least = -most if symmetric else -most - 1
    assert integers.dtype == zero.dtype == (np.int8 if weight == "s8" else np.uint8)
    assert scale.shape == zero.shape == ((3,) if per_channel else ())
    shifted = integers.astype(int) - middle
    assert least <= shifted.min() and shifted.max() <= most
    if symmetric:
        assert (zero == middle).all()
        rows = np.abs(shifted.reshape(3, -1)).max(axis=1)
        assert rows.max() == most and (not per_channel or (rows == most).all())
    else:
        assert shifted.max() - shifted.min() >= 2 * most  # the whole range is used


@pytest.mark.parametrize(
    ("product", "shape", "weight", "axis"),
    [
        (node("Conv", "x w", "y", group=2), IMAGE, (4, 1, 3, 3), 0),
        (node("Conv", "x w", "y"), (1, 2, 9), (3, 2, 3), 0),
        (node("Conv", "x w", "y"), (1, 2, 4, 4, 4), (3, 2, 2, 2, 2), 0),
        (node("ConvTranspose", "x w", "y"), IMAGE, (2, 3, 2, 2), 1),
        (node("ConvTranspose", "x w", "y", group=2), IMAGE, (2, 3, 2, 2), None),
        (node("Gemm", "x w", "y"), (4, 6), (6, 3), 1),
        (node("Gemm", "x w", "y", transB=1), (4, 6), (3, 6), 0),
        (node("MatMul", "x w", "y"), (4, 6), (6, 3), 1),
        (node("MatMul", "x w", "y"), (2, 4, 6), (2, 6, 3), None),
        (node("MatMul", "x w", "y"), (4, 6), (6,), None),
    ],
)
def test_scales_per_channel_lie_along_the_outputs(
    product: Any, shape: tuple[int, ...], weight: tuple[int, ...], axis: int | None
) -> None:
    array = floats(*weight)
    if axis is not None:  # channels of different sizes
        sizes = 10.0 ** np.arange(weight[axis])
        array = array * sizes.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    model = small(product, inputs={"x": shape}, w=array)
    m = quantized(model)
    scale = constants_of(m, "y")[1]
    assert scale.shape == (() if axis is None else (weight[axis],))
    check_runtimes(m, traced(m.written, m.feeds))


def test_a_bias_of_one_number_serves_all_channels() -> None:
    for form in FORMATS:
        quantized(small(node("Gemm", "x v b", "y"), inputs={"x": (4, 6)}, v=V, b=[0.5]), form)


def test_a_weight_of_two_products_is_stored_for_each() -> None:
    nodes = [node("Conv", "x w b", "a"), node("Conv", "a w b", "y")]
    model = small(*nodes, w=W, b=np.array([100, -0.01], np.float32))
    for form in FORMATS:
        check_runtimes(m := quantized(model, form), traced(m.written, m.feeds))


def test_a_constant_that_float_and_8_bits_take_is_kept_for_both() -> None:
    model = small(
        CONV,
        node("Add", "a c", "b"),
        node("Mul", "b c", "s"),
        CLOSE,
        node("Add", "x c", "z"),
        node("Tanh", "z", "u"),
        outputs="y u",
        w=W,
        c=floats(1, 2, 1, 1),
    )
    form = Format(operators=tuple(kind for kind in EVERY if kind != "Tanh"))
    m = quantized(model, form)
    assert m.twin.placed.integer == {"a", "b", "s", "y", "z"}
    m = quantized(model, form, keep_float={"z"})
    assert "c" in {tensor.name for tensor in m.written.graph.initializer}


def test_weights_given_by_constant_nodes_are_weights() -> None:
    given = helper.make_node("Constant", [], ["w"], value=constant("", W))
    addend = helper.make_node("Constant", [], ["c"], value=constant("", floats(1, 2, 1, 1)))
    m = quantized(small(given, addend, CONV, node("Add", "a c", "s"), CLOSE))
    assert m.twin.placed.integer == {"a", "s", "y"}
    assert constants_of(m, "a")[0].dtype == np.int8


@pytest.mark.parametrize(
    "name",
    ["x.scale", "x.quantized", "a.made", "@0.scale", "@0.dequantized", "@@1.made", "w@a"],
)
def test_a_tensor_may_have_any_name(name: str) -> None:
    model = small(
        CONV,
        node("Mul", f"a {name}", "m"),
        node("Exp", "m", "e"),
        node("Conv", "e w", "y"),
        named={name: np.float32(0.3)},
        w=W,
    )
    quantized(model)
    model = small(CONV, node("Exp", "a", name), node("Conv", f"{name} w", "y"), w=W)
    quantized(model)
    model = small(
        CONV, node("Exp", name, "e"), node("Add", "a e", "y"), inputs={"x": IMAGE, name: IMAGE}, w=W
    )
    quantized(model)


def test_the_same_graph_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    model = small(
        CONV,
        RELU,
        node("Concat", "r x", "c", axis=1),
        node("Conv", "c u", "s"),
        node("Add", "s s", "t"),
        node("MatMul", "t v", "y"),
        w=W,
        u=floats(2, 4, 1, 1),
        v=V,
    )
    form = Format(operators=EVERY, same_scale=("Concat", "Add"))
    path = save(model, tmp_path / "model.onnx")
    ranges = ranges_of(traced(model, feeds_for(model)))
    code = (
        "import sys, json, hashlib, onnx\n"
        "from onmetal.converters.onnx.graph import Graph\n"
        "from onmetal.calibration.placement import place\n"
        "from onmetal.calibration.qdq_writer import quantize\n"
        "from onmetal.records import restore\n"
        "from onmetal.targets import Format\n"
        "path, form, ranges = json.load(sys.stdin)\n"
        "model, form = onnx.load(path), restore(form, Format)\n"
        "placed = place(Graph(model), form)\n"
        "made = quantize(model, form, placed, ranges).SerializeToString(deterministic=True)\n"
        "print(hashlib.sha256(made).hexdigest())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps([str(path), plain(form), ranges]),
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(found) == 1


# --- from an old model


def test_an_old_model_is_raised_its_norm_folded_and_its_relu_kept_with_the_conv(
    tmp_path: Path,
) -> None:
    nodes = [
        node("Conv", "x w", "c"),
        node("BatchNormalization", "c scale b mean var", "n"),
        node("Relu", "n", "r"),
        node("Conv", "r w", "y"),
    ]
    tensors = [
        constant("w", floats(2, 2, 3, 3)),
        constant("scale", [2, 0.1]),
        constant("b", [0.5, -0.5]),
        constant("mean", [1, -1]),
        constant("var", [4, 0.25]),
    ]
    old = build(nodes, [value("x", IMAGE)], [value("y", (1, 2, 2, 2))], tensors, opset=9, ir=4)
    path = save(old, tmp_path / "old.onnx")
    onnx_float.simplify(str(path), str(tmp_path))
    model = onnx.load(tmp_path / "model.onnx")
    assert model.opset_import[0].version >= 13
    assert [entry.op_type for entry in model.graph.node] == ["Conv", "Relu", "Conv"]
    feeds = [{"x": floats(*IMAGE, seed=seed)} for seed in range(3)]
    for exact, raised in zip(traced(old, feeds), traced(model, feeds), strict=True):
        np.testing.assert_allclose(raised["y"], exact["y"], rtol=1e-4, atol=1e-5)
    for symmetric in (False, True):
        m = made(Case(model, feeds), Format(operators=EVERY, activation_symmetric=symmetric))
        check_rules(m)
        check_runtimes(m, check_exact(m, feeds))
        kinds = [entry.op_type for entry in m.written.graph.node]
        kinds = [kind.removesuffix("Linear") for kind in kinds if kind != "DequantizeLinear"]
        relu = ["Relu"] if symmetric else []
        assert kinds == ["Quantize", "Conv", *relu, "Quantize", "Conv", "Quantize"]
