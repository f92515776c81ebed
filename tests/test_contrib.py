"""Models that other tools have optimized or quantized before: operators of ONNX Runtime's own,
constants of its names, and integers of every kind."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from onmetal.calibration import placement
from onmetal.calibration.fidelity import sqnr_db
from onmetal.calibration.qdq_writer import quantize
from onmetal.converters.onnx import floats, reader
from onmetal.converters.onnx.graph import Graph
from onmetal.runtimes import fit
from onmetal.targets import Format
from tests.conftest import deploy_here as deploy
from tests.onnx_models import build, constant, node, save, value, weights

MICROSOFT = "com.microsoft"
DEPTH, LENGTH = 32, 8


def own(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return node(kind, inputs, outputs, domain=MICROSOFT, **attributes)


def prepared(model: Any, folder: Path) -> tuple[dict[str, Any], Any]:
    """-> what the reader tells, and the float graph of the quantizer."""
    for name in ("read", "float"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = save(model, folder / "given.onnx")
    facts = reader.examine(str(path), {}, None, str(folder / "read"))
    floats.simplify(str(folder / "read/model.onnx"), str(folder / "float"))
    return facts, onnx.load(str(folder / "float/model.onnx"))


def opened(model: Any) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )


def transformer(tail: list[Any], tensors: list[Any]) -> Any:
    """Two products around what a fused operator is tried as: `b` of `a`."""
    return build(
        [node("MatMul", "x w1", "a"), *tail, node("MatMul", "b w2", "y")],
        [value("x", ["N", LENGTH, DEPTH])],
        [value("y", ["N", LENGTH, 5])],
        [weights("w1", DEPTH, DEPTH), weights("w2", DEPTH, 5), *tensors],
        domains=[MICROSOFT],
    )


BIAS = weights("bias", DEPTH)
GAMMA, BETA = constant("gamma", np.ones(DEPTH)), constant("beta", np.zeros(DEPTH))
FUSED = {
    "BiasGelu": ([own("BiasGelu", "a bias", "b")], [BIAS]),
    "FastGelu": ([own("FastGelu", "a bias", "b")], [BIAS]),
    "Gelu": ([own("Gelu", "a", "b")], []),
    "QuickGelu": ([own("QuickGelu", "a", "b", alpha=1.7)], []),
    "SkipLayerNormalization": (
        [own("SkipLayerNormalization", "a x gamma beta bias", "b", epsilon=1e-5)],
        [GAMMA, BETA, BIAS],
    ),
    "SkipLayerNormalization of two outputs": (
        [
            own("SkipLayerNormalization", "a x gamma beta", "n - - s", epsilon=1e-5),
            node("Add", "n s", "b"),
        ],
        [GAMMA, BETA],
    ),
    "FusedMatMul": (
        [own("FusedMatMul", "a square", "b", alpha=0.5, transB=1)],
        [weights("square", DEPTH, DEPTH)],
    ),
    "Attention": (
        [own("Attention", "a qkv qkv_bias", "b", num_heads=4)],
        [weights("qkv", DEPTH, 3 * DEPTH), weights("qkv_bias", 3 * DEPTH)],
    ),
    "MultiHeadAttention": ([own("MultiHeadAttention", "a a a", "b", num_heads=4)], []),
}


def fix_outputs(tail: list[Any]) -> list[Any]:
    for made in tail:
        made.output[:] = ["" if name == "-" else name for name in made.output]
    return tail


def statics() -> dict[str, Format]:
    recipes = fit.load_target("x86-64").recipes
    return {r.name: r.format for r in recipes if r.format and r.format.operators}


@pytest.mark.parametrize("name", FUSED)
def test_what_surrounds_a_fused_operator_is_quantized(tmp_path: Path, name: str) -> None:
    tail, tensors = FUSED[name]
    facts, plain = prepared(transformer(fix_outputs(tail), tensors), tmp_path)
    graph = Graph(plain)
    for made in plain.graph.node:
        for output in filter(None, made.output):
            assert graph.values[output][1] is not None, f"the shape of {output} is not known"
    x = np.random.default_rng(0).normal(size=(1, LENGTH, DEPTH)).astype(np.float32)
    right = opened(onnx.load(str(tmp_path / "read/model.onnx"))).run(["y"], {"x": x})[0]
    form = statics()["int8-u8s8"]
    placed = placement.place(graph, form)
    assert {made.op_type for made in plain.graph.node if made.name in placed.integer} >= {"MatMul"}
    names = [name for group in placed.groups().values() for name in group if name != "x"]
    whole = onnx.ModelProto()
    whole.CopyFrom(plain)
    del whole.graph.output[:]
    whole.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    arrays = {"x": x, **dict(zip(names, opened(whole).run(names, {"x": x}), strict=True))}
    ranges = {key: (float(array.min()), float(array.max())) for key, array in arrays.items()}
    made = quantize(plain, form, placed, ranges)
    onnx.checker.check_model(made)
    assert any(entry.domain == MICROSOFT for entry in made.graph.node)
    given = opened(made).run(["y"], {"x": x})[0]
    assert sqnr_db(right, given) > 25
    assert facts["operators"]["MatMul"] == 2


def test_a_fused_convolution_is_counted(tmp_path: Path) -> None:
    made = build(
        [
            own("FusedConv", "x w", "h", activation="Relu", pads=[1] * 4),
            node("Conv", "h v", "y"),
        ],
        [value("x", [1, 3, 8, 8])],
        [value("y", [1, 4, 8, 8])],
        [weights("w", 6, 3, 3, 3), weights("v", 4, 6, 1, 1)],
        domains=[MICROSOFT],
    )
    facts, plain = prepared(made, tmp_path)
    assert facts["macs"] == 64 * (6 * 27 + 4 * 6)
    assert Graph(plain).shape("h") == (1, 6, 8, 8)


def test_fused_operators_are_deployed_in_8_bits_or_refused_by_name(tmp_path: Path) -> None:
    tail, tensors = FUSED["BiasGelu"]
    path = save(transformer(tail, tensors), tmp_path / "net.onnx")
    x = np.random.default_rng(1).normal(size=(40, LENGTH, DEPTH)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    words = ("--target", "x86-64", "--calibration-data", tmp_path / "x.npz", "--no-device")
    ran = deploy(
        path, *words, "--recipes", "int8-u8s8,int8-dynamic", "--out", tmp_path / "out", "--json"
    )
    assert ran.code == 0, ran.err
    found = {entry["name"]: entry for entry in ran.document["candidates"]}
    for name in ("int8-u8s8@onnxruntime", "int8-u8s8@openvino"):
        assert found[name]["status"] in ("ok", "chosen"), found[name]["reason"]
    assert "BiasGelu" in found["int8-dynamic@litert"]["reason"]


# --- a graph that ONNX Runtime has optimized before


def optimized_before() -> Any:
    """Its constants have the names that MatMulAddFusion gives to the shapes that it adds."""
    shapes = [constant("gemm_input_shape", [8, 16], "int64")]
    shapes.append(constant("gemm_output_shape", [1, 8, 16], "int64"))
    return build(
        [
            node("Reshape", "x gemm_input_shape", "flat"),
            node("Gemm", "flat w b", "g"),
            node("Reshape", "g gemm_output_shape", "h"),
            node("MatMul", "h w", "m"),
            node("Add", "m b", "y"),
        ],
        [value("x", [1, 8, 16])],
        [value("y", [1, 8, 16])],
        [weights("w", 16, 16), weights("b", 16), *shapes],
    )


def test_a_graph_that_was_optimized_before_can_be_opened(tmp_path: Path) -> None:
    given = optimized_before()
    with pytest.raises(Exception, match="Attempt to replace the existing tensor"):
        opened(given)  # else there is nothing left to cure
    _, plain = prepared(given, tmp_path)
    x = np.random.default_rng(0).normal(size=(1, 8, 16)).astype(np.float32)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    right = onnxruntime.InferenceSession(given.SerializeToString(), settings).run(None, {"x": x})[0]
    for model in (onnx.load(str(tmp_path / "read/model.onnx")), plain):
        np.testing.assert_allclose(
            opened(model).run(None, {"x": x})[0], right, rtol=1e-5, atol=1e-5
        )


def test_outputs_keep_names_that_are_in_the_way(tmp_path: Path) -> None:
    """A constant that is an output is not called anything else."""
    made = build(
        [node("Relu", "x", "y"), node("Add", "x gemm_input_shape", "z")],
        [value("x", [2])],
        [value("y", [2]), value("gemm_input_shape", [2])],
        [constant("gemm_input_shape", [1.0, 2.0])],
    )
    _, plain = prepared(made, tmp_path)
    assert [entry.name for entry in plain.graph.output] == ["y", "gemm_input_shape"]
    x = np.array([-1, 1], np.float32)
    given = opened(plain).run(None, {"x": x})
    np.testing.assert_array_equal(given[1], [1, 2])


# --- models that are quantized already


def integers(kind: str) -> Any:
    """A product by one weight in the form that `kind` says."""
    x, y = [value("x", [2, 16])], [value("y", [2, 8])]
    scale, zero = constant("s", 0.05), constant("z", 0, "uint8")
    weight = constant("w", np.random.default_rng(0).integers(-8, 8, (16, 8)), "int8")
    if kind == "dynamic":
        nodes = [
            node("DynamicQuantizeLinear", "x", "q s z"),
            node("MatMulInteger", "q w z", "m"),
            node("Cast", "m", "c", to=TensorProto.FLOAT),
            node("Mul", "c s", "y"),
        ]
        return build(nodes, x, y, [weight])
    if kind == "operators":
        nodes = [
            node("QuantizeLinear", "x s z", "q"),
            node("QLinearMatMul", "q s z w s zw s z", "m"),
            node("DequantizeLinear", "m s z", "y"),
        ]
        return build(nodes, x, y, [weight, scale, zero, constant("zw", 0, "int8")])
    if kind == "4-bit weights":
        four = helper.make_tensor("w", TensorProto.INT4, [16, 8], [1, -2] * 64)
        nodes = [node("DequantizeLinear", "w s", "v"), node("MatMul", "x v", "y")]
        return build(nodes, x, y, [four, scale], opset=21, ir=10)
    assert kind == "16-bit activations"
    wide = constant("z", 32768, "uint16")
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "w s", "v"),
        node("MatMul", "d v", "y"),
    ]
    return build(nodes, x, y, [weight, scale, wide], opset=21, ir=10)


KINDS = {"dynamic": 2, "operators": 2, "4-bit weights": 1, "16-bit activations": 1}


@pytest.mark.parametrize("kind", KINDS)
def test_what_holds_integers_is_told_as_quantized(tmp_path: Path, kind: str) -> None:
    path = save(integers(kind), tmp_path / "net.onnx")
    (tmp_path / "read").mkdir()
    facts = reader.examine(str(path), {}, None, str(tmp_path / "read"))
    assert facts["quantized"] == KINDS[kind]
    assert facts["macs"] == 2 * 16 * 8
    assert facts["parameters"] >= 128


def test_weights_of_4_bits_become_float_unchanged(tmp_path: Path) -> None:
    _, plain = prepared(integers("4-bit weights"), tmp_path)
    assert [made.op_type for made in plain.graph.node] == ["MatMul"]
    weight = Graph(plain).constant(plain.graph.node[0].input[1])
    assert weight is not None
    np.testing.assert_allclose(weight.ravel(), [0.05, -0.1] * 64, rtol=1e-6)


@pytest.mark.parametrize(("axis", "block", "zero"), [(0, 4, True), (0, 6, False), (1, 3, True)])
def test_weights_of_blocks_are_folded(axis: int, block: int, zero: bool, tmp_path: Path) -> None:
    """One scale for so many values along an axis; the last block may be cut."""
    chance = np.random.default_rng(0)
    weight, shape = chance.integers(-7, 8, (16, 8)), [16, 8]
    shape[axis] = -(-shape[axis] // block)
    four = helper.make_tensor("w", TensorProto.INT4, weight.shape, weight.flatten().tolist())
    steps = chance.uniform(0.1, 0.4, shape).astype(np.float32)
    offsets = chance.integers(-3, 4, shape)
    zeros = helper.make_tensor("z", TensorProto.INT4, shape, offsets.flatten().tolist())
    dequantize = node("DequantizeLinear", "w s z" if zero else "w s", "v")
    dequantize.attribute.extend(
        [helper.make_attribute("axis", axis), helper.make_attribute("block_size", block)]
    )
    model = build(
        [dequantize, node("MatMul", "x v", "y")],
        [value("x", [2, 16])],
        [value("y", [2, 8])],
        [four, constant("s", steps, "float32"), *([zeros] if zero else [])],
        opset=21,
        ir=10,
    )
    floats.simplify(str(save(model, tmp_path / "x.onnx")), str(tmp_path))
    folded = onnx.load(tmp_path / "model.onnx")
    assert [entry.op_type for entry in folded.graph.node] == ["MatMul"]
    each = np.arange(weight.shape[axis]) // block
    wanted = weight - (np.take(offsets, each, axis) if zero else 0)
    found = onnx.numpy_helper.to_array(folded.graph.initializer[0])
    np.testing.assert_allclose(found, wanted * np.take(steps, each, axis), rtol=1e-6)
